"""Icosahedral CNN for Spherical MNIST (Cohen, Weiler, Kicanaoglu, Welling, ICML 2019).

A regular field has a value for each vertex and each of the six directions of `baselines.charts`
there. A rotation of the icosahedron moves vertices and directions: it permutes the field, and every
layer commutes with all 60. At the icosahedron's corners, where there are five directions, fields
are zero, which here means that they leave the corners out.

Layout of a field: (vertex, batch, direction, channel), the vertices those of the mesh from the 13th
on, so that the vertices of a coarser mesh are the first ones. What a convolution reads at a vertex
is then rows of memory, and one large product mixes them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from baselines.charts import CORNERS, Atlas
from baselines.inputs import checked

WIDTHS_AND_STRIDES = ((8, 1), (16, 2), (16, 1), (24, 2), (24, 1), (32, 2), (64, 1))
"""Fields and stride of each convolution."""


class Seen(nn.Module):
    """A field's values at some vertices, seen from others: at place (p, k) those of vertex q(p, k),
    where direction m at p is called m + turn(p, k); 0 if q is a corner.

    Args:
        vertex: q, numbered as in the mesh, (P, K).
        turn: (P, K), in 0..5.
        vertices: of the mesh that the field is on.
        directions: of the field, 6, or 1 for a signal without any.

    Shapes: (V, B, directions, C) -> (P, B, K, directions, C), V = vertices - 12.
    """

    row: Tensor
    vertex: Tensor
    direction: Tensor

    def __init__(
        self, vertex: np.ndarray, turn: np.ndarray, vertices: int, directions: int = 6
    ) -> None:
        super().__init__()
        vertex, turn = vertex - CORNERS, turn % directions
        # Directions change their names at the seams between charts alone. Fields are renamed there,
        # once for each (vertex, turn), and a row of zeros stands for the corners.
        turned = (vertex >= 0) & (turn > 0)
        pairs = np.column_stack([vertex[turned], turn[turned]])
        pairs, which = np.unique(pairs, axis=0, return_inverse=True)
        row = np.where(vertex >= 0, vertex, vertices - CORNERS + len(pairs))
        row[turned] = vertices - CORNERS + which.ravel()
        direction = (np.arange(directions) + pairs[:, 1:]) % directions
        for name, index in (("row", row), ("vertex", pairs[:, 0]), ("direction", direction)):
            self.register_buffer(name, torch.from_numpy(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _, batch, directions, channels = x.shape
        sample = torch.arange(batch, device=x.device)[:, None]
        place = (self.vertex[:, None, None] * batch + sample) * directions
        renamed = rows(x.reshape(-1, channels), place + self.direction[:, None])
        x = torch.cat([x, renamed, x.new_zeros(1, *x.shape[1:])])
        seen = rows(x.view(-1, directions * channels), self.row[:, None] * batch + sample)
        return seen.unflatten(-1, (directions, channels))


def rows(matrix: Tensor, index: Tensor) -> Tensor:
    """matrix[index], (n, C) and (...) -> (..., C), by torch's look-up of embeddings: of all ways to
    write this the one whose gradient is fast on a CPU, and the same in every run on a GPU."""
    return nn.functional.embedding(index, matrix)


def neighbourhoods(atlas: Atlas, out_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of the first `out_vertices` vertices that are no corners: itself and its neighbours
    in the six directions, and the turns towards them, (P, 7) each, for `Seen`."""
    vertex = np.arange(CORNERS, out_vertices)
    around = np.column_stack([vertex, atlas.neighbours[vertex]])
    return around, np.column_stack([np.zeros_like(vertex), atlas.turns[vertex]])


def turned_kernels(directions: int) -> np.ndarray:
    """Which kernel weight meets which input, (6, 7 directions), both numbered (s, m): s = 0 for the
    vertex itself, d + 1 for its neighbour in direction d, and m the direction there. For direction
    k of the output the kernel is turned by k sixths, so that its arm d reaches to d + k, and its
    direction m to m + k."""
    k, arm, m = np.ogrid[:6, :6, :directions]
    turned_m = (m - k) % directions
    arms = (1 + (arm - k) % 6) * directions + turned_m
    return np.concatenate([turned_m, arms], axis=1).reshape(6, -1)


