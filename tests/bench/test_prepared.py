"""Prepared data are opened if they are what their name says, down to the last byte."""

import json
import shutil
from pathlib import Path

import pytest

from bench.config import parse_protocol, planned_runs
from bench.errors import RunError
from bench.prepared import open_prepared, prepared_folder
from data_prep import room_signals, spherical_mnist, spherical_qm7, synthetic_rooms
from data_prep.synthetic_digits import synthetic_digits
from data_prep.synthetic_molecules import synthetic_molecules
from tests.conftest import tiny_protocol, tiny_run


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A copy of prepared digits that a test may change."""
    folder = prepared_folder(tiny_run())
    shutil.copytree(tiny_data / folder, tmp_path / folder)
    return tmp_path


def test_sound_data_are_opened(data):
    folder, card = open_prepared(tiny_run(), data)
    assert folder == data / prepared_folder(tiny_run())
    assert card["edition"] == "corrected" and card["grid"] == "icosphere3-equator"


def test_missing_data_name_the_command_that_prepares_them(tmp_path):
    with pytest.raises(RunError) as raised:
        open_prepared(tiny_run(), tmp_path)
    target = f"data/{prepared_folder(tiny_run())}/card.json"
    assert str(raised.value).endswith(f"prepare them with `snakemake --cores 2 {target}`")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"edition": "published"}, "edition = 'published'"),
        ({"seed": 7}, "seed = 7"),
        ({"grid": "icosphere3"}, "grid = 'icosphere3'"),
        ({"rotations": {"kind": "Haar", "images_per_rotation": 500}}, "images_per_rotation = 500"),
        ({"source": "MNIST"}, "source = 'MNIST'"),
        ({"samples": {"train": 1, "validation": 1, "test": 1}}, "samples.train = 1"),
        ({"sha256": {}}, "no SHA-256"),
    ],
)
def test_a_card_that_contradicts_the_configuration_is_refused(data, changes, reason):
    path = data / prepared_folder(tiny_run()) / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RunError) as raised:
        open_prepared(tiny_run(), data)
    assert reason in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '"card"', "{", ""])
def test_a_card_that_is_none_is_refused(data, text):
    (data / prepared_folder(tiny_run()) / "card.json").write_text(text)
    with pytest.raises(RunError, match=r"delete .* prepare them with"):
        open_prepared(tiny_run(), data)


@pytest.mark.parametrize("name", ["train_N.npy", "test_R.npy", "test_labels.npy", "split.npz"])
def test_one_flipped_bit_is_refused(data, name):
    path = data / prepared_folder(tiny_run()) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{name} is not the file that the card describes"):
        open_prepared(tiny_run(), data)
    path.unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        open_prepared(tiny_run(), data)


def run_on(task: str, data: dict, model: str) -> object:
    tree = tiny_protocol(tasks={task: {"data": data, "models": [model]}})
    return planned_runs(parse_protocol(tree))[0]


def test_every_key_of_digits_is_compared(tmp_path):
    """Data of one configuration, put where another's belong."""
    plain = {"source": "synthetic", "level": 3, "n_train": 60, "n_test": 20}
    run = run_on("spherical_mnist", plain, "UGSCNN")
    digits = synthetic_digits(60, 20, seed=0)
    spherical_mnist.prepare(digits, "icosphere3-equator", tmp_path / prepared_folder(run))
    open_prepared(run, tmp_path)
    for change in ({"edition": "published"}, {"seed": 7}, {"rotation_chunk": 5}, {"n_test": 19}):
        other = run_on("spherical_mnist", plain | change, "UGSCNN")
        target = tmp_path / prepared_folder(other)
        assert target != tmp_path / prepared_folder(run)
        shutil.copytree(tmp_path / prepared_folder(run), target)
        with pytest.raises(RunError, match="the card says"):
            open_prepared(other, tmp_path)


def test_every_key_of_molecules_is_compared(tmp_path):
    plain = {"source": "synthetic", "level": 1, "n_synthetic": 50}
    run = run_on("qm7", plain, "PDO-eS2CNN")
    molecules = synthetic_molecules(50)
    spherical_qm7.prepare(molecules, "icosphere1", tmp_path / prepared_folder(run))
    open_prepared(run, tmp_path)
    changes = ({"power": 2}, {"radius": "whole"}, {"self_exclusion": "nearest"}, {"seed": 3})
    for change in (*changes, {"n_synthetic": 55}):
        other = run_on("qm7", plain | change, "PDO-eS2CNN")
        shutil.copytree(tmp_path / prepared_folder(run), tmp_path / prepared_folder(other))
        with pytest.raises(RunError, match="the card says"):
            open_prepared(other, tmp_path)


def test_every_key_of_rooms_is_compared(tmp_path):
    plain = {"level": 3, "n_panoramas": 14, "height": 32}
    run = run_on("synthetic_rooms", plain, "UGSCNN")
    raw = tmp_path / "raw"
    synthetic_rooms.generate(raw, 14, 32, 0)
    room_signals.prepare(raw, "icosphere3", tmp_path / prepared_folder(run))
    folder, card = open_prepared(run, tmp_path)
    assert set(card["sha256"]) == {path.name for path in folder.iterdir()} - {"card.json"}
    for change in ({"seed": 1}, {"n_panoramas": 15}, {"height": 64}):
        other = run_on("synthetic_rooms", plain | change, "UGSCNN")
        shutil.copytree(folder, tmp_path / prepared_folder(other))
        with pytest.raises(RunError, match="the card says"):
            open_prepared(other, tmp_path)
    quirky = run_on("stanford_2d3ds", {"level": 3}, "UGSCNN")
    shutil.copytree(folder, tmp_path / prepared_folder(quirky))
    with pytest.raises(RunError, match="dataset = 'SyntheticRooms'"):
        open_prepared(quirky, tmp_path)
