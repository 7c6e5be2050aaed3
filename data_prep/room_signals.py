"""Panoramas of rooms to signals on a grid, for segmentation: red, green, blue, depth, and labels.

Prepared, in one folder for each grid:
    rgbd.npy, labels.npy                    (n, 4, points) float16 and (n, points) uint8
    rotated_rgbd.npy, rotated_labels.npy    the same panoramas, each turned by a random rotation
    panoramas.csv                           name and area of each
    card.json                               what this is; written last. images_sha256 is that of
                                            the panoramas' digests, see `_digest`, one after another
An interrupted preparation goes on with the panoramas that are not done.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.files import DataError, atomic_path, sha256_of_file, write_array, write_json
from data_prep.grids import grid_points
from data_prep.panorama_sampler import Sampler
from data_prep.stanford import (
    AREAS,
    CLUTTER,
    LABELS,
    MISSING,
    MISSING_DEPTH,
    PANORAMAS,
    UNKNOWN,
    Panorama,
    class_of_index,
    depth_signal,
    panoramas,
    read_depth,
    read_labels,
    read_rgb,
)
from data_prep.workers import processes

logger = logging.getLogger(__name__)

Sampled = tuple[list[np.ndarray], np.ndarray]
"""ARRAYS of one panorama, and the digest of its images."""

ARRAYS = ("rgbd", "labels", "rotated_rgbd", "rotated_labels")
ORIGIN = "synthetic_rooms.json"
"""What the generator of SyntheticRooms writes beside the areas: first its plan, with "complete"
false, which is true at the end (and missing in folders made before there was this key)."""


@dataclass(frozen=True)
class Quirks:
    """What published pipelines do differently from us, each in its own way.

    missing_as_clutter: pixels that show nothing count as clutter, into which their colour decodes
        where the red byte is dropped (the planar U-Net of Jiang et al. 2019).
    black_as_unknown: points where red, green or blue is 0 count as unknown (Eder et al. 2020).
    missing_depth_far: points without depth are at the largest depth (Jiang et al. 2019); else
        they are at 0.
    depth_in_metres: depth is metres, at most 4 (Eder et al. 2020); else the published signal,
        counts / 1000, at most 5, though a count is 1/512 m.
    """

    missing_as_clutter: bool = False
    black_as_unknown: bool = False
    missing_depth_far: bool = False
    depth_in_metres: bool = False


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
        DataError: panoramas or images are missing or damaged, panoramas differ in size, the disk is
            full, or a worker was killed.
        ValueError: unknown grid, negative seed, workers below 1.
    """
    if seed < 0 or workers < 1:
        raise ValueError(f"seed must be >= 0 and workers >= 1, not {seed} and {workers}")
    raw, out = Path(raw), Path(out)
    made = _generated(raw)
    found, classes, points = panoramas(raw), class_of_index(raw), grid_points(grid)
    _check_all_there(raw, found, made)
    source: dict[str, Any] = {"dataset": "Stanford 2D-3D-S"}
    if made is not None:
        # Their names are the same for all seeds: how they were made tells panoramas apart.
        source = {"dataset": "SyntheticRooms", "generated": made}
    shapes = {
        name: (len(found), 4, len(points)) if name.endswith("rgbd") else (len(found), len(points))
        for name in ARRAYS
    }
    plan = {
        **source,
        "grid": grid,
        "seed": seed,
        "quirks": asdict(quirks),
        "labels": list(LABELS),
        "panoramas": [panorama.name for panorama in found],
    }
    arrays, done = _begin(out, plan, shapes)
    todo = np.flatnonzero(~done.any(axis=1))
    logger.info("%s: %d of %d panoramas to sample", out, len(todo), len(found))
    jobs = ((int(k), found[k], classes, points, seed, quirks) for k in todo)
    for k, (signals, digest) in _in_order(jobs, workers):
        for name, signal in zip(ARRAYS, signals, strict=True):
            arrays[name][k] = signal
            arrays[name].flush()  # on disk before `done` says so
        done[k] = digest
    done.flush()
    _finish(out, plan, found, arrays, done)


def _generated(raw: Path) -> dict[str, Any] | None:
    """How the panoramas below `raw` were generated; None if they were not.

    Raises:
        DataError: the generation has not ended.
    """
    path = raw / ORIGIN
    if not path.exists():
        return None
    made = json.loads(path.read_text())
    if not made.pop("complete", True):
        raise DataError(f"the panoramas in {raw} are not all generated: run that again, it goes on")
    return made


def _check_all_there(raw: Path, found: list[Panorama], made: dict[str, Any] | None) -> None:
    """Raises DataError where panoramas are missing, or too many: folds would not be comparable."""
    if made is not None:
        if len(found) != made["panoramas"]:
            raise DataError(
                f"{raw} has {len(found)} panoramas of {made['panoramas']}: run the generation again"
            )
        return
    counts = Counter(panorama.area for panorama in found)
    for area, published in PANORAMAS.items():
        if counts[area] != published:
            raise DataError(
                f"area_{area} in {raw} has {counts[area]} panoramas, not the {published} of "
                "2D-3D-S: delete what is there of it and fetch it again"
            )


def haar_rotation(seed: int, k: int) -> np.ndarray:
    """The rotation matrix of panorama k."""
    return Rotation.random(rng=np.random.default_rng((seed, k))).as_matrix()


