"""Interpolation of values at points of the sphere to others, as sparse matrices; the spline
is ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from data_prep.panorama_sampler import bilinear

NEIGHBOURS = 24
"""Vertices that enter an interpolation."""
Interpolation = Callable[[np.ndarray, np.ndarray], sparse.csr_array]
"""Unit vectors (P, 3) and (T, 3) -> the matrix (T, P) from values at the first to the others."""


def interpolation(points: np.ndarray, targets: np.ndarray) -> sparse.csr_array:
    """Matrix (T, P) that interpolates values at unit vectors `points` (P, 3) to `targets` (T, 3).

    At each target, the cubic spline s(x) = sum_q w_q |x - q|^3 + a + b.x through the NEIGHBOURS
    nearest points (distances in space, sum_q w_q = 0, sum_q w_q q = 0), evaluated there.
    """
    count = min(NEIGHBOURS, len(points))
    _, near = cKDTree(points).query(targets, count)
    offsets = points[near] - targets[:, None]
    offsets /= np.abs(offsets).max(axis=(1, 2), keepdims=True)  # for the condition number
    distances = np.linalg.norm(offsets[:, :, None] - offsets[:, None], axis=-1)
    linear = np.concatenate([np.ones_like(offsets[..., :1]), offsets], axis=-1)
    system = np.zeros((len(targets), count + 4, count + 4))
    system[:, :count, :count] = distances**3
    system[:, :count, count:] = linear
    system[:, count:, :count] = linear.swapaxes(1, 2)
    at_target = np.zeros((len(targets), count + 4, 1))
    at_target[:, :count, 0] = np.linalg.norm(offsets, axis=-1) ** 3
    at_target[:, count] = 1
    weights = np.linalg.solve(system, at_target)[:, :count, 0]
    starts = count * np.arange(len(targets) + 1)
    return sparse.csr_array(
        (weights.ravel(), near.ravel(), starts), shape=(len(targets), len(points))
    )


def bilinear_interpolation(points: np.ndarray, targets: np.ndarray) -> sparse.csr_array:
    """The same from the pixels of a panorama, `points` of a grid planar<L>, bilinear."""
    pixels, shares = bilinear(targets, round(np.sqrt(len(points) / 2)))
    rows = np.broadcast_to(np.arange(len(targets)), pixels.shape)
    entries = (shares.ravel().astype(float), (rows.ravel(), pixels.ravel()))
    return sparse.csr_array(entries, shape=(len(targets), len(points)))
