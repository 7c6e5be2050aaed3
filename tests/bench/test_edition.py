from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.edition import as_text, edition_of
from bench.errors import RunError
from data_prep import published_edition
from data_prep.files import write_json
from data_prep.grids import grid_points
from data_prep.spherical_mnist import (
    EDITIONS,
    haar_rotations,
    prepare,
    sample_rotated,
    to_bytes,
)
from data_prep.synthetic_digits import synthetic_digits

IMAGES = synthetic_digits(40, 1, seed=5).train_images
LABELS = np.arange(40) % 10


def signals(grid: str, edition: str, variant: str) -> np.ndarray:
    """(40, points) uint8 of an edition, upright (N) or each under its own rotation (R)."""
    rotations = haar_rotations(len(IMAGES), np.random.default_rng(8))
    if variant == "N":
        rotations = np.broadcast_to(np.eye(3), rotations.shape)
    samples = sample_rotated(IMAGES, rotations, grid_points(grid), edition.split()[0])
    if edition == "corrected stretched":  # as the generator has written since November 2024
        return published_edition.stretch(samples)
    return to_bytes(samples, edition)


def saved(folder: Path, array: np.ndarray, name: str = "signals.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


def pickled(path: Path, content: object, protocol: int = 4) -> Path:
    with gzip.open(path, "wb") as stream:
        pickle.dump(content, stream, protocol)
    return path


@pytest.mark.parametrize("variant", ["N", "R"])
@pytest.mark.parametrize("edition", ["published", "corrected", "corrected stretched"])
@pytest.mark.parametrize(
    "grid",
    [
        "latlon30",
        "latlon30-dh",
        "latlon60-dh",
        "icosphere3",
        "icosphere3-equator",
        "icosphere4",
        "icosphere4-equator",
        "icosphere5",
    ],
)
def test_both_editions_on_all_grids(tmp_path, grid, edition, variant):
    found = edition_of(saved(tmp_path, signals(grid, edition, variant)))
    (array,) = found["arrays"]
    assert found["verdict"] == array["verdict"] == edition.split()[0] and found["reason"] is None
    assert found["confidence"] == array[found["verdict"]] / 40 >= 0.9
    assert (array["signals"], array["digits"]) == (40, 40)
    assert grid in array["grids"]
    if variant == "N" and not grid.startswith("icosphere3"):  # which has too few points
        assert array["test"] == "half-turn" and array["grids"] == (grid,)
        assert found["confidence"] == 1
    else:
        assert array["test"] == "spread"


@pytest.mark.parametrize("protocol", range(5 + 1))
def test_pickle_of_the_reference_generator(tmp_path, protocol):
    """Nested dictionaries of arrays, gzipped: upright digits to train on, rotated ones to test."""
    content = {
        part: {
            "images": signals("latlon30-dh", "published", variant).reshape(-1, 60, 60),
            "labels": LABELS,
            "rotations": np.zeros((40, 3, 3)),
        }
        for part, variant in (("train", "N"), ("test", "R"))
    }
    found = edition_of(pickled(tmp_path / "s2_mnist.gz", content, protocol))
    assert found["verdict"] == "published" and found["card_edition"] is None
    assert [(a["name"], a["test"]) for a in found["arrays"]] == [
        ("train.images", "half-turn"),
        ("test.images", "spread"),
    ]


def test_other_containers_and_scales(tmp_path):
    grey = signals("icosphere4", "corrected", "N")
    normalised = ((grey / 255 - 0.1307) / 0.3081).astype(np.float32)[:, None]
    np.savez(tmp_path / "a.npz", x=normalised, y=LABELS)
    plain = tmp_path / "a.pkl"
    plain.write_bytes(pickle.dumps([normalised, LABELS]))
    for file, name in ((tmp_path / "a.npz", "x"), (plain, "0")):
        found = edition_of(file)
        assert (found["verdict"], found["confidence"]) == ("corrected", 1)
        assert [array["name"] for array in found["arrays"]] == [name]


def test_prepared_folder_whose_card_is_wrong(tmp_path):
    digits = synthetic_digits(60, 40, seed=5)
    card = prepare(digits, "icosphere4", tmp_path, edition="published")
    found = edition_of(tmp_path)
    assert [a["name"] for a in found["arrays"]] == ["train_N", "train_R", "test_N", "test_R"]
    assert found["verdict"] == found["card_edition"] == "published"
    assert "card" not in as_text(found)
    write_json(tmp_path / "card.json", card | {"edition": "corrected"})
    again = edition_of(tmp_path)
    assert again == found | {"card_edition": "corrected"}
    assert "THE CARD DISAGREES: it says corrected" in as_text(again)
    (tmp_path / "card.json").write_text("{")
    assert edition_of(tmp_path) == found | {"card_edition": None}


def cannot_tell(file: Path, reason: str) -> None:
    found = edition_of(file)
    assert (found["verdict"], found["confidence"]) == ("cannot tell", None)
    assert reason in found["reason"]
    assert as_text(found).startswith(f"{file}: cannot tell the edition: ")


def test_noise_and_mixtures_are_not_told(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (50, 60, 60), dtype=np.uint8)
    cannot_tell(saved(tmp_path, noise), "signals holds no digits on an empty background")
    cannot_tell(saved(tmp_path, 0 * noise), "no digits")
    sparse = noise * (rng.random(noise.shape) < 0.2)
    cannot_tell(saved(tmp_path, sparse), "at most 0 of 50 digits")
    both = [signals("icosphere4", edition, "N") for edition in EDITIONS]
    cannot_tell(saved(tmp_path, np.concatenate(both)), "at most 40 of 80 digits")
    cannot_tell(saved(tmp_path, both[0][:9]), "too few digits (9)")
    cannot_tell(saved(tmp_path, np.r_[both[0], 0 * both[0], 0 * both[0]]), "few digits on an empty")
    np.savez(tmp_path / "two.npz", a=both[0], b=both[1])
    cannot_tell(tmp_path / "two.npz", "its arrays are of different editions")


def test_few_digits_are_enough(tmp_path):
    found = edition_of(saved(tmp_path, signals("icosphere4", "published", "N")[:10]))
    assert (found["verdict"], found["confidence"]) == ("published", 1)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickle_that_calls_functions_is_refused(tmp_path):
    victim = tmp_path / "victim"
    content = {"train": {"images": signals("latlon30", "published", "N"), "x": Evil(victim)}}
    with pytest.raises(RunError, match=r"not a pickle of plain arrays \(refused: "):
        edition_of(pickled(tmp_path / "evil.gz", content))
    assert not victim.exists()


def test_files_that_are_no_signals_are_one_line(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    objects = np.array([{}, None], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", a=objects)
    whole = pickled(tmp_path / "whole.gz", {"images": np.zeros((20, 60, 60))})
    (tmp_path / "cut.gz").write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "nothing.npy").write_bytes(b"")
    for name, message in {
        "missing.npy": "missing.npy does not exist",
        "a.txt": "a.txt is no .npy, .npz, pickle or gzipped pickle",
        "nothing.npy": "is no .npy",
        "empty": "holds no signals on a known grid: it holds no arrays",
        "objects.npy": "cannot be read",
        "objects.npz": "cannot be read",
        "cut.gz": "cannot be read: not a pickle of plain arrays",
        "cut.npz": "cannot be read",
    }.items():
        assert main(["edition", str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ") and message in line and captured.out == ""
    images = saved(tmp_path, np.zeros((5, 28, 28)), "images.npy")
    assert main(["edition", str(images)]) == 1
    line = capsys.readouterr().err
    assert "its arrays are images (5, 28, 28); known are lat-lon 30 x 30" in line


def test_command_line(tmp_path, capsys):
    file = saved(tmp_path, signals("icosphere4", "corrected", "N"))
    assert main(["edition", str(file)]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"{file}: corrected edition, confidence 100.0 % (40 of 40 examined digits)"
    assert "40 digits on icosphere4, half-turn test: 0 published, 40 corrected" in second
    assert third.startswith("    left unexplained (median): published ")
    assert main(["edition", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(edition_of(file)))
