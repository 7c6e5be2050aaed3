"""Omni-MNIST: the digits as SphereNet (Coors et al., ECCV 2018) was trained and tested on.

The digit is a photograph: an image on a plane that touches the sphere at a random place, projected
onto the sphere from its centre.
"""

from __future__ import annotations

import math

import numpy as np

from data_prep.mnist import SIZE

FIELD_OF_VIEW = 120
"""Degrees from edge to edge of the image, through its middle, in both directions."""
EDGE = math.tan(math.radians(FIELD_OF_VIEW / 2))
"""The image covers [-EDGE, EDGE]^2 of the tangent plane of the unit sphere."""


def gnomonic(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (row, column) of directions in the frame of the tangent plane, any shape.

    The plane touches the sphere at (1, 0, 0), z is up and y to the right in the image:
    row = 14 - 14 (z / x) / EDGE, column = 14 + 14 (y / x) / EDGE, no half-pixel shift (as in the
    public reproduction, and in `spherical_mnist.project`). Directions behind the plane (x <= 0)
    are sent outside the image.
    """
    before = x > 0
    scale = SIZE / 2 / EDGE / np.where(before, x, 1)
    row, column = SIZE / 2 - scale * z, SIZE / 2 + scale * y
    return np.where(before, row, -SIZE), column


def tangent_frames(n: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Random frames of tangent planes, orthogonal (n, 3, 3): `frame @ point` is what `gnomonic`
    takes, so the rows are the tangent point, the image's right and its upward direction.

    The tangent point has a latitude uniform in [-90, 90] degrees (not uniform on the sphere) and
    the longitude of one of `columns` columns; up is north, and right is east or, for a mirrored
    digit, west, with equal chances.
    """
    latitude = rng.uniform(-np.pi / 2, np.pi / 2, n)
    longitude = 2 * np.pi / columns * np.floor(columns * rng.random(n))
    mirror = rng.choice([-1.0, 1.0], n)
    (cos, sin), (a, b) = ((np.cos(t), np.sin(t)) for t in (latitude, longitude))
    rows = [[cos * a, cos * b, sin], [-mirror * b, mirror * a, 0 * a], [-sin * a, -sin * b, cos]]
    return np.moveaxis(np.array(rows), 2, 0)
