"""Values of an equirectangular panorama at given directions: means over cells, nearest pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


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
