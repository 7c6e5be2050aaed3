from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data_prep import spherical_mnist
from data_prep.__main__ import main
from data_prep.files import sha256_of_file
from data_prep.grids import grid_points
from data_prep.mnist import SHA256, Digits, to_idx
from data_prep.spherical_mnist import (
    EDITIONS,
    Edition,
    haar_rotations,
    prepare,
    project,
    sample_rotated,
    sampling_matrix,
    split_indices,
    stratified_subset,
    to_bytes,
)
from data_prep.synthetic_digits import synthetic_digits

DIGITS = synthetic_digits(60, 30, seed=3)
NOISE = np.random.default_rng(1).integers(0, 256, (4, 28, 28), dtype=np.uint8)
IDENTITY = np.broadcast_to(np.eye(3), (4, 3, 3))
UNCHANGED = {
    "train_N.npy": "942959d8c1b311e5359bd6c0b6345373a3e2e2020f8b634b5c65556c6a8ade1d",
    "train_R.npy": "efc6e7d0b43c22196db2e73f26e2b31e66a9f36112490976207a5fe266f044b2",
    "test_N.npy": "942959d8c1b311e5359bd6c0b6345373a3e2e2020f8b634b5c65556c6a8ade1d",
    "test_R.npy": "efc6e7d0b43c22196db2e73f26e2b31e66a9f36112490976207a5fe266f044b2",
    "split.npz": "4c0e918313d9ebe13e7757d1dfa086286cbaae1d47b524bf4c8d99f523b756c5",
}


def direction(from_south: float, azimuth: float) -> np.ndarray:
    """Unit vector so many degrees from the south pole, at an azimuth in degrees."""
    t, a = np.radians([from_south, azimuth])
    return np.array([np.sin(t) * np.cos(a), np.sin(t) * np.sin(a), -np.cos(t)])


def random_points(n: int) -> np.ndarray:
    points = np.random.default_rng(2).standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def upright_samples(
    images: np.ndarray, points: np.ndarray, edition: Edition = "corrected"
) -> np.ndarray:
    return (sampling_matrix(points, edition) @ images.reshape(len(images), -1).T.astype(float)).T


def test_south_pole_is_the_middle_of_the_image():
    assert project(*direction(0, 0)) == (14.0, 14.0)


@pytest.mark.parametrize(
    ("azimuth", "pixel"), [(0, (28, 14)), (90, (14, 28)), (180, (0, 14)), (270, (14, 0))]
)
def test_image_edge_is_73_75_degrees_from_the_pole(azimuth, pixel):
    # Closed form: tan(t) from the triangle (0, 0, 2 + eps), foot of the sphere point, plane.
    np.testing.assert_allclose(project(*direction(73.75, azimuth)), pixel, atol=2e-3)
    np.testing.assert_allclose(
        project(*direction(56.4, azimuth)), 14 + (np.array(pixel) - 14) * 10 / 14, atol=0.02
    )


def test_image_corner_is_93_4_degrees_from_the_pole():
    np.testing.assert_allclose(project(*direction(93.4, 45)), (28, 28), atol=0.02)


def test_projection_is_the_ray_through_the_point():
    """Independent form: where the line from the centre through the point meets the plane."""
    points = random_points(50)
    points = points[points[:, 2] < 0.9]
    centre = np.array([0, 0, 2.001])
    for point in points:
        target = point + np.array([0, 0, 1])
        s = np.linalg.solve(np.column_stack([[1, 0, 0], [0, 1, 0], centre - target]), centre)
        np.testing.assert_allclose(project(*point), 28 * (s[:2] + 1.5) / 3, atol=1e-9)


def test_north_pole_does_not_see_the_digit():
    north = np.array([[0.0, 0.0, 1.0]])
    image = NOISE[:1].astype(float)
    assert sampling_matrix(north).nnz == 0
    assert sample_rotated(image, IDENTITY[:1], north)[0, 0] == 0


def test_sampling_agrees_with_scipy():
    points = np.vstack([random_points(3000), grid_points("latlon10")])
    coordinates = np.array(project(*points.T))
    matrix = sampling_matrix(points)
    for image in NOISE.astype(float):
        padded = np.pad(image, 2)  # scipy's 'constant' mode does not blend with the zeros outside
        expected = ndimage.map_coordinates(padded, coordinates + 2, order=1, mode="constant")
        np.testing.assert_allclose(matrix @ image.ravel(), expected, atol=1e-9)
        got = sample_rotated(image[None], IDENTITY[:1], points)[0]
        np.testing.assert_allclose(got, expected, atol=1e-9)
    assert 0.3 < np.mean(np.diff(matrix.indptr) > 0) < 0.7


