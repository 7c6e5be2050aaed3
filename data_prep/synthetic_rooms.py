"""SyntheticRooms: panoramas of furnished rooms, drawn from a seed, in the layout of 2D-3D-S.

They exercise the same loader, folds and metric with no download. Results on them are named
SyntheticRooms and never stand for 2D-3D-S.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.files import DataError, atomic_path, write_json
from data_prep.ray_caster import View, cast
from data_prep.room_scenes import Room, camera_positions, draw_room
from data_prep.room_signals import ORIGIN
from data_prep.stanford import (
    AREAS,
    CLUTTER,
    DEPTH_UNIT,
    LABELS,
    MISSING_COLOUR,
    MISSING_DEPTH,
    PANORAMAS,
)
from data_prep.workers import processes

logger = logging.getLogger(__name__)

VIEWS = 2
"""Panoramas of one room."""
KINDS = ("rgb", "depth", "semantic")
"""Images of a panorama."""
ENTRIES = 9816
"""Of semantic_labels.json, as in the real one: an index needs more than one byte."""


def generate(
    out: str | Path, n: int = 600, height: int = 256, seed: int = 0, workers: int = 1
) -> None:
    """Write `n` panoramas of `height` x 2 `height` pixels below `out`, in seven areas.

    What the real data lack is missing here too: the cap below the camera in every second panorama,
    and depths of window panes. An interrupted generation goes on with the rooms that are not done.

    Raises:
        ValueError: fewer than two panoramas an area, too few rows, negative seed, workers below 1.
        DataError: `out` holds other panoramas, the disk is full, or a worker was killed.
    """
    if n < 2 * len(AREAS) or height < 32:
        raise ValueError(f"at least {2 * len(AREAS)} panoramas of 32 rows, not {n} of {height}")
    if seed < 0 or workers < 1:
        raise ValueError(f"seed must be >= 0 and workers >= 1, not {seed} and {workers}")
    out = Path(out)
    plan = {"panoramas": n, "height": height, "seed": seed}
    _begin(out, plan)
    write_json(out / "assets" / "semantic_labels.json", semantic_labels())
    jobs = []
    for area, count in zip(AREAS, panoramas_by_area(n), strict=True):
        rooms = [(area, room, min(VIEWS, count - room)) for room in range(0, count, VIEWS)]
        jobs += [job for job in rooms if not _is_done(out, *job)]
    work = partial(_write_room, out, height, seed)
    if workers == 1:
        for job in jobs:
            work(job)
    else:
        with processes(workers) as pool:
            list(pool.map(work, jobs, chunksize=4))
    write_json(out / ORIGIN, plan | {"complete": True})
    logger.info("SyntheticRooms: %d panoramas in %s", n, out)


def panoramas_by_area(n: int) -> list[int]:
    """How many of `n` panoramas each area has: two at least, else as the real ones share them."""
    shares = list(PANORAMAS.values())
    counts = [max(2, n * share // sum(shares)) for share in shares]
    counts[int(np.argmax(shares))] += n - sum(counts)
    return counts


def semantic_labels() -> list[str]:
    """Names of the instances, `<class>_<instance>_<room type>_<room>_<area>`; the 13 classes take
    turns, and entry 3341 is clutter as in the real list, see `stanford.CLUTTER`."""
    return ["<UNK>_0_<UNK>_0_0"] + [
        f"{LABELS[label_of(k)]}_{k // 13}_room_{k // 500}_1" for k in range(1, ENTRIES)
    ]


def label_of(index: int) -> int:
    """The class of an entry of `semantic_labels`."""
    return 1 + (index + CLUTTER - 1) % 13


def index_of(label: int, instance: int) -> int:
    """An entry of `semantic_labels` of that class; another one for each of some 700 instances."""
    first = (label - CLUTTER) % 13 or 13
    return first + 13 * (instance % ((ENTRIES - 14) // 13))


def _begin(out: Path, plan: dict[str, int]) -> None:
    """Say that `out` is to hold the panoramas of `plan`, before the first of them is there."""
    origin = out / ORIGIN
    before = json.loads(origin.read_text()) if origin.exists() else {}
    before.pop("complete", None)
    # Names of panoramas are the same for all plans: those of two would mix.
    if before != plan and any(out.glob("area_*/pano/*/*.png")):
        raise DataError(
            f"{out} holds other panoramas ({before or f'no {ORIGIN} says which'}): give another "
            "folder, or delete its area_1 to area_6"
        )
    write_json(origin, plan | {"complete": False})


def _is_done(out: Path, area: str, first: int, views: int) -> bool:
    """Whether all images of a room are there."""
    own = range(first, first + views)
    return all(_image_path(out, area, k, kind).exists() for k in own for kind in KINDS)


def _write_room(out: Path, height: int, seed: int, job: tuple[str, int, int]) -> None:
    area, first, views = job
    rng = np.random.default_rng((seed, AREAS.index(area), first))
    room = draw_room(rng, style=np.random.default_rng((seed, AREAS.index(area))))
    for view, camera in enumerate(camera_positions(room, views, rng)):
        seen = cast(room.shell, room.boxes, room.lights, camera, rng.uniform(0, 2 * np.pi), height)
        _write_view(out, area, first + view, room, seen, rng)


def _write_view(
    out: Path, area: str, k: int, room: Room, seen: View, rng: np.random.Generator
) -> None:
    boxes = [*room.shell, *room.boxes]
    index = np.array([index_of(box.label, box.instance) for box in boxes])[seen.box]
    colour = np.round(255 * seen.colour + rng.normal(0, 2, seen.colour.shape))
    colour = np.clip(colour, 1, 255).astype(np.uint8)
    depth = np.minimum(np.round(seen.distance * DEPTH_UNIT), MISSING_DEPTH - 1).astype(np.uint16)
    panes = np.array([LABELS[box.label] == "window" for box in boxes])[seen.box]
    depth[panes & (rng.uniform() < 0.5)] = MISSING_DEPTH
    if k % 2:
        rows = len(depth)
        cap = slice(rows - rows // 16, rows)
        colour[cap], index[cap], depth[cap] = 0, MISSING_COLOUR, MISSING_DEPTH
    semantic = np.stack([index >> 16, index >> 8 & 255, index & 255], axis=2).astype(np.uint8)
    for kind, image in zip(KINDS, [colour, depth, semantic], strict=True):
        with atomic_path(_image_path(out, area, k, kind)) as temporary:
            Image.fromarray(image).save(temporary, format="PNG", compress_level=1)


def _image_path(out: Path, area: str, k: int, kind: str) -> Path:
    name = hashlib.sha256(f"{area} {k}".encode()).hexdigest()[:32]
    stem = f"camera_{name}_room_{k // VIEWS + 1}_frame_equirectangular_domain"
    return out / f"area_{area}" / "pano" / kind / f"{stem}_{kind}.png"
