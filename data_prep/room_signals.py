"""Panoramas of rooms to signals on a grid, for segmentation: red, green, blue, depth, and labels.

Prepared, in one folder for each grid:
    rgbd.npy, labels.npy                    (n, 4, points) float16 and (n, points) uint8
    rotated_rgbd.npy, rotated_labels.npy    the same panoramas, each turned by a random rotation
    panoramas.csv                           name and area of each
    card.json                               what this is; written last
An interrupted preparation goes on with the panoramas that are not done.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from scipy.spatial.transform import Rotation

from data_prep.files import DataError, atomic_path, sha256_of_file, write_json
from data_prep.grids import grid_points
from data_prep.stanford import (
    AREAS,
    CLUTTER,
    LABELS,
    MISSING,
    MISSING_DEPTH,
    UNKNOWN,
    Panorama,
    class_of_index,
    depth_signal,
    panoramas,
    read_depth,
    read_labels,
    read_rgb,
)

logger = logging.getLogger(__name__)

ARRAYS = ("rgbd", "labels", "rotated_rgbd", "rotated_labels")
ORIGIN = "synthetic_rooms.json"
"""A file that the generator of SyntheticRooms leaves beside the areas."""


@dataclass(frozen=True)
class Quirks:
    """What published pipelines do differently from us, each in its own way.

    missing_as_clutter: pixels that show nothing count as clutter, into which their colour decodes
        where the red byte is dropped (the planar U-Net of Jiang et al. 2019).
    black_as_unknown: points where red, green or blue is 0 count as unknown (Eder et al. 2020).
    missing_depth_far: points without depth are at the largest depth, 5 (Jiang et al. 2019); else
        they are at 0.
    """

    missing_as_clutter: bool = False
    black_as_unknown: bool = False
    missing_depth_far: bool = False


def prepare(
    raw: str | Path,
    grid: str,
    out: str | Path,
    seed: int = 0,
    quirks: Quirks = Quirks(),
    workers: int = 1,
) -> None:
    """Sample every panorama below `raw` at the points of `grid`, upright and turned.

    Colours and depth are means over the cell round a point (see `Sampler`), of the pixels that
    have them: missing pixels and depths are never averaged into valid ones. Labels are those of the
    nearest pixel. The rotation of panorama k is drawn (Haar) from `seed` and k, and the same on
    all grids. At most 2 `workers` + 1 panoramas are in memory.

    Raises:
        DataError: an image is missing or damaged, or panoramas differ in size.
    """
    out = Path(out)
    found, classes, points = panoramas(raw), class_of_index(raw), grid_points(grid)
    shapes = {
        name: (len(found), 4, len(points)) if name.endswith("rgbd") else (len(found), len(points))
        for name in ARRAYS
    }
    plan = {
        "dataset": "SyntheticRooms" if (Path(raw) / ORIGIN).exists() else "Stanford 2D-3D-S",
        "grid": grid,
        "seed": seed,
        "quirks": asdict(quirks),
        "labels": list(LABELS),
        "panoramas": [panorama.name for panorama in found],
    }
    arrays, done = _begin(out, plan, shapes)
    todo = np.flatnonzero(done == 0)
    logger.info("%s: %d of %d panoramas to sample", out, len(todo), len(found))
    jobs = ((int(k), found[k], classes, points, seed, quirks) for k in todo)
    for k, signals in _in_order(jobs, workers):
        for name, signal in zip(ARRAYS, signals, strict=True):
            arrays[name][k] = signal
        done[k] = 1
    for array in (*arrays.values(), done):
        array.flush()
    _finish(out, plan, found, arrays)


@dataclass(frozen=True)
class Sampler:
    """Values of an image of H x 2H pixels at P directions.

    The image is first reduced to blocks no wider than a third of the spacing of the points; then 7
    directions, a point and six round it at 0.35 spacings, are interpolated bilinearly and
    averaged. Linear functions of the direction are kept up to O(spacing^2).
    """

    points: np.ndarray

    def mean(self, image: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, C) and (H, W) bool to the mean of the valid pixels, (P, C) float32, and whether
        there are any, (P,) bool."""
        spacing = np.sqrt(4 * np.pi / len(self.points))
        factor = max(1, int(spacing / 3 * len(image) / np.pi))
        while len(image) % factor:
            factor -= 1
        weight = valid.astype(np.float32)
        values = _blocks(image * weight[..., None], factor)
        weight = _blocks(weight[..., None], factor)
        total, weights = np.float32(0), np.float32(0)
        for directions in self._disc(0.35 * spacing):
            pixels, shares = bilinear(directions, len(values))
            for pixel, share in zip(pixels, shares, strict=True):
                total = total + share[:, None] * values.reshape(-1, image.shape[2])[pixel]
                weights = weights + share * weight.ravel()[pixel]
        some = weights > 1e-3
        return total / np.where(some, weights, 1)[:, None], some

    def nearest(self, image: np.ndarray) -> np.ndarray:
        """(H, W) to the pixel that holds each point, (P,)."""
        row, column = _position(self.points, len(image))
        rows, columns = image.shape
        i = np.clip(np.round(row), 0, rows - 1).astype(np.int64)
        return image[i, np.round(column).astype(np.int64) % columns]

    def _disc(self, radius: float) -> Iterator[np.ndarray]:
        """The points, and those at an angle of `radius` from them in six directions."""
        yield self.points
        pole = np.where(np.abs(self.points[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
        east = np.cross(pole, self.points)
        east /= np.linalg.norm(east, axis=1, keepdims=True)
        north = np.cross(self.points, east)
        for angle in np.arange(6) * np.pi / 3:
            sideways = np.cos(angle) * east + np.sin(angle) * north
            yield np.cos(radius) * self.points + np.sin(radius) * sideways


def bilinear(directions: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The four pixels round each direction in a panorama of `rows` x 2 `rows` pixels and their
    shares, (4, P) each. Columns wrap round; beyond a pole lies the other side."""
    row, column = _position(directions, rows)
    i, j = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    u, v = (row - i).astype(np.float32), (column - j).astype(np.float32)
    pixels, shares = [], []
    for down, right in itertools.product((0, 1), repeat=2):
        r, c = i + down, j + right
        over = (r < 0) | (r >= rows)
        r = np.where(r < 0, -1 - r, np.where(r >= rows, 2 * rows - 1 - r, r))
        c = (c + over * rows) % (2 * rows)
        pixels.append(r * 2 * rows + c)
        shares.append((u if down else 1 - u) * (v if right else 1 - v))
    return np.stack(pixels), np.stack(shares)


def haar_rotation(seed: int, k: int) -> np.ndarray:
    """The rotation matrix of panorama k."""
    return Rotation.random(rng=np.random.default_rng((seed, k))).as_matrix()


def _position(directions: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, fractional, the inverse of `grids.pixel_directions`."""
    x, y, z = directions.T
    row = np.arctan2(np.hypot(x, y), z) * rows / np.pi - 0.5
    column = (np.pi - np.arctan2(y, x)) * rows / np.pi - 0.5
    return row, column


def _blocks(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels."""
    if factor == 1:
        return image
    h, w, c = image.shape
    return image.reshape(h // factor, factor, w // factor, factor, c).mean(axis=(1, 3))


def _sample(
    k: int, panorama: Panorama, classes: np.ndarray, points: np.ndarray, seed: int, quirks: Quirks
) -> tuple[np.ndarray, ...]:
    """ARRAYS of one panorama."""
    rgb, depth = read_rgb(panorama.rgb), read_depth(panorama.depth)
    labels = read_labels(panorama.semantic, classes)
    sizes = {image.shape[:2] for image in (rgb, depth, labels)}
    if len(sizes) > 1 or rgb.shape[1] != 2 * rgb.shape[0]:
        raise DataError(
            f"the images of {panorama.name} have the sizes {sorted(sizes)}, not one of H x 2H: "
            "fetch the area again"
        )
    shown = labels != MISSING
    measured = depth != MISSING_DEPTH
    far = float(depth_signal(np.array(MISSING_DEPTH)))
    if quirks.missing_as_clutter:
        labels[~shown] = CLUTTER
    if quirks.black_as_unknown:
        labels[(rgb == 0).any(axis=2)] = UNKNOWN
    colours = rgb.astype(np.float32) / 255
    depths = depth_signal(depth)[..., None]
    result: list[np.ndarray] = []
    # The turned panorama shows at x what the upright one shows at R^-1 x.
    for directions in (points, points @ haar_rotation(seed, k)):
        sampler = Sampler(directions)
        colour, _ = sampler.mean(colours, shown)
        distance, known = sampler.mean(depths, measured)
        distance[~known] = far if quirks.missing_depth_far else 0
        result.append(np.column_stack([colour, distance]).T.astype(np.float16))
        result.append(sampler.nearest(labels))
    return tuple(result)


def _begin(
    out: Path, plan: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays to fill and the flags of those that are, new or as a stopped preparation of the
    same plan left them."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "card.json").unlink(missing_ok=True)
    goes_on = False
    if (out / "plan.json").exists():
        goes_on = json.loads((out / "plan.json").read_text()) == plan
    mode = "r+" if goes_on else "w+"
    arrays = {}
    for name, shape in shapes.items():
        kind = np.float16 if name.endswith("rgbd") else np.uint8
        arrays[name] = open_memmap(out / f"{name}.npy", mode, kind, shape)
    done = open_memmap(out / "done.npy", mode, np.uint8, (len(plan["panoramas"]),))
    write_json(out / "plan.json", plan)
    return arrays, done


def _in_order(
    jobs: Iterator[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Number and result of each job, with `workers` processes and at most twice as many waiting."""
    if workers == 1:
        for job in jobs:
            yield job[0], _sample(*job)
        return
    with ProcessPoolExecutor(workers) as pool:
        waiting: list[tuple[int, Future[tuple[np.ndarray, ...]]]] = []
        for job in jobs:
            waiting.append((job[0], pool.submit(_sample, *job)))
            if len(waiting) >= 2 * workers:
                k, future = waiting.pop(0)
                yield k, future.result()
        for k, future in waiting:
            yield k, future.result()


def _finish(
    out: Path, plan: dict[str, Any], found: list[Panorama], arrays: dict[str, np.ndarray]
) -> None:
    """panoramas.csv, and card.json with what the arrays hold."""
    with atomic_path(out / "panoramas.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "area"])
        writer.writerows([panorama.name, panorama.area] for panorama in found)
    counts: dict[str, list[int]] = {}
    for area in AREAS:
        mine = [k for k, panorama in enumerate(found) if panorama.area == area]
        total = sum(np.bincount(arrays["labels"][k], minlength=len(LABELS)) for k in mine)
        if mine:
            counts[area] = total.tolist()
    names = "\n".join(plan.pop("panoramas"))
    card = plan | {
        "panoramas": len(found),
        "panoramas_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "points": arrays["labels"].shape[1],
        "class_counts": counts,
        "sha256": {name: sha256_of_file(out / f"{name}.npy") for name in ARRAYS},
    }
    for name in ("done.npy", "plan.json"):
        (out / name).unlink()
    write_json(out / "card.json", card)
