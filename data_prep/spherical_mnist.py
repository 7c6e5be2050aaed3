"""Spherical MNIST: digits projected onto the sphere, upright (N) and rotated (R), and on lat-lon
grids as SphereNet has them (Omni, see `omni_mnist`).

The projection is that of Cohen et al., Spherical CNNs (2018): the digit lies around the south pole.
A rotated signal is computed from the image itself, at the points of the rotated sphere,
f_R(x) = image(project(R x)): nothing is ever interpolated on the sphere.

There are two editions, which no table may mix. `published_edition` describes the one, whose
weights reveal which way up a digit was. The `corrected` one, step by step:

1. Rotate, in float32: points and rotations are rounded to it, and a point p becomes R p by a matrix
   product. Signals N skip this step.
2. Project as `project` does, in float32 for R and in float64 for N. The cap z > 1 / 1.001, which
   faces the centre of projection, is sent outside the image: the north pole reads 0.
3. Take i = floor(r) and f = r - i of the pixel coordinate r on each axis, and weigh pixel i by
   1 - f and pixel i + 1 by f. Pixels outside the image are zero.
4. Interpolate, in float32. R: along the second axis, then along the first. N: the four products of
   the weights are rounded to float32, and so is their sum with the pixels.
5. Round to the nearest integer (a half to the even one). Nothing is stretched: 0 is the background,
   255 full ink, and a value is a grey level of the image.

float32 may move a value by one grey level; bitwise equality is promised on one processor model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from data_prep import published_edition
from data_prep.files import atomic_path, sha256_of_file, write_array, write_json
from data_prep.grids import grid_points
from data_prep.mnist import SIZE, Digits, load_mnist
from data_prep.omni_mnist import FIELD_OF_VIEW, gnomonic, tangent_frames

Edition = Literal["published", "corrected"]
EDITIONS: tuple[Edition, ...] = ("published", "corrected")

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


def project(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel coordinates (row, column) of directions on the unit sphere, any shape.

    With the sphere standing on the plane z' = 0 (z' = z + 1), the ray from (0, 0, 2 + EPSILON)
    through a point hits the plane at q = (x, y) (2 + EPSILON) / (1 + EPSILON - z), and
    (row, column) = 28 (q + 1.5) / 3, no half-pixel shift. The south pole is at (14, 14), the edge
    of the image 73.75 degrees from it.

    That centre is off the sphere, so the cap z > 1 / (1 + EPSILON) faces it and is hit a second
    time: the north pole projects to the middle of the digit. Those points are sent outside the
    image (the published edition keeps them).
    """
    scale = SIZE / (2 * HALF_WIDTH) * (2 + EPSILON) / (1 + EPSILON - z)
    row, column = SIZE / 2 + scale * x, SIZE / 2 + scale * y
    return np.where(z > 1 / (1 + EPSILON), -SIZE, row), column


def sampling_matrix(points: np.ndarray, edition: Edition = "corrected") -> sparse.csr_array:
    """Return the matrix (P, 784) float64 that takes a flat image to its samples at `points` (P, 3),
    before they become bytes, with zeros outside the image.

    With i = floor(r) and f = r - i the weights along an axis are 1 - f on pixel i and f on i + 1;
    those of the published edition are `published_edition.taps`.
    """
    if edition == "published":
        axes = [published_edition.taps(r) for r in published_edition.project(*points.T)]
    else:
        axes = [_taps(r) for r in project(*points.T)]
    rows, columns, entries, weights = [], [], [], []
    for row, row_weight in axes[0]:
        for column, column_weight in axes[1]:
            inside = (row >= 0) & (row < SIZE) & (column >= 0) & (column < SIZE)
            entries.append(np.flatnonzero(inside))
            rows.append(row[inside])
            columns.append(column[inside])
            weights.append((row_weight * column_weight)[inside])
    pixels = np.concatenate(rows) * SIZE + np.concatenate(columns)
    where = (np.concatenate(entries), pixels)
    return sparse.csr_array((np.concatenate(weights), where), shape=(len(points), SIZE * SIZE))


def sample_rotated(
    images: np.ndarray, rotations: np.ndarray, points: np.ndarray, edition: Edition = "corrected"
) -> np.ndarray:
    """Return the samples f_R(x) = image(project(R x)), (n, P), of images (n, 28, 28) under
    rotations (n, 3, 3) at the points (P, 3): those of the corrected edition in the precision of
    `points`, those of the published one in float64."""
    if edition == "published":
        rotated = published_edition.rotate(rotations, points)
        return published_edition.sample(images, *published_edition.project(*rotated))
    return _bilinear(images, *project(*_turned(rotations, points)))


