"""Spherical MNIST: digits projected onto the sphere, upright (N) and rotated (R), and on lat-lon
grids as SphereNet has them (Omni, see `omni_mnist`).

The projection is that of Cohen et al., Spherical CNNs (2018): the digit lies round the south pole.
A rotated signal is computed from the image itself, at the points of the rotated sphere,
f_R(x) = image(project(R x)): nothing is ever interpolated on the sphere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from data_prep.files import atomic_path, sha256_of_file, write_array, write_json
from data_prep.grids import grid_points
from data_prep.mnist import SIZE, Digits, load_mnist
from data_prep.omni_mnist import FIELD_OF_VIEW, gnomonic, tangent_frames

HALF_WIDTH = 1.5
"""The image covers [-1.5, 1.5]^2 of the plane that touches the unit sphere at the south pole."""
EPSILON = 1e-3
"""The centre of projection lies this far above the north pole."""

OMNI_CARD = {
    "kind": "gnomonic, digit on a tangent plane",
    "field_of_view_degrees": FIELD_OF_VIEW,
    "tangent_point": "latitude uniform in -90..90 degrees, longitude that of a column of the grid",
    "mirrored": "with probability 1/2",
    "images_per_frame": 1,
}

BLOCK_VALUES = 1 << 16  # samples computed at a time: small enough for the cache, bounds memory


def project(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, both_sides: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (row, column) of directions on the unit sphere, any shape.

    With the sphere standing on the plane z' = 0 (z' = z + 1), the ray from (0, 0, 2 + EPSILON)
    through a point hits the plane at q = (x, y) (2 + EPSILON) / (1 + EPSILON - z), and
    (row, column) = 28 (q + 1.5) / 3, no half-pixel shift. The south pole is at (14, 14), the edge
    of the image 73.75 degrees from it.

    That centre is off the sphere, so the cap z > 1 / (1 + EPSILON) faces it and is hit a second
    time: the north pole projects to the middle of the digit. Those points are sent outside the
    image, unless `both_sides`, which keeps them as the published data have them.
    """
    scale = SIZE / (2 * HALF_WIDTH) * (2 + EPSILON) / (1 + EPSILON - z)
    row, column = SIZE / 2 + scale * x, SIZE / 2 + scale * y
    if not both_sides:
        row = np.where(z > 1 / (1 + EPSILON), -SIZE, row)
    return row, column


def sampling_matrix(points: np.ndarray, legacy: bool = False) -> sparse.csr_array:
    """Matrix (P, 784) that takes a flat image to its bilinear samples at `points` (P, 3), with
    zeros outside the image.

    With i = floor(r) and f = r - i the weights along an axis are 1 - f on pixel i and f on i + 1.
    `legacy`: as in the data published before November 2024, 1 - f on i - 1 and 1 + f on i + 1.
    """
    rows, columns, entries, weights = [], [], [], []
    coordinates = project(*points.T, both_sides=legacy)
    taps = [_taps(r, legacy) for r in coordinates]
    for row, row_weight in taps[0]:
        for column, column_weight in taps[1]:
            inside = (row >= 0) & (row < SIZE) & (column >= 0) & (column < SIZE)
            entries.append(np.flatnonzero(inside))
            rows.append(row[inside])
            columns.append(column[inside])
            weights.append((row_weight * column_weight)[inside])
    pixels = np.concatenate(rows) * SIZE + np.concatenate(columns)
    where = (np.concatenate(entries), pixels)
    return sparse.csr_array((np.concatenate(weights), where), shape=(len(points), SIZE * SIZE))


def sample_rotated(
    images: np.ndarray, rotations: np.ndarray, points: np.ndarray, legacy: bool = False
) -> np.ndarray:
    """Samples f_R(x) = image(project(R x)) of images (n, 28, 28) under rotations (n, 3, 3) at the
    points (P, 3): (n, P), in the precision of `points`; bilinear as in `sampling_matrix`."""
    row, column = project(*_turned(rotations, points), both_sides=legacy)
    return _bilinear(images, row, column, legacy)