def _sample(
    k: int, panorama: Panorama, classes: np.ndarray, points: np.ndarray, seed: int, quirks: Quirks
) -> Sampled:
    rgb, depth = read_rgb(panorama.rgb), read_depth(panorama.depth)
    labels = read_labels(panorama.semantic, classes)
    sizes = {image.shape[:2] for image in (rgb, depth, labels)}
    if len(sizes) > 1 or rgb.shape[1] != 2 * rgb.shape[0]:
        raise DataError(
            f"the images of {panorama.name} have the sizes {sorted(sizes)}, not one of H x 2H: "
            "fetch the area again"
        )
    shown = labels != MISSING
    if quirks.missing_as_clutter:
        labels[~shown] = CLUTTER
    if quirks.black_as_unknown:
        labels[(rgb == 0).any(axis=2)] = UNKNOWN
    result: list[np.ndarray] = []
    # The turned panorama shows at x what the upright one shows at R^-1 x.
    for directions in (points, points @ haar_rotation(seed, k)):
        result.append(rgbd_signal(rgb, depth, shown, directions, quirks).astype(np.float16))
        result.append(Sampler(directions).nearest(labels))
    return result, _digest(panorama)


def _digest(panorama: Panorama) -> np.ndarray:
    """SHA-256 of the three files' hexadecimal ones, colours, depth, labels: (32,) uint8."""
    files = (panorama.rgb, panorama.depth, panorama.semantic)
    digests = "".join(sha256_of_file(path) for path in files)
    return np.frombuffer(hashlib.sha256(digests.encode()).digest(), np.uint8)


def rgbd_signal(
    rgb: np.ndarray,
    depth: np.ndarray,
    shown: np.ndarray,
    directions: np.ndarray,
    quirks: Quirks = Quirks(),
) -> np.ndarray:
    """Red, green, blue in [0, 1] and depth of a panorama at directions (P, 3): (4, P) float32.

    Args:
        rgb, depth: as `read_rgb` and `read_depth` give them.
        shown: (H, W) bool, which pixels show anything.
    """
    sampler = Sampler(directions)
    colour, _ = sampler.mean(rgb.astype(np.float32) / 255, shown)
    depths = depth_signal(depth, quirks.depth_in_metres)[..., None]
    distance, known = sampler.mean(depths, depth != MISSING_DEPTH)
    far = float(depth_signal(np.array(MISSING_DEPTH), quirks.depth_in_metres))
    distance[~known] = far if quirks.missing_depth_far else 0
    return np.column_stack([colour, distance]).T


def _begin(
    out: Path, plan: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, np.memmap], np.memmap]:
    """The arrays to fill, and the digests (n, 32) of the panoramas that are in them, 0 where one is
    not: new, or as a stopped preparation of the same plan left them."""
    (out / "card.json").unlink(missing_ok=True)
    wanted = {
        name: (shape, np.float16 if name.endswith("rgbd") else np.uint8)
        for name, shape in (shapes | {"digests": (len(plan["panoramas"]), 32)}).items()
    }
    files = {name: out / f"{name}.npy" for name in wanted}
    goes_on = (out / "plan.json").exists() and all(path.exists() for path in files.values())
    if not (goes_on and json.loads((out / "plan.json").read_text()) == plan):
        (out / "plan.json").unlink(missing_ok=True)  # a stale plan must not outlive its arrays
        for path in files.values():  # all before the first, on a disk that has no room for both
            path.unlink(missing_ok=True)
        # Zeros are written: on a full disk that is an error, whereas to fill a hole of a mapped
        # file kills the process.
        for name, (shape, kind) in wanted.items():
            write_array(files[name], shape, kind, repeat(np.zeros((1, *shape[1:]), kind), shape[0]))
        write_json(out / "plan.json", plan)
    arrays = {name: np.load(path, mmap_mode="r+") for name, path in files.items()}
    return arrays, arrays.pop("digests")


def _in_order(jobs: Iterator[tuple[Any, ...]], workers: int) -> Iterator[tuple[int, Sampled]]:
    """Number and result of each job, with `workers` processes and at most twice as many waiting."""
    if workers == 1:
        for job in jobs:
            yield job[0], _sample(*job)
        return
    with processes(workers) as pool:
        waiting: list[tuple[int, Future[Sampled]]] = []
        for job in jobs:
            waiting.append((job[0], pool.submit(_sample, *job)))
            if len(waiting) >= 2 * workers:
                k, future = waiting.pop(0)
                yield k, future.result()
        for k, future in waiting:
            yield k, future.result()


def _finish(
    out: Path,
    plan: dict[str, Any],
    found: list[Panorama],
    arrays: dict[str, np.ndarray],
    digests: np.ndarray,
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
        "images_sha256": hashlib.sha256(digests.tobytes()).hexdigest(),
        "points": arrays["labels"].shape[1],
        "class_counts": counts,
        "sha256": {
            name: sha256_of_file(out / name)
            for name in (*(f"{array}.npy" for array in ARRAYS), "panoramas.csv")
        },
    }
    write_json(out / "card.json", card)
    for name in ("plan.json", "digests.npy"):  # only now: whoever is stopped before that goes on
        (out / name).unlink()
