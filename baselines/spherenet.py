"""SphereNet for Spherical MNIST (Coors, Condurache, Geiger, ECCV 2018).

A planar network whose kernels lie on tangent planes of the sphere: each kernel point reads the
equirectangular image where the ray through it meets the sphere.

The image is the grid `latlon<b>` of 2b x 2b points, latitudes 90 - (j + 1/2) 90 / b degrees and
longitudes k 180 / b. So rows stand half a cell away from the poles and columns have no such offset;
halving b (pooling) keeps this true, as pooled values stand at the points of the coarser grid.

Layout of a field inside the network: (point, batch, channel). So the sparse samplers see a
(point, batch x channel) matrix, and mixing channels is `nn.Linear`.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from torch import Tensor, nn

from baselines.inputs import checked
from pdo.sparse import SparseOperator


def kernel_points(side: int, size: int, latitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the kernels centred at longitude 0 and `latitudes` (n,) read: latitudes and longitudes
    of their points in radians, each (n, size^2), north-west first, row by row.

    On the equator the points of a kernel are size x size neighbours of the image, pi / side apart
    in latitude and 2 pi / side in longitude. Their gnomonic projection, x = tan(lon),
    y = tan(lat) / cos(lon), is the paper's kernel on the tangent plane. To carry the plane along a
    meridian and project back is to turn those points about the horizontal axis, which is what is
    done: nothing is singular at the poles.
    """
    steps = np.arange(size) - size // 2
    lat, lon = np.meshgrid(-steps * np.pi / side, steps * 2 * np.pi / side, indexing="ij")
    ahead, east, up = (
        a.ravel() for a in (np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat))
    )
    cos, sin = np.cos(latitudes)[:, None], np.sin(latitudes)[:, None]
    x, z = ahead * cos - up * sin, ahead * sin + up * cos
    return np.arctan2(z, np.hypot(x, east)), np.arctan2(east, x)


def sampling_matrix(side: int, out_side: int, size: int) -> sparse.csr_array:
    """Matrix (out_side^2 size^2, side^2) that reads the points of the kernels centred at the points
    of a grid of out_side x out_side from an image of side x side; row = point size^2 + tap.

    Bilinear in row and column. Columns wrap; the row beyond a pole is the first one on the opposite
    meridian. Each row of the matrix sums to 1.
    """
    latitudes = np.pi / 2 - (np.arange(out_side) + 0.5) * np.pi / out_side
    lat, lon = kernel_points(side, size, latitudes)
    # (row of the centre, column of the centre, tap), in cells of the image.
    row = ((np.pi / 2 - lat) * side / np.pi - 0.5)[:, None]
    column = (lon * side / (2 * np.pi))[:, None] + (np.arange(out_side) * side / out_side)[:, None]
    row, column = (a.ravel() for a in np.broadcast_arrays(row, column))
    pixels, weights = [], []
    for near_row, row_weight in _neighbours(row):
        beyond_pole = (near_row < 0) | (near_row >= side)
        near_row = near_row.clip(0, side - 1)
        for near_column, column_weight in _neighbours(column + beyond_pole * side / 2):
            pixels.append(near_row * side + near_column % side)
            weights.append(row_weight * column_weight)
    samples = np.tile(np.arange(len(row)), 4)
    where = samples, np.concatenate(pixels)
    matrix = sparse.csr_array((np.concatenate(weights), where), shape=(len(row), side**2))
    matrix.eliminate_zeros()  # of points that fall on a pixel
    return matrix


def _neighbours(coordinate: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two (index, weight) pairs of a linear interpolation. Coordinates are taken to 1e-9, so
    that rounding does not tell columns apart."""
    first = np.floor(coordinate + 1e-9)
    fraction = np.round(coordinate - first, 9)
    index = first.astype(np.intp)
    return [(index, 1 - fraction), (index + 1, fraction)]


class Sampler(nn.Module):
    """Reads the kernels' points: (side^2, B, C) -> (out_side^2, size^2, B, C)."""

    def __init__(self, side: int, out_side: int, size: int) -> None:
        super().__init__()
        self.taps = size**2
        self.matrix = SparseOperator(sampling_matrix(side, out_side, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x.flatten(1)).view(-1, self.taps, *x.shape[1:])


class SphereConv(nn.Module):
    """out(p) = bias + sum over taps t of W_t x(t of the kernel at p), W and bias drawn as those of
    a planar `nn.Conv2d`: (side^2, B, C_in) -> (side^2, B, C_out)."""

    def __init__(self, side: int, in_channels: int, out_channels: int, size: int = 5) -> None:
        super().__init__()
        self.sample = Sampler(side, side, size)
        self.mix = nn.Linear(size**2 * in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.sample(x).transpose(1, 2).flatten(2))


class SphereMaxPool(nn.Module):
    """Largest value at the taps of the kernels centred at the points of a coarser grid:
    (side^2, B, C) -> (out_side^2, B, C)."""

    def __init__(self, side: int, out_side: int, size: int = 3) -> None:
        super().__init__()
        self.sample = Sampler(side, out_side, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.sample(x).max(dim=1).values


class SphereNet(nn.Module):
    """Two convolutions 5x5 (32 and 64 channels), each with a max-pool 3x3 of stride 2 and a ReLU,
    then one linear layer on all that is left: 196,106 parameters at level 4 (images 60 -> 30 -> 15
    points wide). Level 3: 30 -> 15 -> 8, and so fewer parameters in the linear layer.

    Shapes: (batch, 1, points of `latlon<b>`, b = 30 at level 4) -> logits (batch, n_classes).

    Raises:
        ValueError: if `level` is below 3 (two columns of the second image must be less than 90
            degrees, the edge of the tangent plane), or an input has another shape.
    """

    def __init__(self, level: int = 4, n_classes: int = 10) -> None:
        super().__init__()
        if level < 3:
            raise ValueError(f"SphereNet's kernels need a level of at least 3, not {level}")
        fine = 2 * round(30 * 2.0 ** (level - 4))
        middle, coarse = (fine + 1) // 2, (fine + 3) // 4
        self.points = fine**2
        self.features = nn.Sequential(
            SphereConv(fine, 1, 32),
            SphereMaxPool(fine, middle),
            nn.ReLU(),
            SphereConv(middle, 32, 64),
            SphereMaxPool(middle, coarse),
            nn.ReLU(),
        )
        self.head = nn.Linear(coarse**2 * 64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        checked(x, 1, self.points, "SphereNet")
        features = self.features(x.permute(2, 0, 1).contiguous())
        return self.head(features.transpose(0, 1).flatten(1))
