"""Stanford 2D-3D-S panoramas on disk (Armeni et al. 2017): layout, areas, labels, decoding.

    <root>/area_1/pano/rgb/camera_<id>_<room>_frame_equirectangular_domain_rgb.png
                      depth/..._depth.png   semantic/..._semantic.png
    <root>/assets/semantic_labels.json

SyntheticRooms are written in the same layout, so all of this serves both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.files import DataError

AREAS = ("1", "2", "3", "4", "5a", "5b", "6")
PANORAMAS = dict(zip(AREAS, (190, 299, 85, 258, 143, 230, 208), strict=True))
"""How many each area has, as published."""
FOLDS = {"fold1": ("5a", "5b"), "fold2": ("2", "4"), "fold3": ("1", "3", "6")}
"""Areas of each fold's test set; the rest is for training."""

LABELS = (
    "unknown",
    "beam",
    "board",
    "bookcase",
    "ceiling",
    "chair",
    "clutter",
    "column",
    "door",
    "floor",
    "sofa",
    "table",
    "wall",
    "window",
    "missing",
)
UNKNOWN, CLUTTER, MISSING = 0, 6, 14

RGBD_MEAN = (0.4974898, 0.47918808, 0.42809588, 1.0961773)
RGBD_STD = (0.23762763, 0.23354423, 0.23272438, 0.75536704)
"""Of all training folds, RGB in [0, 1], depth as `depth_signal` gives it (Jiang et al. 2019)."""

MISSING_COLOUR = 0x0D0D0D
"""Of pixels that show nothing, as an index: far beyond the end of the list of labels."""
MISSING_DEPTH = 65535
DEPTH_UNIT = 512
"""Of the depth images: counts a metre."""


@dataclass(frozen=True)
class Panorama:
    """The three images of one panorama."""

    name: str
    area: str
    rgb: Path
    depth: Path
    semantic: Path


def panoramas(root: str | Path) -> list[Panorama]:
    """All panoramas below `root`, by area and name.

    Raises:
        DataError: there are none, or one lacks an image.
    """
    found = []
    for area in AREAS:
        folder = Path(root) / f"area_{area}" / "pano"
        for rgb in sorted((folder / "rgb").glob("*_rgb.png")):
            stem = rgb.name.removesuffix("_rgb.png")
            depth = folder / "depth" / f"{stem}_depth.png"
            semantic = folder / "semantic" / f"{stem}_semantic.png"
            for path in (depth, semantic):
                if not path.is_file():
                    raise DataError(f"{path} is missing, though {rgb} is there: extract area again")
            name = stem.removesuffix("_frame_equirectangular_domain")
            found.append(Panorama(name, area, rgb, depth, semantic))
    if not found:
        raise DataError(
            f"no panoramas in {root}: it should hold area_1/pano/rgb/*_rgb.png and so on"
        )
    return found


def class_of_index(root: str | Path) -> np.ndarray:
    """The label (0..13, uint8) of each index of the semantic images: entry k of
    assets/semantic_labels.json is `<class>_<instance>_<room type>_<room>_<area>`.

    Raises:
        DataError: the file is missing or names a class that is none of LABELS.
    """
    path = Path(root) / "assets" / "semantic_labels.json"
    try:
        names = [entry.split("_")[0] for entry in json.loads(path.read_text())]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: fetch the data again") from error
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a list of labels ({error}): fetch it again") from error
    number = {name: k for k, name in enumerate(LABELS)} | {"<UNK>": UNKNOWN}
    strange = sorted(set(names) - set(number))
    if strange:
        raise DataError(f"{path} has classes that 2D-3D-S does not have: {', '.join(strange)}")
    return np.array([number[name] for name in names], np.uint8)


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(_open(path).convert("RGB"))


def read_depth(path: Path) -> np.ndarray:
    """(H, W) uint16, in 1/512 m along the ray; 65535 where there is none."""
    return np.asarray(_open(path)).astype(np.uint16)


def read_labels(path: Path, classes: np.ndarray) -> np.ndarray:
    """Labels of a semantic image, (H, W) uint8; `classes` is what `class_of_index` gives.

    Raises:
        DataError: an index is beyond the list, and not the colour of missing pixels.
    """
    colour = np.asarray(_open(path).convert("RGB")).astype(np.int64)
    index = colour[..., 0] * 65536 + colour[..., 1] * 256 + colour[..., 2]
    missing = index == MISSING_COLOUR
    if (index[~missing] >= len(classes)).any():
        raise DataError(f"{path} has an index beyond the {len(classes)} labels: fetch it again")
    labels = np.full(index.shape, MISSING, np.uint8)
    labels[~missing] = classes[index[~missing]]
    return labels


def depth_signal(depth: np.ndarray, metres: bool = False) -> np.ndarray:
    """The published depth signal, float32: counts / 1000, at most 5, which is 9.8 m (Jiang et al.
    2019); or metres, at most 4 (Eder et al. 2020)."""
    if metres:
        return np.minimum(depth.astype(np.float32) / DEPTH_UNIT, 4)
    return np.minimum(depth.astype(np.float32) / 1000, 5)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return image
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG chunk
        raise DataError(f"{path} cannot be read ({error}): delete it and fetch it again") from error
