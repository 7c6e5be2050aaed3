"""The page on the finding quotes what is recorded, and its scripts run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from data_prep.spherical_mnist import EDITIONS
from data_prep.synthetic_digits import synthetic_digits

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/findings"
PAGE = (FOLDER / "sampling-leak.md").read_text()
PROTOCOLS = {"published": "paper", "corrected": "corrected"}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("edition", EDITIONS)
def test_confusions_are_those_of_the_recorded_predictions(edition):
    errors, sixes_and_nines = [], []
    for setting, column in (("N", "N_N"), ("N", "N_R"), ("R", "R_R")):
        run = f"{PROTOCOLS[edition]}/runs/spherical_mnist/PDO-eS2CNN-small/{setting}/seed0"
        arrays = np.load(ROOT / "results/recorded" / run / "predictions.npz")
        pairs = zip(arrays[f"{column}_targets"], arrays[f"{column}_predictions"], strict=True)
        wrong = [{int(a), int(b)} for a, b in pairs if a != b]
        errors.append(len(wrong))
        sixes_and_nines.append(wrong.count({6, 9}))
    rows = re.findall(rf"^\| {edition} \| [^|]+ \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert [list(map(int, row)) for row in rows] == [errors, sixes_and_nines]


def test_picture_is_redrawn(tmp_path):
    drawing = script("draw_sampling_leak")
    drawing.draw(tmp_path / "again.png")
    sizes = [Image.open(path).size for path in (tmp_path / "again.png", *FOLDER.glob("*.png"))]
    assert len(sizes) == 2 and sizes[0] == sizes[1]
    assert (FOLDER / "sampling-leak.png").stat().st_size < 300_000


def test_half_turn_shows_in_the_published_edition_alone():
    drawing = script("draw_sampling_leak")
    image = synthetic_digits(1, 10).test_images[0]
    signal, turned_back = drawing.half_turn_pair(image, "corrected")
    assert np.nanmax(signal) > 200 and np.nanmax(np.abs(signal - turned_back)) <= 1
    signal, turned_back = drawing.half_turn_pair(image, "published")
    assert np.nanmax(np.abs(signal - turned_back)) > 100


def test_votes_are_counted():
    counting = script("count_votes")
    images = synthetic_digits(1, 30).test_images
    for edition in EDITIONS:
        assert counting.votes(images, "icosphere4", edition, rotated=False) == "100.0 / 0.0"
    right, wrong = map(float, counting.votes(images, "icosphere3", "published", True).split(" / "))
    assert right >= 90 and right + wrong <= 100
