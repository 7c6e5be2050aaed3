"""HexRUNet for segmentation (Zhang, Liwicki, Smith, Cipolla, ICCV 2019; Table 2). Layout as in
`baselines.hexrunet`: (pixel x batch, channel)."""

from __future__ import annotations

from itertools import pairwise

import torch
from scipy import sparse
from torch import Tensor, nn

from baselines.charts import Atlas
from baselines.hexrunet import HexConv, ResBlock, pixels_to_vertices
from baselines.inputs import checked
from baselines.operator_conv import OperatorConv
from baselines.rooms import CHANNELS, LABELS, midpoints
from pdo.sparse import SparseOperator


def upsampling(coarse: Atlas, fine: Atlas) -> sparse.csr_array:
    """Linear interpolation from the pixels of a mesh to those of the next finer one, (P', P)."""
    return (midpoints(coarse.mesh) @ pixels_to_vertices(coarse))[fine.pixels.ravel()]


class Up(nn.Module):
    """Interpolation, 1x1, batch norm: (P B, C) -> (4 P B, C)."""

    def __init__(self, coarse: Atlas, fine: Atlas, channels: int) -> None:
        super().__init__()
        self.interpolate = OperatorConv([upsampling(coarse, fine)], channels, channels)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.interpolate(x))


class HexRUNet(nn.Module):
    """Residual U-Net from the input's level down to level 0 and back.

    A HexConv to `features` = f channels, residual blocks to 2f, 4f, 8f, 16f, 16f, ... channels on
    coarser and coarser meshes, and back; see the card for what is published of it. 1,369,119
    parameters at level 5 with f = 16; at another level there are as many blocks as levels. What is
    said of a pole is the mean of what is said of its neighbours.

    Shapes: (batch, 4, V) -> (batch, 15, V).

    Raises:
        ValueError: if `level` is below 1, or an input is not (batch, 4, V).
    """

    def __init__(self, level: int = 5, features: int = 16) -> None:
        super().__init__()
        if level < 1:
            raise ValueError(f"HexRUNet has nothing to coarsen at level {level}: take 1 or more")
        atlases = [Atlas(level - k) for k in range(level + 1)]
        widths = [features * 2 ** min(k, level - 1, 4) for k in range(level + 1)]
        outs = [features, *widths[:-2]]
        self.vertices = len(atlases[0].mesh)
        pixels = torch.from_numpy(atlases[0].pixels.ravel())
        self.register_buffer("pixels", pixels, persistent=False)
        self.stem = HexConv(atlases[0], CHANNELS, features)
        self.downs = nn.ModuleList(
            ResBlock(atlas, a, a, b)
            for atlas, (a, b) in zip(atlases[1:], pairwise(widths), strict=True)
        )
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for k in reversed(range(level)):
            self.ups.append(Up(atlases[k + 1], atlases[k], widths[k]))
            self.blocks.append(ResBlock(atlases[k], 2 * widths[k], outs[k], outs[k], pool=False))
        self.head = HexConv(atlases[0], features, LABELS)
        self.spread = SparseOperator(pixels_to_vertices(atlases[0]))

    def forward(self, x: Tensor) -> Tensor:
        checked(x, CHANNELS, self.vertices, "HexRUNet")
        y = self.stem(x[:, :, self.pixels].permute(2, 0, 1).reshape(-1, CHANNELS))
        skips = [y]
        for down in self.downs:
            y = down(y)
            skips.append(y)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips[:-1]), strict=True):
            y = block(torch.cat([skip, up(y)], dim=1))
        y = self.head(y).view(self.spread.shape[1], -1)
        return self.spread(y).view(-1, len(x), LABELS).permute(1, 2, 0)
