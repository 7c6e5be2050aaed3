"""The published edition of Spherical MNIST: what its reference generator wrote until November 2024.

The generator is that of Cohen et al., Spherical CNNs (2018). Given images, and the points of a grid
that may be rotated, the steps are, all in float64:

1. Rotate. A point p of the grid becomes R p, each coordinate (R_0 x + R_1 y) + R_2 z.
2. Project. The sphere stands on the plane: z' = z + 1. The ray from (0, 0, 2.001) through the point
   meets the plane at q = t (x, y) + (x, y), where t = -z' / (z' - 2.001). The cap above the polar
   angle 2.6 degrees faces the centre of projection and is kept: the north pole reads the middle of
   the image.
3. Find the pixel coordinate r = 28 ((q + 1.5) / 3) on each axis: the first axis of the image
   follows x, the second y. The image covers [-1.5, 1.5]^2.
4. Take the integer pixel i by dropping the fraction of r. That is floor(r) for r >= 0; for
   -1 < r < 0 it is 0, for -2 < r < -1 it is -1.
5. Weigh pixel i - 1 by (i + 1) - r and pixel i + 1 by r - (i - 1), on each axis. Pixels outside the
   image are zero. **This is the fault**: pixel i is skipped, and where r >= 0 the weights 1 - f and
   1 + f of its neighbours (f the fraction of r) add up to 2. On a pixel line (f = 0) the two
   neighbours have the weight 1 each.
6. Interpolate along the first axis, at both pixels of the second, and then along the second.
7. Stretch each signal to 0..255, ((samples - least) / (greatest - least)) * 255, and drop the
   fraction: 254.99 becomes 254. A constant signal (0 / 0) becomes 0.

The order of these operations is kept to the last one, since a rounding error of float64 can decide
the integer in steps 4 and 7. Only single products, sums and quotients are used, so the bytes are
the same on every processor.
"""

from __future__ import annotations

import numpy as np

from data_prep.mnist import SIZE

CENTRE = 2 + 1e-3
"""Height of the centre of projection above the plane, on which the unit sphere stands."""


def rotate(rotations: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coordinates x, y, z, each (n, P) float64, of points (P, 3) under rotations
    (n, 3, 3): step 1."""
    x, y, z = points.T.astype(np.float64)
    r = rotations.astype(np.float64)[..., None]
    a, b, c = ((r[:, k, 0] * x + r[:, k, 1] * y) + r[:, k, 2] * z for k in range(3))
    return a, b, c


def project(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel coordinates (row, column) of unit vectors, any shape: steps 2 and 3."""
    height = z + 1
    t = -height / (height - CENTRE)
    row, column = (((t * q + q + 1.5) / 3) * SIZE for q in (x, y))
    return row, column


def taps(r: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the two (pixel, weight) pairs of a coordinate along one axis: steps 4 and 5."""
    i = r.astype(np.int64)
    return (i - 1, (i + 1) - r), (i + 1, r - (i - 1))


def sample(images: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the samples (n, P) float64 of images (n, 28, 28) at pixel coordinates (n, P), or (P,)
    for all images: steps 4 to 6."""
    width = SIZE + 2  # with a border of zeros, to which all pixels outside are brought
    flat = np.pad(images, ((0, 0), (1, 1), (1, 1))).astype(np.float64).ravel()
    starts = np.arange(len(images))[:, None] * width**2
    (row_0, row_1), (column_0, column_1) = (
        [(np.clip(pixel, -1, SIZE) + 1, weight) for pixel, weight in taps(r)] for r in (row, column)
    )

    def along_rows(pixels: np.ndarray) -> np.ndarray:
        lower, upper = (flat.take(starts + (r * width + pixels)) for r in (row_0[0], row_1[0]))
        return row_0[1] * lower + row_1[1] * upper

    return column_0[1] * along_rows(column_0[0]) + column_1[1] * along_rows(column_1[0])


def stretch(samples: np.ndarray) -> np.ndarray:
    """Return signals (n, P) as uint8, each stretched to 0..255 and truncated: step 7."""
    least = samples.min(axis=1, keepdims=True)
    span = samples.max(axis=1, keepdims=True) - least
    return ((samples - least) / np.where(span > 0, span, 1) * 255).astype(np.uint8)
