"""Two tests that tell a digit of the published edition of Spherical MNIST from a corrected one.

The half-turn test, for upright digits. The points and the projection are known, so a signal s of an
edition is A x, a matrix (`data_prep.spherical_mnist.sampling_matrix`) times the pixels of an image.
The test fits the pixels by least squares and looks at the residual, |s - A x| / |s|. For each of
MNIST's 10,000 test digits rounding leaves less than 0.5 %, the matrix of the other edition more
than 4 %. Then the test fits the same signal after a half turn about the digit's axis. Correct
bilinear sampling explains that as well, since a half turn of the signal is a half turn of the image
about pixel 14. The published sampling does not, since its weights depend on the side of a pixel:
this is how it reveals which way up a digit was. A digit votes

- published: published sampling explains the signal and not its half turn;
- corrected: correct sampling explains both.

The spread test, for digits whose rotation is unknown, and for grids with fewer points than an image
has pixels. Published sampling mixes pixels that lie two apart and so spreads the ink. The test
takes quantities that rotations keep: the power in each degree of spherical harmonics, the area
above each grey level, moments of the grey levels. Linear discriminant analysis on synthetic digits
of both editions, under random rotations, decides. A digit that resembles neither does not vote.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import gaussian_filter

from bench.rotated_signals import harmonics
from data_prep import published_edition
from data_prep.grids import grid_points
from data_prep.mnist import SIZE
from data_prep.spherical_mnist import (
    EDITIONS,
    Edition,
    haar_rotations,
    sample_rotated,
    sampling_matrix,
    to_bytes,
)
from data_prep.synthetic_digits import synthetic_digits
from pdo.mesh import Icosphere

EXPLAINED = 0.02
"""An edition explains a signal if it leaves a smaller residual."""
RIDGE = 0.01
"""Of the least squares, for pixels that no point sees; pixels are in 0..1."""
REACH = 12
"""Fitted are points up to so many pixels from the middle: there, no weight falls off the image."""

TRAINING_DIGITS = 300
BLUR, GAIN = 0.3, 1.3
"""Greatest blur (pixels) and gain of the synthetic digits: strokes as soft and as full as MNIST's.
Both, and SHRINKAGE, were chosen on training digits of MNIST."""
SHRINKAGE = 0.1
"""Added to the diagonal of the correlation matrix of the features."""
FARTHEST = 5.0
"""Mean squared Mahalanobis distance per feature beyond which a digit does not vote."""
LEVELS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class HalfTurn(NamedTuple):
    """Outcome of the half-turn test for n digits."""

    votes: np.ndarray
    """(n,) 1 published, -1 corrected, 0 neither."""
    explained: np.ndarray
    """(n,) bool: one of the editions explains the signal."""
    residuals: dict[str, np.ndarray]
    """(n,) for each edition, and for "<edition>, half turn"."""


def upright(signals: np.ndarray, grid: str) -> np.ndarray:
    """Return which of the signals (n, P) are empty outside the image of an upright digit: (n,)."""
    row, column = published_edition.project(*grid_points(grid).T)
    outside = (np.maximum(abs(row - SIZE / 2), abs(column - SIZE / 2)) > 15) & ~_cap(grid)
    return (np.abs(signals[:, outside]) < 0.01).all(axis=1)


def half_turn_test(signals: np.ndarray, grid: str) -> HalfTurn:
    """Test upright signals (n, P) in 0..1 on a grid of more points than an image has pixels."""
    residuals = {}
    for edition in EDITIONS:
        for half_turn in (False, True):
            name = edition + ", half turn" * half_turn
            residuals[name] = _residuals(signals, grid, edition, half_turn)
    published, published_turned, corrected, corrected_turned = (
        found < EXPLAINED for found in residuals.values()
    )
    votes = (published & ~published_turned & ~corrected).astype(int)
    votes -= corrected & corrected_turned & ~published
    return HalfTurn(votes, published | corrected, residuals)


def spread_test(signals: np.ndarray, grid: str) -> np.ndarray:
    """Return the votes (n,) of signals (n, P) in 0..1, rotated or not: 1 published, -1 corrected, 0
    neither."""
    distances = _classifier(grid)(features(signals, grid))
    votes = np.where(distances[:, 0] < distances[:, 1], 1, -1)
    return np.where(distances.min(axis=1) < FARTHEST, votes, 0)


def features(signals: np.ndarray, grid: str) -> np.ndarray:
    """Return quantities (n, F) of signals (n, P) in 0..1 that rotations keep: logarithms of the
    share of power in each degree and of the inked area, the share of it above each of LEVELS, and
    the mean of the first four powers of the grey level over it."""
    areas, basis, degrees = _analysis(grid)
    coefficients = (signals * areas) @ basis
    power = np.stack([(coefficients[:, degrees == d] ** 2).sum(axis=1) for d in np.unique(degrees)])
    power /= power.sum(axis=0)
    above = np.stack([(signals > level) @ areas for level in LEVELS])
    inked = np.maximum(above[0], 1e-9)
    moments = np.stack([signals**k @ areas for k in (1, 2, 3, 4)])
    return np.vstack([np.log(power + 1e-6), np.log(inked), above[1:] / inked, moments / inked]).T


def _cap(grid: str) -> np.ndarray:
    """Points near the north pole, where the published edition has a second digit."""
    return grid_points(grid)[:, 2] > 0.9


def _residuals(signals: np.ndarray, grid: str, edition: Edition, half_turn: bool) -> np.ndarray:
    """Share (n,) of signals (n, P), or of their half turns, that is left by the best image."""
    used, matrix, factor = _least_squares(grid, edition, half_turn)
    samples = signals[:, used].T
    left = samples - matrix @ cho_solve(factor, matrix.T @ samples)
    size = np.linalg.norm(samples, axis=0)
    return np.linalg.norm(left, axis=0) / np.where(size > 0, size, np.inf)


@cache
def _least_squares(grid: str, edition: Edition, half_turn: bool) -> tuple:
    """Points in use, sampling matrix there, Cholesky factor of the normal equations."""
    points = grid_points(grid)
    row, column = published_edition.project(*points.T)
    used = (np.maximum(abs(row - SIZE / 2), abs(column - SIZE / 2)) <= REACH) & ~_cap(grid)
    if half_turn:  # the signal at the turned points, which is the turned signal
        points = points * [-1, -1, 1]
    matrix = sampling_matrix(points[used], edition)
    if edition == "published":
        matrix = matrix / 4  # the sum of its weights
    normal = (matrix.T @ matrix).toarray() + RIDGE**2 * np.eye(SIZE**2)
    return used, matrix, cho_factor(normal)


@cache
def _analysis(grid: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas (P,) that sum to 4 pi, harmonics (P, F) and the degree (F,) of each."""
    points = grid_points(grid)
    if grid.startswith("icosphere"):
        areas = Icosphere(int(grid.removeprefix("icosphere")[0])).vertex_areas
    else:
        sines = np.hypot(points[:, 0], points[:, 1])
        areas = 4 * np.pi * sines / sines.sum()
    highest = 24 if len(points) > 2000 else 14
    degrees = np.repeat(np.arange(highest + 1), 2 * np.arange(highest + 1) + 1)
    return areas, harmonics(points, highest), degrees