def sample_omni(images: np.ndarray, frames: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Samples f_F(x) = image(gnomonic(F x)) on tangent planes with the frames (n, 3, 3): shapes and
    precision as in `sample_rotated`."""
    return _bilinear(images, *gnomonic(*_turned(frames, points)))


def to_bytes(samples: np.ndarray, edition: Edition = "corrected") -> np.ndarray:
    """Return samples (n, P) as uint8: rounded, so that a value is a grey level of the image. In the
    published edition each signal is stretched to 0..255 and truncated."""
    if edition == "published":
        return published_edition.stretch(samples)
    return np.rint(samples).astype(np.uint8)


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
    edition: Edition = "corrected",
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
        edition: of N and R; Omni has one only.

    Raises:
        DataError: raw files missing or damaged, disk full.
        ValueError: unknown grid or edition, negative seed, rotation_chunk below 1, fewer than 2
            images.
    """
    if edition not in EDITIONS:
        raise ValueError(f"unknown edition {edition!r}: editions are {', '.join(EDITIONS)}")
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
    upright = _upright_samples(points, edition)
    points32 = points.astype(np.float32)
    arrays = {
        "train": (digits.train_images, digits.train_labels),
        "test": (digits.test_images, digits.test_labels),
    }
    for part, (images, labels) in arrays.items():

        def unrotated(block: slice, images: np.ndarray = images) -> np.ndarray:
            return to_bytes(upright(images[block]), edition)

        def rotated(block: slice, images: np.ndarray = images, part: str = part) -> np.ndarray:
            at = points if edition == "published" else points32
            samples = sample_rotated(images[block], rotations[part][block], at, edition)
            return to_bytes(samples, edition)

        def omni(block: slice, images: np.ndarray = images, part: str = part) -> np.ndarray:
            return to_bytes(sample_omni(images[block], frames[part][block], points32))

        shape = (len(images), len(points))
        samplers = {"N": unrotated, "R": rotated, "Omni": omni}
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
        "edition": edition,
        "grid": grid,
        "points": len(points),
        "projection": {
            "kind": "stereographic, digit around the south pole",
            "half_width": HALF_WIDTH,
            "epsilon": EPSILON,
        },
        "rotations": {"kind": "Haar", "images_per_rotation": rotation_chunk},
        **({"omni": OMNI_CARD} if "Omni" in variants else {}),
        "seed": seed,
        "classes": {
            part: np.bincount(labels, minlength=10).tolist() for part, (_, labels) in arrays.items()
        },
        "samples": {**{name: len(index) for name, index in split.items()}, "test": n_test},
        "values": "each signal (not of Omni) stretched to 0..255"
        if edition == "published"
        else "grey level of the image, 0 = background, 255 = ink; not normalised",
        "sha256": {name: sha256_of_file(out_dir / name) for name in [*files, "split.npz"]},
    }
    write_json(out_dir / "card.json", card)
    return card


def _upright_samples(points: np.ndarray, edition: Edition) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that takes images (n, 28, 28) to their samples (n, P), unrotated."""
    if edition == "published":
        coordinates = published_edition.project(*points.T)
        return lambda images: published_edition.sample(images, *coordinates)
    matrix = sampling_matrix(points).astype(np.float32)
    return lambda images: (matrix @ images.reshape(len(images), -1).T.astype(np.float32)).T


def _turned(turns: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Coordinates x, y, z of every point under every turn, (3, n, P)."""
    turned = turns.transpose(1, 0, 2).reshape(-1, 3).astype(points.dtype) @ points.T
    return turned.reshape(3, len(turns), len(points))


def _bilinear(images: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Samples of images (n, 28, 28) at pixel coordinates (n, P) each, which are overwritten."""
    # Two pixels of zeros on each side, and coordinates brought to the edge: no test for "inside".
    border = 2
    width = SIZE + 2 * border
    padded = np.pad(images, ((0, 0), (border, border), (border, border)))
    flat = padded.astype(row.dtype).ravel()
    fractions, firsts = [], []
    for r in (row, column):
        np.clip(r, -border, SIZE, out=r)
        first = np.floor(r)
        fractions.append(r - first)
        firsts.append(first.astype(np.intp) + border)
    pixel = firsts[0] * width + firsts[1]
    pixel += np.arange(len(images))[:, None] * width**2

    s, t = fractions
    upper = (1 - s) * ((1 - t) * flat.take(pixel) + t * flat[1:].take(pixel))
    pixel += width
    return upper + s * ((1 - t) * flat.take(pixel) + t * flat[1:].take(pixel))


def _taps(r: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two (pixel, weight) pairs of a coordinate along one axis."""
    i = np.floor(r).astype(np.intp)
    f = r - i
    return [(i, 1 - f), (i + 1, f)]


def _blocks(
    shape: tuple[int, int], samples: Callable[[slice], np.ndarray], name: str
) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_VALUES // shape[1])
    for start in tqdm(range(0, shape[0], step), desc=name, disable=None, leave=False):
        yield samples(slice(start, start + step))
