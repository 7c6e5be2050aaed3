"""HexRUNet-C for Spherical MNIST (Zhang, Liwicki, Smith, Cipolla, ICCV 2019).

Layout of a field inside the network: (pixel x batch, channel), as of `OperatorConv`, the pixels of
the five charts row by row.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from baselines.charts import LEFT, POLES, UP, Atlas
from baselines.inputs import checked
from baselines.operator_conv import OperatorConv
from pdo.frames import east_north_frames


def north_alpha(atlas: Atlas) -> np.ndarray:
    """alpha = phi / (psi + phi) at each pixel, (5, 2 W, W), the same in all charts.

    psi and phi are the angles, in the tangent plane, between north and the two directions on either
    side of it, which are up and left in every chart: alpha is 1 where up is north, 0 where left is.
    """
    vertex = atlas.pixels
    east, north, _ = np.moveaxis(east_north_frames(atlas.mesh.vertices[vertex.ravel()]), -1, 0)

    def angle_from_north(direction: int) -> np.ndarray:
        to = atlas.mesh.vertices[atlas.neighbours[vertex, direction].ravel()]
        return np.arctan2(-np.sum(to * east, axis=1), np.sum(to * north, axis=1))

    psi, phi = -angle_from_north(UP), angle_from_north(LEFT)
    return (phi / (psi + phi)).reshape(vertex.shape)


def north_aligned_neighbours(atlas: Atlas) -> list[sparse.csr_array]:
    """Seven operators (P, P): the value of each pixel itself, then what lies m sixths of a turn
    counter-clockwise from north, m = 0..5, which is alpha x_m + (1 - alpha) x_{m + 1} in terms of
    the neighbours x_0 .. x_5 from up on.

    So a kernel that is the same everywhere gives the paper's alpha conv(K) + (1 - alpha) conv(K'),
    K' being K turned by one step. The poles are no pixels: the mean of its five neighbours stands
    in for a pole (ours).
    """
    vertex, alpha = atlas.pixels.ravel(), north_alpha(atlas).ravel()
    vertices = pixels_to_vertices(atlas)
    around = [vertices[atlas.neighbours[vertex, m]] for m in range(6)]
    this, following = sparse.diags_array(alpha), sparse.diags_array(1 - alpha)
    arms = [this @ around[m] + following @ around[(m + 1) % 6] for m in range(6)]
    return [sparse.eye_array(len(vertex), format="csr"), *arms]


def pixels_to_vertices(atlas: Atlas) -> sparse.csr_array:
    """Values at all vertices from those at the pixels, (V, P)."""
    number = np.arange(atlas.pixels.size).reshape(atlas.pixels.shape)
    at_poles = np.concatenate([number[:, 0, 0], number[:, -1, -1]])  # the neighbours of N, of S
    rows = np.concatenate([atlas.pixels.ravel(), np.repeat(POLES, 5)])
    columns = np.concatenate([number.ravel(), at_poles])
    values = np.concatenate([np.ones(number.size), np.full(10, 1 / 5)])
    return sparse.csr_array((values, (rows, columns)), shape=(len(atlas.mesh), number.size))


class HexConv(OperatorConv):
    """North-aligned convolution with one hexagonal kernel of 7 weights per channel pair, a bias.

    Shapes: (P B, C_in) -> (P B, C_out).
    """

    def __init__(self, atlas: Atlas, in_channels: int, out_channels: int) -> None:
        super().__init__(north_aligned_neighbours(atlas), in_channels, out_channels)


class ChartMaxPool(nn.Module):
    """Maximum over 2 x 2 pixels, one of which is a vertex of `atlas`, the coarser mesh.

    Shapes: (4 P B, C) -> (P B, C).
    """

    def __init__(self, atlas: Atlas) -> None:
        super().__init__()
        _, rows, columns = atlas.pixels.shape
        self.image = 1, 2 * 5 * rows, 2 * columns, -1

    def forward(self, x: Tensor) -> Tensor:
        # one image in channels-last order, which torch pools in long stretches of memory
        charts = x.view(self.image).permute(0, 3, 1, 2)
        pooled = nn.functional.max_pool2d(charts, 2)
        return pooled.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class ResBlock(nn.Module):
    """relu(main(x) + shortcut(x)) on the mesh of `atlas`; with `pool` the input is a level finer.

    main = 1x1, pool -> HexConv -> 1x1 and shortcut = 1x1, pool, each followed by batch norm and,
    inside main, ReLU.

    Shapes: (P B, C_in) -> (P B, C_out), with `pool` (4 P B, C_in) -> (P B, C_out).
    """

    def __init__(
        self, atlas: Atlas, in_channels: int, neck: int, out_channels: int, pool: bool = True
    ) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(in_channels, neck),
            ChartMaxPool(atlas) if pool else nn.Identity(),
            nn.BatchNorm1d(neck),
            nn.ReLU(inplace=True),
            HexConv(atlas, neck, neck),
            nn.BatchNorm1d(neck),
            nn.ReLU(inplace=True),
            nn.Linear(neck, out_channels),
            nn.BatchNorm1d(out_channels),
        )
        self.shortcut = nn.Sequential(
            nn.Linear(in_channels, out_channels),
            ChartMaxPool(atlas) if pool else nn.Identity(),
            nn.BatchNorm1d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.shortcut(x)).relu()


class HexRUNetC(nn.Module):
    """Classifier of signals on the icosphere: level -> level - 1 -> level - 2, channels 16-64-256,
    maximum over the pixels left, linear. 74,730 parameters at any level.

    Shapes: (batch, 1, V) -> logits (batch, n_classes).

    Raises:
        ValueError: if `level` is below 2, or an input is not (batch, 1, V).
    """

    def __init__(self, level: int = 4, n_classes: int = 10) -> None:
        super().__init__()
        if level < 2:
            raise ValueError(
                f"HexRUNet-C coarsens its mesh twice: level must be at least 2, not {level}"
            )
        fine, middle, coarse = (Atlas(level - step) for step in range(3))
        self.vertices = len(fine.mesh)
        self.register_buffer("pixels", torch.from_numpy(fine.pixels.ravel()), persistent=False)
        self.stem = nn.Sequential(HexConv(fine, 1, 16), nn.ReLU(inplace=True))
        self.block1 = ResBlock(middle, 16, 16, 64)
        self.block2 = ResBlock(coarse, 64, 64, 256)
        self.head = nn.Linear(256, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.invariants(x))

    def invariants(self, x: Tensor) -> Tensor:
        """The features maximised over the pixels, (batch, 256)."""
        checked(x, 1, self.vertices, "HexRUNet-C")
        y = self.stem(x[:, 0, self.pixels].T.reshape(-1, 1))
        return self.block2(self.block1(y)).unflatten(0, (-1, len(x))).amax(dim=0)