def test_linear_ramp_is_reproduced_exactly_inside():
    rows, columns = np.mgrid[:28, :28]
    ramp = 2.0 + 3 * rows - 0.5 * columns
    points = random_points(2000)
    row, column = project(*points.T)
    inside = (row >= 0) & (row <= 27) & (column >= 0) & (column <= 27)
    assert inside.sum() > 300
    expected = (2 + 3 * row - 0.5 * column)[inside]
    matrix = sampling_matrix(points[inside])
    np.testing.assert_allclose(matrix @ ramp.ravel(), expected, atol=1e-10)
    np.testing.assert_allclose(
        sample_rotated(ramp[None], IDENTITY[:1], points[inside])[0], expected, atol=1e-10
    )
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


def test_bytes():
    samples = np.array([[0.0, 0.4, 0.6, 254.6], [10.0, 10.0, 10.0, 10.0]])
    np.testing.assert_array_equal(to_bytes(samples), [[0, 0, 1, 255], [10] * 4])


@pytest.mark.parametrize("edition", EDITIONS)
def test_only_the_published_edition_shows_which_way_up_an_image_was(edition):
    """A half turn of the image about its centre, pixel (14, 14), is a half turn of the signal; with
    the fault it is another signal: the weights jump on one side of a pixel, not on the other."""
    points = random_points(800)
    images = NOISE.copy()
    images[:, 0] = images[:, :, 0] = 0  # a half turn about pixel 14 takes 1..27 to itself
    turned = np.roll(images[:, ::-1, ::-1], 1, axis=(1, 2))
    signals = upright_samples(turned, points, edition)
    expected = upright_samples(images, points * [-1, -1, 1], edition)
    error = np.abs(signals - expected).max() / np.abs(expected).max()
    assert error > 0.1 if edition == "published" else error < 1e-12


def test_identity_rotation_is_the_upright_signal():
    points = random_points(1000)
    upright = upright_samples(NOISE, points)
    np.testing.assert_allclose(sample_rotated(NOISE, IDENTITY, points), upright, atol=1e-9)
    single = sample_rotated(NOISE, IDENTITY, points.astype(np.float32))
    assert single.dtype == np.float32
    grey = [to_bytes(samples).astype(int) for samples in (single, upright)]
    assert np.abs(grey[0] - grey[1]).max() <= 1
    assert np.mean(grey[0] != grey[1]) < 2e-3


def test_signal_turned_and_points_turned_back_is_the_upright_signal():
    points = random_points(500)
    upright = upright_samples(NOISE, points)
    about_z = Rotation.from_euler("z", 40, degrees=True).as_matrix()
    general = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    for rotation in (about_z, general):
        # f_R(R^-1 x) = image(project(x)); rows of points @ R are R^-1 x.
        turned = sample_rotated(NOISE, np.broadcast_to(rotation, (4, 3, 3)), points @ rotation)
        np.testing.assert_allclose(turned, upright, atol=1e-8)
    other = sample_rotated(NOISE, np.broadcast_to(about_z, (4, 3, 3)), points)
    assert np.abs(other - upright).max() > 10


def test_quarter_turn_about_z_turns_the_image():
    """x -> -y, y -> x under R = Rz(90): the row becomes the mirrored column."""
    points = random_points(500)
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    turned = sample_rotated(NOISE, np.broadcast_to(quarter, (4, 3, 3)), points)
    row, column = project(*points.T)
    for image, samples in zip(NOISE.astype(float), turned, strict=True):
        where = np.array([28 - column, row]) + 2
        expected = ndimage.map_coordinates(np.pad(image, 2), where, order=1, mode="constant")
        np.testing.assert_allclose(samples, expected, atol=1e-8)


def test_rotations_are_haar():
    rotations = haar_rotations(40_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-9)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1),
        np.broadcast_to(np.eye(3), (40_000, 3, 3)),
        atol=1e-9,
    )
    trace = np.trace(rotations, axis1=1, axis2=2)
    # E tr R = 0, E tr^2 = 1, E tr^4 = 3 (moments of the character); 5 standard errors.
    assert abs(trace.mean()) < 5 / 200
    assert abs((trace**2).mean() - 1) < 5 * math.sqrt(2) / 200
    # Every column is uniform on the sphere: mean 0, covariance 1/3.
    for k in range(3):
        column = rotations[:, :, k]
        assert np.abs(column.mean(axis=0)).max() < 5 * math.sqrt(1 / 3) / 200
        np.testing.assert_allclose(column.T @ column / 40_000, np.eye(3) / 3, atol=0.01)


