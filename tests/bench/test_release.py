"""The networks in the package are the recorded ones, and do what their runs were recorded to do."""

import json
from pathlib import Path

import numpy as np
import pytest

import pdo
from bench.__main__ import main
from bench.errors import RunError
from bench.predict import predict_file, read_images
from bench.record import recorded_folder
from bench.release import RELEASED, entry, release
from data_prep.files import DataError
from data_prep.grids import grid_points
from data_prep.mnist import fetch_mnist, load_mnist
from data_prep.spherical_mnist import haar_rotations, sample_rotated, sampling_matrix, to_bytes
from data_prep.synthetic_digits import synthetic_digits
from pdo.pretrained import FOLDER

RESULTS = Path(__file__).parents[2] / "results"
NAME = "pdo-es2cnn-small-mnist"
IMAGES = synthetic_digits(1, 4, seed=3).test_images


def test_package_is_what_release_makes_of_the_recorded_runs(tmp_path):
    made = release(RESULTS, tmp_path)
    assert {p.name for p in made} == {p.name for p in FOLDER.iterdir() if p.suffix[1:2] in "js"}
    for path in made:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", RELEASED)
def test_its_points_are_those_it_was_trained_on(name):
    provenance = recorded_folder(RESULTS, RELEASED[name]) / "provenance.json"
    card = json.loads(provenance.read_text())["data"]["card"]
    np.testing.assert_allclose(pdo.load(name).points, grid_points(card["grid"]), atol=1e-12)


def test_what_is_not_recorded_is_not_released(tmp_path):
    with pytest.raises(RunError, match="holds no weights: `python -m bench record"):
        entry(tmp_path, NAME, RELEASED[NAME])


@pytest.mark.slow
def test_recorded_accuracy_of_every_released_network(tmp_path):
    """All test digits again, from the raw files to the classes. Another processor adds in another
    order: up to 5 of 10,000 digits may fall on the other side."""
    try:
        fetch_mnist(tmp_path)
    except DataError as error:
        pytest.skip(f"MNIST cannot be had: {error}")
    digits = load_mnist(tmp_path)
    for name, key in RELEASED.items():
        of_run = np.load(recorded_folder(RESULTS, key) / "predictions.npz")
        classifier, measured = pdo.load(name), pdo.pretrained()[name]["measured"]
        points = classifier.points
        streams = [np.random.default_rng(s) for s in np.random.SeedSequence(0).spawn(5)]
        turns = haar_rotations(len(digits.test_images), streams[1])  # as `prepare` draws them
        matrix = sampling_matrix(points).astype(np.float32)
        for column, scores in measured.items():
            found = []
            for start in range(0, len(turns), 200):
                images = digits.test_images[start : start + 200]
                if column.endswith("/R"):
                    rotations = turns[start : start + 200]
                    x = sample_rotated(images, rotations, points.astype(np.float32))
                else:
                    x = (matrix @ images.reshape(len(images), -1).T.astype(np.float32)).T
                found.append(classifier.predict(to_bytes(x)).classes.numpy())
            classes = np.concatenate(found)
            differ = classes != of_run[f"{column.replace('/', '_')}_predictions"]
            accuracy = 100 * np.mean(classes == digits.test_labels)
            assert differ.sum() <= 5, (name, column)
            assert abs(accuracy - scores["accuracy_percent"]) <= 0.05


def test_images_are_read_alike_from_png_and_npy(tmp_path):
    from PIL import Image

    Image.fromarray(IMAGES[0]).convert("RGB").save(tmp_path / "one.png")
    np.save(tmp_path / "all.npy", IMAGES)
    np.testing.assert_array_equal(read_images(tmp_path / "one.png")[0], IMAGES[0])
    np.testing.assert_array_equal(read_images(tmp_path / "all.npy"), IMAGES)


def test_predict_from_the_shell(tmp_path, capsys):
    np.save(tmp_path / "digits.npy", IMAGES)
    assert main(["predict", str(tmp_path / "digits.npy"), "--rotate", "7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    turns = haar_rotations(4, np.random.default_rng(7))
    np.testing.assert_allclose(found["rotations"], turns)
    classifier = pdo.load(NAME)
    signals = to_bytes(sample_rotated(IMAGES, turns, classifier.points))
    assert found["classes"] == classifier.predict(signals).classes.tolist()
    upright = predict_file(NAME, tmp_path / "digits.npy")
    assert upright["rotations"] is None and upright["probabilities"] != found["probabilities"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros((27, 28), np.uint8), "images must be 28 x 28"),
        (np.zeros((0, 28, 28), np.uint8), "images must be 28 x 28"),
        (np.full((28, 28), 300), "numbers in 0..255"),
        (np.full((28, 28), np.nan), "numbers in 0..255"),
        (np.array([None]), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, capsys, content, said):
    file = tmp_path / "digit.npy"
    if content is not None:
        np.save(file, content)
    assert main(["predict", str(file)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and str(file) in error


def test_unknown_network_and_seed(tmp_path, capsys):
    assert main(["predict", "x.png", "--model", "pdo-es2cnn-small"]) == 1
    assert main(["predict", "x.png", "--rotate", "-1"]) == 1
    error = capsys.readouterr().err
    assert f"did you mean '{NAME}'" in error and "must be >= 0" in error
