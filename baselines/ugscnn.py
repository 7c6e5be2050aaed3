"""UGSCNN for Spherical MNIST (Jiang, Huang, Kashinath, Prabhat, Marcus, Niessner, ICLR 2019).

Layout of a field inside the network: (vertex x batch, channel), as of `OperatorConv`. Vertices come
first, so keeping those of a coarser mesh is a slice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from baselines.inputs import checked
from baselines.mesh_operators import cotangent_laplacian, east_north_derivatives
from baselines.normed_linear import normed_linear
from baselines.operator_conv import OperatorConv
from pdo.mesh import Icosphere


class MeshConv(OperatorConv):
    """out = sum over input channels of (c0 I + c1 L + c2 d_east + c3 d_north) x, plus a bias.

    L is the cotangent Laplacian without division by areas; 4 coefficients per channel pair.

    Shapes: (V B, C_in) -> (V B, C_out), rows ordered by vertex.
    """

    def __init__(self, mesh: Icosphere, in_channels: int, out_channels: int) -> None:
        identity = sparse.eye_array(len(mesh), format="csr")
        operators = [identity, cotangent_laplacian(mesh), *east_north_derivatives(mesh)]
        super().__init__(operators, in_channels, out_channels)


class ResBlock(nn.Module):
    """Residual bottleneck that first restricts its input to the vertices of `mesh`, its own mesh or
    a coarser one.

    relu(main(x) + shortcut(x)) with main = 1x1 -> MeshConv -> 1x1 and shortcut = 1x1, each followed
    by batch norm and, inside main, ReLU.

    Shapes: (V B, C_in) -> (V' B, C_out), V' vertices in `mesh`.
    """

    def __init__(self, mesh: Icosphere, in_channels: int, neck: int, out_channels: int) -> None:
        super().__init__()
        self.vertices, self.widens = len(mesh), out_channels > max(in_channels, neck)
        self.main = nn.Sequential(
            nn.Linear(in_channels, neck),
            nn.BatchNorm1d(neck),
            nn.ReLU(inplace=True),
            MeshConv(mesh, neck, neck),
            nn.BatchNorm1d(neck),
            nn.ReLU(inplace=True),
            nn.Linear(neck, out_channels),
            nn.BatchNorm1d(out_channels),
        )
        # The original restricts after this 1x1; the two commute, and here fewer rows are mixed.
        self.shortcut = nn.Sequential(
            nn.Linear(in_channels, out_channels), nn.BatchNorm1d(out_channels)
        )

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = x[: self.vertices * batch]
        h = self.main[:6](x)
        if not self.widens:
            return (self.main[6:](h) + self.shortcut(x)).relu_()
        weight, bias = normed_linear(h, *self.main[6:])
        side_weight, side_bias = normed_linear(x, *self.shortcut)
        both = torch.cat([h, x], dim=1), torch.cat([weight, side_weight], dim=1)
        return F.linear(*both, bias + side_bias).relu_()


class UGSCNN(nn.Module):
    """Classifier of signals on the icosphere: level -> level - 1 -> level - 2, channels 16-64-256,
    mean over the vertices left, dropout, linear. 61,658 parameters at any level.

    Shapes: (batch, 1, V) -> logits (batch, n_classes).

    Raises:
        ValueError: if `level` is below 2, or an input is not (batch, 1, V).
    """

    def __init__(self, level: int = 4, n_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        if level < 2:
            raise ValueError(
                f"UGSCNN coarsens its mesh twice: level must be at least 2, not {level}"
            )
        fine, middle, coarse = (Icosphere(level - step) for step in range(3))
        self.vertices = len(fine)
        self.stem = nn.Sequential(MeshConv(fine, 1, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True))
        self.block1 = ResBlock(middle, 16, 16, 64)
        self.block2 = ResBlock(coarse, 64, 64, 256)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(256, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.invariants(x))

    def invariants(self, x: Tensor) -> Tensor:
        """The features averaged over the vertices, (batch, 256)."""
        checked(x, 1, self.vertices, "UGSCNN")
        batch = len(x)
        # Batch norm wants all vertices, but the first block only those of the next mesh.
        conv, norm, _ = self.stem
        terms = conv.terms_of(x[:, 0].T.reshape(-1, 1))
        folded = normed_linear(terms, conv.mix, norm)
        y = F.linear(terms[: self.block1.vertices * batch], *folded).relu_()
        y = self.block2(self.block1(y, batch), batch)
        # The gradient of `mean` would be written out for every vertex, that of `sum` is not.
        return y.unflatten(0, (-1, batch)).sum(dim=0) / self.block2.vertices
