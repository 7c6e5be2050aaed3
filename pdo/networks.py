"""PDO-eS2CNN: the networks of the paper's Table 1, within its parameter budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pdo.activation import FieldNormReLU
from pdo.layers import InvariantReadout, PDOConv, Pool
from pdo.mesh import Icosphere
from pdo.stencils import SMOOTHED, StencilSpec

SMALL = ((8,), (16, 16), (28, 28, 44))
LARGE = ((12,), (28, 28), (44, 44, 64))


class PDOeS2CNN(nn.Module):
    """Classifier of signals on an icosphere, invariant to rotations up to the discretisation.

    A lifting layer, then group layers; each followed by a FieldNormReLU. `widths` lists the
    fields of the layers at the input's level, then those at the next coarser one, and so on, with
    an anti-aliased pooling between. An invariant read-out and a small perceptron end it.

    Args:
        level: icosphere level of the input; `len(widths) - 1` coarser ones are used.
        widths: fields of each layer, grouped by level, finest first.
        orders: fibre modes |n| <= orders are kept (N = 2 orders + 1 samples in the direct form).
        samples: orientations at which the nonlinearity is evaluated; a multiple of 10 makes the
            network exactly invariant to the 60 rotations of the icosahedron.

    Shapes: (batch, channels, V) -> (batch, classes).
    """

    def __init__(
        self,
        level: int,
        widths: Sequence[Sequence[int]],
        channels: int = 1,
        classes: int = 10,
        orders: int = 2,
        samples: int = 10,
        hidden: int = 64,
        dropout: float = 0.0,
        stencil: StencilSpec = SMOOTHED,
    ) -> None:
        super().__init__()
        if level < len(widths) - 1:
            raise ValueError(f"level {level} is too coarse for {len(widths)} levels of layers")
        meshes = [Icosphere(level - i) for i in range(len(widths))]
        layers: list[nn.Module] = []
        fields, input_orders = channels, 0
        for i, (mesh, group) in enumerate(zip(meshes, widths, strict=True)):
            if i > 0:
                layers.append(Pool(meshes[i - 1], mesh, orders))
            for width in group:
                layers.append(PDOConv(mesh, fields, width, orders, input_orders, stencil))
                layers.append(FieldNormReLU(width, orders, samples))
                fields, input_orders = width, orders
        self.features = nn.Sequential(*layers)
        self.readout = InvariantReadout(meshes[-1])
        self.head = nn.Sequential(
            nn.BatchNorm1d(fields),
            nn.Linear(fields, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.invariants(x))

    def invariants(self, x: Tensor) -> Tensor:
        """The pooled features, (batch, fields of the last layer)."""
        return self.readout(self.features(_as_field(x)))

    def fields(self, x: Tensor) -> list[Tensor]:
        """The last field of each level, finest first, each (V, N, fields, batch)."""
        field, found = _as_field(x), []
        for layer in self.features:
            if isinstance(layer, Pool):
                found.append(field)
            field = layer(field)
        return [*found, field]


def _as_field(x: Tensor) -> Tensor:
    """Signals (batch, channels, V) as a field of order 0: (V, 1, channels, batch)."""
    return x.permute(2, 1, 0).unsqueeze(1).contiguous()


def pdo_es2cnn_small(level: int = 4, **options: Any) -> PDOeS2CNN:
    """PDO-eS2CNN-small: at most 73,000 parameters, for Spherical MNIST (Table 1)."""
    return PDOeS2CNN(level, SMALL, **options)


def pdo_es2cnn_large(level: int = 4, **options: Any) -> PDOeS2CNN:
    """PDO-eS2CNN-large: at most 180,000 parameters, for Spherical MNIST (Table 1)."""
    return PDOeS2CNN(level, LARGE, **options)