class HexGroupConv(nn.Module):
    """Gauge equivariant convolution, from a signal or a regular field to a regular field:

    y(p, k) = b + sum over m of [ C(m - k) x(p, m) + sum over d of W(d - k, m - k) x(q_d, m) ]

    with q_d the neighbour of p in direction d, and x(q_d, m) meant in the directions of p (S2R and
    R2R layers of the paper; 7 * directions weights per pair of fields). `directions`, 1 or 6, are
    those of the input. `stride` 2 keeps the vertices of the next coarser mesh.

    Shapes: (V, B, directions, C_in) -> (V', B, 6, C_out), corners left out.
    """

    def __init__(
        self, atlas: Atlas, in_fields: int, out_fields: int, directions: int = 6, stride: int = 1
    ) -> None:
        super().__init__()
        level = atlas.mesh.level if stride == 1 else atlas.mesh.level - 1
        out_vertices = 10 * 4**level + 2
        around, turn = neighbourhoods(atlas, out_vertices)
        self.seen = Seen(around, turn, len(atlas.mesh), directions)
        index = torch.from_numpy(turned_kernels(directions))
        self.register_buffer("turned", index, persistent=False)
        fan_in = 7 * directions * in_fields
        weight = torch.randn(7 * directions, out_fields, in_fields)
        self.weight = nn.Parameter(weight * math.sqrt(2 / fan_in))
        self.bias = nn.Parameter(torch.zeros(out_fields))

    def forward(self, x: Tensor) -> Tensor:
        # (6, 7 directions, C_out, C_in) -> matrix (6 C_out, 7 directions C_in)
        kernels = self.weight[self.turned].transpose(1, 2).flatten(2).flatten(0, 1)
        out = nn.functional.linear(self.seen(x).flatten(2), kernels, self.bias.repeat(6))
        return out.unflatten(2, (6, -1))


class FieldNorm(nn.BatchNorm1d):
    """Batch norm with one mean, variance, scale and shift for each field, whatever the direction.

    Shapes: (V, B, 6, C) -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 2)).view_as(x)


class IcosahedralCNN(nn.Module):
    """Classifier of signals on the icosphere, invariant to the 60 rotations of the icosahedron.

    Seven convolutions with batch norm and ReLU, 8-16-16-24-24-32-64 fields, from the level of the
    input to three levels below, but not below level 1, where 30 vertices are no corners: at level 3
    the last stride is 1. Then the maximum over directions and vertices, and a small perceptron.
    182,218 parameters at any level.

    Shapes: (batch, 1, V) -> logits (batch, n_classes).

    Raises:
        ValueError: if `level` is below 1, or an input is not (batch, 1, V).
    """

    def __init__(self, level: int = 4, n_classes: int = 10) -> None:
        super().__init__()
        if level < 1:
            raise ValueError(
                f"IcosahedralCNN leaves the icosahedron's corners out: level must be at least 1, "
                f"not {level}"
            )
        self.vertices = 10 * 4**level + 2
        layers: list[nn.Module] = []
        fields, directions = 1, 1
        for width, stride in WIDTHS_AND_STRIDES:
            stride = stride if level > 1 else 1
            layers += [
                HexGroupConv(Atlas(level), fields, width, directions, stride),
                FieldNorm(width),
                nn.ReLU(inplace=True),
            ]
            fields, directions, level = width, 6, level - (stride - 1)
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.BatchNorm1d(fields),
            nn.Linear(fields, 64),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(64),
            nn.Linear(64, 32),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(32),
            nn.Linear(32, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.invariants(x))

    def invariants(self, x: Tensor) -> Tensor:
        """The features maximised over directions and vertices, (batch, 64)."""
        checked(x, 1, self.vertices, "IcosahedralCNN")
        signal = x[:, :, CORNERS:].permute(2, 0, 1)[:, :, None]
        return self.features(signal).amax(dim=(0, 2))
