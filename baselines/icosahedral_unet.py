"""Icosahedral CNN for segmentation (Cohen, Weiler, Kicanaoglu, Welling, ICML 2019; Table 2).
Regular fields and their layout are those of `baselines.icosahedral_cnn`."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from baselines.charts import CORNERS, Atlas
from baselines.icosahedral_cnn import FieldNorm, HexGroupConv, Seen, neighbourhoods
from baselines.inputs import checked
from baselines.rooms import CHANNELS, LABELS
from pdo.mesh import Icosphere
from pdo.sparse import SparseOperator

WIDTHS = (8, 8, 16, 32, 64)
"""Fields at the input's level and at each coarser one."""


class Upsampling(nn.Module):
    """A regular field on the next coarser mesh, interpolated linearly on this one: a vertex keeps
    its value, the new one on an edge has the mean of the ends that are no corners, in its own
    directions.

    Shapes: (V, B, 6, C) -> (V', B, 6, C).
    """

    def __init__(self, fine: Atlas) -> None:
        super().__init__()
        coarse = 10 * 4 ** (fine.mesh.level - 1) + 2
        around, turn = neighbourhoods(fine, len(fine.mesh))
        # First and last of what is known around: the ends of an edge, twice the same if the other
        # is a corner; of an old vertex itself, since all its neighbours are new.
        known = (around >= CORNERS) & (around < coarse)
        ends = np.column_stack([known.argmax(axis=1), 6 - known[:, ::-1].argmax(axis=1)])
        self.ends = Seen(*(np.take_along_axis(a, ends, axis=1) for a in (around, turn)), coarse)

    def forward(self, x: Tensor) -> Tensor:
        return self.ends(x).mean(dim=2)


def corner_means(mesh: Icosphere) -> sparse.csr_array:
    """Values at all vertices from those that are no corners, (V, V - 12): a corner has the mean of
    its neighbours."""
    at_corners = mesh.adjacency[:CORNERS, CORNERS:].astype(float)
    kept = sparse.eye_array(len(mesh) - CORNERS)
    return sparse.vstack([at_corners / 5, kept], format="csr")


class ResBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + norm(mix(x))); with stride 2 the first convolution,
    and the mix, keep the vertices of the next coarser mesh.

    Shapes: (V, B, 6, C) -> (V', B, 6, C').
    """

    def __init__(self, fine: Atlas, coarse: Atlas, in_fields: int, out_fields: int) -> None:
        super().__init__()
        stride = 1 if fine is coarse else 2
        self.main = nn.Sequential(
            HexGroupConv(fine, in_fields, out_fields, stride=stride),
            FieldNorm(out_fields),
            nn.ReLU(inplace=True),
            HexGroupConv(coarse, out_fields, out_fields),
            FieldNorm(out_fields),
        )
        self.vertices = len(coarse.mesh) - CORNERS
        mix = nn.Linear(in_fields, out_fields, bias=False)
        self.shortcut = nn.Sequential(mix, FieldNorm(out_fields))

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.shortcut(x[: self.vertices])).relu()


class IcosahedralUNet(nn.Module):
    """Residual U-Net of gauge equivariant convolutions, equivariant to the 60 rotations of the
    icosahedron.

    8 fields at the input's level, then 8, 16, 32, 64 on coarser meshes (not below level 1, so that
    level 3 has two of them), back by linear interpolation beside the encoder's fields, the maximum
    over directions, a 1x1. What is said of a corner is the mean of what is said of its neighbours.

    Shapes: (batch, 4, V) -> (batch, 15, V).

    Raises:
        ValueError: if `level` is below 2, or an input is not (batch, 4, V).
    """

    def __init__(self, level: int = 5) -> None:
        super().__init__()
        if level < 2:
            raise ValueError(
                f"IcosahedralCNN has nothing to coarsen at level {level}: take 2 or more"
            )
        widths = WIDTHS[:level]
        atlases = [Atlas(level - k) for k in range(len(widths))]
        self.vertices = len(atlases[0].mesh)
        self.stem = nn.Sequential(
            HexGroupConv(atlases[0], CHANNELS, widths[0], directions=1),
            FieldNorm(widths[0]),
            nn.ReLU(inplace=True),
        )
        steps = list(zip(atlases[:-1], atlases[1:], widths[:-1], widths[1:], strict=True))
        self.downs = nn.ModuleList(ResBlock(*step) for step in steps)
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for fine, _, few, many in reversed(steps):
            self.ups.append(Upsampling(fine))
            self.blocks.append(ResBlock(fine, fine, few + many, few))
        self.head = nn.Linear(widths[0], LABELS)
        self.spread = SparseOperator(corner_means(atlases[0].mesh))

    def forward(self, x: Tensor) -> Tensor:
        signal = checked(x, CHANNELS, self.vertices, "IcosahedralCNN")[:, :, CORNERS:]
        y = self.stem(signal.permute(2, 0, 1)[:, :, None])
        skips = [y]
        for down in self.downs:
            y = down(y)
            skips.append(y)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips[:-1]), strict=True):
            y = block(torch.cat([skip, up(y)], dim=3))
        y = self.head(y.amax(dim=2))
        return self.spread(y.flatten(1)).view(-1, *y.shape[1:]).permute(1, 2, 0)
