"""UGSCNN's spherical U-Net for segmentation (Jiang et al., ICLR 2019; Table 2). Layout as in
`baselines.ugscnn`: (vertex x batch, channel), vertices first."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from baselines.inputs import checked
from baselines.rooms import CHANNELS, LABELS
from baselines.ugscnn import MeshConv, ResBlock
from pdo.mesh import Icosphere


class UpConv(nn.Module):
    """New vertices are set to 1, as published, then a MeshConv on the finer mesh.

    Shapes: (V B, C) -> (V' B, C).
    """

    def __init__(self, mesh: Icosphere, channels: int) -> None:
        super().__init__()
        self.vertices = len(mesh)
        self.conv = MeshConv(mesh, channels, channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        new = x.new_ones(self.vertices * batch - len(x), x.shape[1])
        return self.conv(torch.cat([x, new]))


class UGSCNNUNet(nn.Module):
    """Residual U-Net from the input's level down to level 0 and back.

    A MeshConv to `features` = f channels, then residual blocks to 2f, 4f, 8f, 16f, 16f, ...
    channels on coarser and coarser meshes; each way back is an UpConv, whose result stands beside
    the encoder's, and a residual block. 5,180,239 parameters at level 5 with f = 32, as published;
    at another level there are as many blocks as levels, the last of which does not widen either.

    Shapes: (batch, 4, V) -> (batch, 15, V).

    Raises:
        ValueError: if `level` is below 1, or an input is not (batch, 4, V).
    """

    def __init__(self, level: int = 5, features: int = 32) -> None:
        super().__init__()
        if level < 1:
            raise ValueError(f"UGSCNN has nothing to coarsen at level {level}: take 1 or more")
        meshes = [Icosphere(level - k) for k in range(level + 1)]
        widths = [features * 2 ** min(k, level - 1, 4) for k in range(level + 1)]
        outs = [features, *widths[:-2]]  # of the decoders, finest first
        self.vertices = len(meshes[0])
        self.stem = MeshConv(meshes[0], CHANNELS, features)
        self.downs = nn.ModuleList(
            ResBlock(mesh, a, a, b)
            for mesh, (a, b) in zip(meshes[1:], pairwise(widths), strict=True)
        )
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for k in reversed(range(level)):
            self.ups.append(UpConv(meshes[k], widths[k]))
            self.blocks.append(ResBlock(meshes[k], 2 * widths[k], outs[k], outs[k]))
        self.head = MeshConv(meshes[0], features, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(checked(x, CHANNELS, self.vertices, "UGSCNN"))
        y = self.stem(x.permute(2, 0, 1).reshape(-1, CHANNELS))
        skips = [y]
        for down in self.downs:
            y = down(y, batch)
            skips.append(y)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips[:-1]), strict=True):
            y = block(torch.cat([skip, up(y, batch)], dim=1), batch)
        return self.head(y).unflatten(0, (-1, batch)).permute(1, 2, 0)