def sample_omni(images: np.ndarray, frames: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Samples f_F(x) = image(gnomonic(F x)) on tangent planes with the frames (n, 3, 3): shapes and
    precision as in `sample_rotated`."""
    return _bilinear(images, *gnomonic(*_turned(frames, points)))


def to_bytes(samples: np.ndarray, legacy: bool = False) -> np.ndarray:
    """Samples (n, P) as uint8: rounded, so a value is a grey level of the image. `legacy`: each
    signal stretched to 0..255 and truncated, as published (this hides the wrong scale)."""
    if not legacy:
        return np.rint(samples).astype(np.uint8)
    low = samples.min(axis=1, keepdims=True)
    span = samples.max(axis=1, keepdims=True) - low
    return (255 * ((samples - low) / np.where(span > 0, span, 1))).astype(np.uint8)


def haar_rotations(n: int, rng: np.random.Generator, chunk: int = 1) -> np.ndarray:
    """Haar-uniform rotations (n, 3, 3): normalised Gaussian quaternions. The same one serves
    `chunk` consecutive images (1: each its own; 500: the published scheme)."""
    quaternions = rng.standard_normal((-(-n // chunk), 4))
    return np.repeat(Rotation.from_quat(quaternions).as_matrix(), chunk, axis=0)[:n]


def split_indices(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sorted indices `train` and `validation` (a tenth, at least one) of a random permutation."""
    held_out = max(1, n // 10)
    order = rng.permutation(n)
    return {"train": np.sort(order[held_out:]), "validation": np.sort(order[:held_out])}


def stratified_subset(labels: np.ndarray, indices: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw `n` of the `indices`, each class of `labels[indices]` in proportion: sorted indices.

    Class counts are n times the share of the class, rounded by largest remainder to sum to n.

    Raises:
        ValueError: n is not in 1..len(indices).
    """
    if not 1 <= n <= len(indices):
        raise ValueError(f"cannot draw {n} of {len(indices)} samples")
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels[indices], return_counts=True)
    counts, remainders = np.divmod(n * sizes, len(indices))
    counts[np.argsort(-remainders, kind="stable")[: n - counts.sum()]] += 1
    drawn = [
        rng.choice(indices[labels[indices] == c], size=count, replace=False)
        for c, count in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def prepare(
    raw: str | Path | Digits,
    grid: str,
    out_dir: str | Path,
    seed: int = 0,
    rotation_chunk: int = 1,
    legacy_bilinear: bool = False,
) -> dict[str, Any]:
    """Write spherical MNIST on a grid of P points into `out_dir`; return its card.

    Files: `{train,test}_{N,R}.npy` uint8 (n, P), in the order of the raw images; on a grid
    `latlon<b>` also `{train,test}_Omni.npy`; `{train,test}_labels.npy` uint8 (n,); `split.npz` with
    the indices `train` and `validation` of the training images; and, last of all, `card.json`:
    where card.json is, the data are complete. Rotations, frames (but for rounding to the grid's
    columns) and split depend on `seed` alone, not on the grid.

    Args:
        raw: folder of the raw MNIST files, or the arrays themselves.
        rotation_chunk: consecutive images that share a rotation (N and R; in Omni none do).
        legacy_bilinear: reproduce the faulty sampling of the published N and R data.

    Raises:
        DataError: raw files missing or damaged, disk full.
        ValueError: unknown grid, negative seed, rotation_chunk below 1, fewer than 2 images.
    """
    if seed < 0 or rotation_chunk < 1:
        raise ValueError(
            f"seed must be >= 0 and rotation_chunk >= 1, not {seed} and {rotation_chunk}"
        )
    points = grid_points(grid)
    digits = raw if isinstance(raw, Digits) else load_mnist(raw)
    n_train, n_test = len(digits.train_labels), len(digits.test_labels)
    if min(n_train, n_test) < 2:
        raise ValueError(f"at least 2 training and 2 test images, not {n_train} and {n_test}")
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    rotations = {
        "train": haar_rotations(n_train, streams[0], rotation_chunk),
        "test": haar_rotations(n_test, streams[1], rotation_chunk),
    }
    split = split_indices(n_train, streams[2])
    variants, frames = ("N", "R"), {}
    if lat_lon := re.fullmatch(r"latlon(\d+)", grid):
        variants, columns = ("N", "R", "Omni"), 2 * int(lat_lon[1])
        frames["train"] = tangent_frames(n_train, columns, streams[3])
        frames["test"] = tangent_frames(n_test, columns, streams[4])

    out_dir = Path(out_dir)
    (out_dir / "card.json").unlink(missing_ok=True)  # from now on the old data are incomplete
    matrix = sampling_matrix(points, legacy_bilinear).astype(np.float32)
    points32 = points.astype(np.float32)
    arrays = {
        "train": (digits.train_images, digits.train_labels),
        "test": (digits.test_images, digits.test_labels),
    }
    for part, (images, labels) in arrays.items():

        def upright(block: slice, images: np.ndarray = images) -> np.ndarray:
            flat = images[block].reshape(-1, SIZE * SIZE)
            return to_bytes((matrix @ flat.T.astype(np.float32)).T, legacy_bilinear)

        def rotated(block: slice, images: np.ndarray = images, part: str = part) -> np.ndarray:
            turns = rotations[part][block]
            samples = sample_rotated(images[block], turns, points32, legacy_bilinear)
            return to_bytes(samples, legacy_bilinear)

        def omni(block: slice, images: np.ndarray = images, part: str = part) -> np.ndarray:
            return to_bytes(sample_omni(images[block], frames[part][block], points32))

        shape = (len(images), len(points))
        samplers = {"N": upright, "R": rotated, "Omni": omni}
        for variant in variants:
            name = f"{part}_{variant}"
            blocks = _blocks(shape, samplers[variant], name)
            write_array(out_dir / f"{name}.npy", shape, np.uint8, blocks)
        write_array(out_dir / f"{part}_labels.npy", labels.shape, np.uint8, [labels])
    with atomic_path(out_dir / "split.npz") as temporary:
        np.savez(temporary, **split)

    files = [f"{part}_{kind}.npy" for part in arrays for kind in (*variants, "labels")]
    card = {
        "dataset": "spherical MNIST" if digits.source == "MNIST" else "spherical synthetic digits",
        "source": digits.source,
        "raw_sha256": digits.sha256,
        "grid": grid,
        "points": len(points),
        "projection": {
            "kind": "stereographic, digit round the south pole",
            "half_width": HALF_WIDTH,
            "epsilon": EPSILON,
            "legacy_bilinear": legacy_bilinear,
        },
        "rotations": {"kind": "Haar", "images_per_rotation": rotation_chunk},
        **({"omni": OMNI_CARD} if "Omni" in variants else {}),
        "seed": seed,
        "classes": {
            part: np.bincount(labels, minlength=10).tolist() for part, (_, labels) in arrays.items()
        },
        "samples": {**{name: len(index) for name, index in split.items()}, "test": n_test},
        "values": "each signal (not of Omni) stretched to 0..255"
        if legacy_bilinear
        else "grey level of the image, 0 = background, 255 = ink; not normalised",
        "sha256": {name: sha256_of_file(out_dir / name) for name in [*files, "split.npz"]},
    }
    write_json(out_dir / "card.json", card)
    return card


def _turned(turns: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Coordinates x, y, z of every point under every turn, (3, n, P)."""
    turned = turns.transpose(1, 0, 2).reshape(-1, 3).astype(points.dtype) @ points.T
    return turned.reshape(3, len(turns), len(points))


def _bilinear(
    images: np.ndarray, row: np.ndarray, column: np.ndarray, legacy: bool = False
) -> np.ndarray:
    """Samples of images (n, 28, 28) at pixel coordinates (n, P) each, which are overwritten."""
    # Three pixels of zeros all round, and coordinates brought to its edge: no test for "inside".
    border = 3
    width = SIZE + 2 * border
    padded = np.pad(images, ((0, 0), (border, border), (border, border)))
    flat = padded.astype(row.dtype).ravel()
    fractions, firsts = [], []
    for r in (row, column):
        np.clip(r, -2, SIZE + 1, out=r)
        first = np.floor(r)
        fractions.append(r - first)
        firsts.append(first.astype(np.intp))
    first_tap = border - 1 if legacy else border
    pixel = (firsts[0] + first_tap) * width + (firsts[1] + first_tap)
    pixel += np.arange(len(images))[:, None] * width**2

    step = 2 if legacy else 1
    u, v = (1 - f for f in fractions)
    s, t = (f + 1 for f in fractions) if legacy else fractions
    upper = u * (v * flat.take(pixel) + t * flat[step:].take(pixel))
    pixel += step * width
    return upper + s * (v * flat.take(pixel) + t * flat[step:].take(pixel))


def _taps(r: np.ndarray, legacy: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two (pixel, weight) pairs of a coordinate along one axis."""
    i = np.floor(r).astype(np.intp)
    f = r - i
    return [(i - 1, 1 - f), (i + 1, 1 + f)] if legacy else [(i, 1 - f), (i + 1, f)]


def _blocks(
    shape: tuple[int, int], samples: Callable[[slice], np.ndarray], name: str
) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_VALUES // shape[1])
    for start in tqdm(range(0, shape[0], step), desc=name, disable=None, leave=False):
        yield samples(slice(start, start + step))