@cache
def _classifier(grid: str) -> Callable[[np.ndarray], np.ndarray]:
    """Function from features (n, F) to mean squared Mahalanobis distances (n, 2) per feature from
    the digits of each edition."""
    rng = np.random.default_rng(0)
    images = np.stack([_varied(image, rng) for image in synthetic_digits(TRAINING_DIGITS, 1)[0]])
    rotations = haar_rotations(len(images), rng)
    found = []
    for edition in EDITIONS:
        samples = sample_rotated(images, rotations, grid_points(grid), edition)
        found.append(features(to_bytes(samples, edition) / 255, grid))
    means = [part.mean(axis=0) for part in found]
    within = np.concatenate([part - mean for part, mean in zip(found, means, strict=True)])
    deviation = within.std(axis=0) + 1e-9
    correlation = np.cov(within.T / deviation[:, None])
    inverse = np.linalg.inv(correlation + SHRINKAGE * np.eye(len(correlation)))

    def distances(new: np.ndarray) -> np.ndarray:
        away = [(new - mean) / deviation for mean in means]
        return np.stack([((x @ inverse) * x).mean(axis=1) for x in away], axis=1)

    return distances


def _varied(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image (28, 28) with a random blur and gain, as uint8."""
    soft = gaussian_filter(image.astype(float), rng.uniform(0, BLUR))
    return np.rint(np.minimum(soft / soft.max() * rng.uniform(1, GAIN), 1) * 255).astype(np.uint8)