def test_rotation_chunk_of_500():
    rotations = haar_rotations(1700, np.random.default_rng(0), chunk=500)
    assert rotations.shape == (1700, 3, 3)
    assert len(np.unique(rotations.reshape(1700, 9), axis=0)) == 4
    for start in range(0, 1700, 500):
        block = rotations[start : start + 500]
        np.testing.assert_array_equal(block, np.broadcast_to(block[0], block.shape))
    single = haar_rotations(1700, np.random.default_rng(0))
    assert len(np.unique(single.reshape(1700, 9), axis=0)) == 1700


@pytest.mark.parametrize(("n", "held_out"), [(60_000, 6000), (1000, 100), (5, 1)])
def test_split_is_disjoint_and_complete(n, held_out):
    split = split_indices(n, np.random.default_rng(0))
    assert len(split["validation"]) == held_out
    np.testing.assert_array_equal(np.sort(np.concatenate(list(split.values()))), np.arange(n))
    other = split_indices(n, np.random.default_rng(1))
    assert not np.array_equal(split["validation"], other["validation"]) or n == 5


def test_stratified_subset():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, size=1000, p=[0.5, 0.3, 0.15, 0.05])
    indices = rng.permutation(1000)[:800]
    sizes = np.bincount(labels[indices], minlength=4)
    for n in (1, 7, 100, 333, 799, 800):
        drawn = stratified_subset(labels, indices, n, seed=5)
        assert len(drawn) == len(np.unique(drawn)) == n
        assert np.isin(drawn, indices).all()
        counts = np.bincount(labels[drawn], minlength=4)
        assert np.abs(counts - n * sizes / 800).max() < 1
        np.testing.assert_array_equal(drawn, stratified_subset(labels, indices, n, seed=5))
    one, other = (stratified_subset(labels, indices, 100, seed) for seed in (5, 6))
    assert not np.array_equal(one, other)
    for n in (0, 801):
        with pytest.raises(ValueError, match="cannot draw"):
            stratified_subset(labels, indices, n, seed=5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(DIGITS, "icosphere2", folder, seed=4)
    return folder


def test_prepared_files(prepared):
    card = json.loads((prepared / "card.json").read_text())
    names = [f"{part}_{kind}.npy" for part in ("train", "test") for kind in ("N", "R", "labels")]
    assert sorted(os.listdir(prepared)) == sorted([*names, "split.npz", "card.json"])
    assert card["sha256"] == {n: sha256_of_file(prepared / n) for n in [*names, "split.npz"]}
    assert card["dataset"] == "spherical synthetic digits" and card["source"] == "synthetic digits"
    assert card["raw_sha256"] == DIGITS.sha256
    assert card["edition"] == "corrected"
    assert card["samples"] == {"train": 54, "validation": 6, "test": 30}
    assert card["classes"] == {"train": [6] * 10, "test": [3] * 10}
    for name, n in {"train_N": 60, "train_R": 60, "test_N": 30, "test_R": 30}.items():
        array = np.load(prepared / f"{name}.npy", mmap_mode="r")
        assert array.shape == (n, 162) and array.dtype == np.uint8 and array.flags.c_contiguous
        assert array.max() > 150
    np.testing.assert_array_equal(np.load(prepared / "train_labels.npy"), DIGITS.train_labels)
    np.testing.assert_array_equal(np.load(prepared / "test_labels.npy"), DIGITS.test_labels)
    split = np.load(prepared / "split.npz")
    np.testing.assert_array_equal(
        np.sort(np.r_[split["train"], split["validation"]]), np.arange(60)
    )


def test_prepared_values_are_image_of_project(prepared):
    points = grid_points("icosphere2")
    expected = np.rint(upright_samples(DIGITS.test_images, points))
    upright = np.load(prepared / "test_N.npy")
    assert np.abs(upright - expected).max() <= 1
    assert (upright[:, 0] == 0).all()  # vertex 0 is the north pole
    rotated = np.load(prepared / "test_R.npy")
    assert len(np.unique(rotated.argmax(axis=1))) > 15  # turned to all sides


def test_same_seed_same_bytes_and_another_seed_other_rotations(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(spherical_mnist, "BLOCK_VALUES", 1000)  # and block size does not matter
    again = prepare(DIGITS, "icosphere2", tmp_path / "a", seed=4)
    assert again == json.loads((prepared / "card.json").read_text())
    other = prepare(DIGITS, "icosphere2", tmp_path / "b", seed=5)
    same = {name for name in other["sha256"] if other["sha256"][name] == again["sha256"][name]}
    assert same == {"train_N.npy", "test_N.npy", "train_labels.npy", "test_labels.npy"}


def test_rotations_and_split_do_not_depend_on_the_grid(prepared, tmp_path):
    """Vertices of level 2 are the first ones of level 3: the signals there must be the same."""
    prepare(DIGITS, "icosphere3", tmp_path, seed=4)
    for name in ("train_R.npy", "test_R.npy", "train_N.npy"):
        coarse, fine = np.load(prepared / name), np.load(tmp_path / name)[:, :162]
        assert np.abs(coarse.astype(int) - fine).max() <= 1
    assert (tmp_path / "split.npz").read_bytes() == (prepared / "split.npz").read_bytes()


def test_train_and_test_have_separate_rotations(tmp_path):
    twins = DIGITS._replace(test_images=DIGITS.train_images, test_labels=DIGITS.train_labels)
    prepare(twins, "icosphere1", tmp_path)
    np.testing.assert_array_equal(
        np.load(tmp_path / "train_N.npy"), np.load(tmp_path / "test_N.npy")
    )
    differ = (np.load(tmp_path / "train_R.npy") != np.load(tmp_path / "test_R.npy")).any(axis=1)
    assert differ.mean() > 0.9


def test_corrected_edition_has_not_changed(tmp_path, monkeypatch):
    """Recorded runs hold the SHA-256 of its arrays. These are from the code that made them (commit
    8b325dd). Quarter turns about the axes have entries 0, 1 and -1, so that matrix products are
    exact on every processor."""

    def quarter_turns(n: int, rng: np.random.Generator, chunk: int) -> np.ndarray:
        return np.rint(Rotation.create_group("O").as_matrix())[:n]

    monkeypatch.setattr(spherical_mnist, "haar_rotations", quarter_turns)
    images = np.random.default_rng(7).integers(0, 256, (24, 28, 28), dtype=np.uint8)
    labels = np.arange(24, dtype=np.uint8) % 10
    card = prepare(Digits(images, labels, images, labels, "noise", {}), "icosphere3", tmp_path)
    assert {name: card["sha256"][name] for name in UNCHANGED} == UNCHANGED


def test_failure_leaves_no_card(prepared, tmp_path, monkeypatch):
    """The card says that the data are complete: a run that dies must not leave the old one."""
    prepare(DIGITS, "icosphere1", tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spherical_mnist, "sample_rotated", die)
    with pytest.raises(KeyboardInterrupt):
        prepare(DIGITS, "icosphere2", tmp_path)
    left = os.listdir(tmp_path)
    assert "card.json" not in left and not [n for n in left if n.startswith(".")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"rotation_chunk": 0}, "rotation_chunk"),
        ({"edition": "legacy"}, "unknown edition 'legacy': editions are published, corrected"),
        ({"grid": "icosphere9"}, "level"),
        ({"raw": DIGITS._replace(train_labels=DIGITS.train_labels[:1])}, "at least 2"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, change, message):
    arguments = {"raw": DIGITS, "grid": "icosphere1", "out_dir": tmp_path / "out", **change}
    with pytest.raises(ValueError, match=message):
        prepare(**arguments)
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path):
    arguments = ["spherical-mnist", "--synthetic", "60", "30", "--grid", "icosphere1"]
    arguments += ["--seed", "3", "--rotation-chunk", "500", "--edition", "published"]
    run = subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments, "--out", str(tmp_path / "a")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    expected = prepare(DIGITS, "icosphere1", tmp_path / "b", 3, 500, "published")
    assert json.loads((tmp_path / "a" / "card.json").read_text()) == expected
    assert expected["edition"] == "published" and "projection" in expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--synthetic", "9", "9", "--grid", "icospere4"], "did you mean 'icosphere4'"),
        (["--synthetic", "0", "9", "--grid", "icosphere1"], "at least one"),
        (
            ["--raw", "nowhere", "--grid", "icosphere1"],
            "nowhere/train-images-idx3-ubyte is missing",
        ),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, capsys, arguments, message):
    assert main(["spherical-mnist", *arguments, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and message in line and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_command_line_refuses_damaged_mnist(tmp_path, capsys):
    for name in SHA256:
        (tmp_path / name).write_bytes(to_idx(NOISE)[:-1])
    arguments = ["--raw", str(tmp_path), "--grid", "icosphere1", "--out", str(tmp_path / "out")]
    assert main(["spherical-mnist", *arguments]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_unwritable_place_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--synthetic", "9", "9", "--grid", "icosphere1", "--out", str(tmp_path / "file")]
    assert main(["spherical-mnist", *arguments]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
