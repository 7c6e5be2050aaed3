"""Synthetic digits: seeded stroke drawings of 0..9 in MNIST's format, for runs with no download.

They exercise the same code as MNIST; results on them are named 'synthetic digits' and are never
compared with published numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.mnist import SIZE, Digits, load_mnist

BLOCK = 128  # images drawn at a time: bounds memory


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> np.ndarray:
    """Points of an elliptic arc from angle `start` to `end` in degrees (0 = right, 90 = down)."""
    steps = max(3, round(abs(end - start) / 24))
    angles = np.radians(np.linspace(start, end, steps + 1))
    return np.column_stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)])


def _line(*points: Sequence[float]) -> np.ndarray:
    return np.array(points, dtype=float)


# Strokes as polylines, x to the right and y down, in a box of width 1.2 and height 2 round (0, 0).
# The 6 is curved and the 9 has a straight stem, so that they differ when turned as well.
STROKES: tuple[list[np.ndarray], ...] = (
    [_arc(0, 0, 0.6, 1, 0, 360)],
    [_line((-0.35, -0.6), (0.05, -1), (0.05, 1))],
    [np.vstack([_arc(0, -0.45, 0.55, 0.55, -170, 30), _line((-0.6, 1), (0.65, 1))])],
    [np.vstack([_arc(-0.05, -0.5, 0.55, 0.5, -150, 80), _arc(-0.05, 0.5, 0.6, 0.5, -80, 150)])],
    [_line((0.05, -1), (-0.6, 0.3), (0.65, 0.3)), _line((0.3, -0.3), (0.3, 1))],
    [np.vstack([_line((0.55, -1), (-0.4, -1), (-0.5, -0.1)), _arc(0, 0.4, 0.6, 0.6, -130, 140)])],
    [np.vstack([_arc(0.55, 0.3, 1.1, 1.35, -95, -180), _arc(0, 0.45, 0.55, 0.55, 180, -180)])],
    [_line((-0.6, -1), (0.6, -1), (-0.15, 1))],
    [_arc(0, -0.5, 0.45, 0.5, 90, 450), _arc(0, 0.5, 0.58, 0.5, -90, 270)],
    [_arc(-0.05, -0.45, 0.55, 0.55, 0, 360), _line((0.5, -0.45), (0.4, 1))],
)


def synthetic_digits(n_train: int, n_test: int, seed: int = 0) -> Digits:
    """Draw synthetic digits: arrays as MNIST's, classes balanced, order random.

    Each image is its own strokes under a random affine map (slant, rotation of some degrees, size,
    shift), wobble of the stroke's points, thickness and blur. Training and test images come from
    separate random streams, so n_train does not change the test images.

    Raises:
        ValueError: n_train or n_test below 1.
    """
    if min(n_train, n_test) < 1:
        raise ValueError(f"at least one training and one test image, not {n_train} and {n_test}")
    streams = np.random.SeedSequence(seed).spawn(2)
    train, test = (
        _draw(n, np.random.default_rng(stream))
        for n, stream in zip((n_train, n_test), streams, strict=True)
    )
    arrays = dict(zip(Digits._fields[:4], (*train, *test), strict=True))
    sha256 = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
    return Digits(**arrays, source="synthetic digits", sha256=sha256)


def mnist_or_synthetic(data_root: Path, n_train: int, n_test: int, seed: int = 0) -> Digits:
    """All of MNIST if its files are in `data_root`/raw/mnist, else so many synthetic digits."""
    raw = data_root / "raw" / "mnist"
    return load_mnist(raw) if raw.is_dir() else synthetic_digits(n_train, n_test, seed)


def _draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    images = np.empty((n, SIZE, SIZE), dtype=np.uint8)
    for digit, strokes in enumerate(STROKES):
        members = np.flatnonzero(labels == digit)
        for start in range(0, len(members), BLOCK):
            block = members[start : start + BLOCK]
            images[block] = _render(strokes, len(block), rng)
    return images, labels


def _render(strokes: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` random variants of one digit, (n, 28, 28) uint8: the brightness of a pixel falls off
    linearly with its distance from the nearest stroke."""
    angle = rng.normal(0, np.radians(7), n)
    slant = rng.normal(0, 0.12, n)
    width, height = rng.uniform(6.5, 9.5, n), rng.uniform(8, 9.5, n)
    affine = np.empty((n, 2, 2))
    affine[:, 0, 0], affine[:, 0, 1] = width, -slant * height
    affine[:, 1, 0], affine[:, 1, 1] = 0, height
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1)
    affine = turn.reshape(n, 2, 2) @ affine
    shift = SIZE / 2 - 0.5 + rng.normal(0, 0.7, (n, 1, 2))
    radius = rng.uniform(0.8, 1.6, (n, 1, 1))
    blur = rng.uniform(0.5, 1.0, (n, 1, 1))

    rows, columns = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.float32)
    nearest = np.full((n, SIZE * SIZE, 1), np.inf, dtype=np.float32)
    for stroke in strokes:
        wobble = _smooth_noise(len(stroke), n, rng)
        points = ((stroke + wobble) @ affine.transpose(0, 2, 1) + shift).astype(np.float32)
        for a, b in zip(points[:, :-1].swapaxes(0, 1), points[:, 1:].swapaxes(0, 1), strict=True):
            np.minimum(nearest, _squared_distance(pixels, a, b)[..., None], out=nearest)
    ink = np.clip((radius + blur - np.sqrt(nearest)) / (2 * blur), 0, 1)
    return np.rint(255 * ink).astype(np.uint8).reshape(n, SIZE, SIZE)


def _smooth_noise(points: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Displacements (n, points, 2) that vary slowly along the stroke (two sine waves)."""
    t = np.linspace(0, np.pi, points)[:, None]
    waves = rng.normal(0, 0.05, (2, n, 1, 2))
    return waves[0] * np.cos(t) + waves[1] * np.cos(2 * t)


def _squared_distance(pixels: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, pixels) from pixels (pixels, 2) to the segments a-b, each (n, 2)."""
    along = b - a
    offset = pixels - a[:, None]
    t = np.einsum("npk,nk->np", offset, along) / np.maximum((along**2).sum(-1), 1e-9)[:, None]
    away = offset - np.clip(t, 0, 1)[..., None] * along[:, None]
    return np.einsum("npk,npk->np", away, away)
