"""PDO-eS2CNN: the networks of the paper's Table 1, within its parameter budgets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from pdo.activation import FieldNormReLU
from pdo.layers import InvariantReadout, PDOConv, Pool
from pdo.mesh import Icosphere
from pdo.precision import full_precision
from pdo.stencils import STENCILS

SMALL = ((4,), (16,), (24, 24), (32, 34))
LARGE = ((6,), (28,), (40, 40), (48, 52))


class PDOeS2CNN(nn.Module):
    """Classifier of signals on an icosphere, invariant to rotations up to the discretisation.

    A lifting layer, then group layers; each followed by a FieldNormReLU. `widths` lists the
    fields of the layers at the input's level, then those at the next coarser one, and so on, with
    an anti-aliased pooling between. An invariant read-out and a small perceptron end it.

    Args:
        level: icosphere level of the input; `len(widths) - 1` coarser ones are used.
        widths: fields of each layer, grouped by level, finest first.
        channels: of the input signal.
        classes: length of the output.
        orders: fibre modes |n| <= orders are kept (N = 2 orders + 1 samples in the direct form).
        samples: orientations at which the nonlinearity is evaluated; a multiple of 10 makes the
            network exactly invariant to the 60 rotations of the icosahedron.
        hidden: width of the perceptron's one hidden layer.
        dropout: probability of it, before the perceptron's last layer.
        stencil: "smoothed", "gaussian", or "paper" for the nearest-ring fit of the paper.
        transport: carry neighbours' fibres to the frame at P. Without it (for comparison) layers
            are equivariant only where frames happen to agree.
        smooth_pooling: smooth before subsampling; else (for comparison) just subsample.

    `mesh` is the icosphere of the input.

    Shapes: (batch, channels, V) -> (batch, classes), logits; V = 10 * 4**level + 2.

    Raises:
        ValueError: if the stencil is unknown, the level is too coarse for the widths, orders are
            below 0, `samples` is below 2 orders + 1, or the input has another shape.
        TypeError: if the input is not in the network's precision, float32 or float64.

    Source: Shen, Shen, Lin, Ma (AAAI 2021), Table 1; widths, stencil and read-out are ours.
    """

    def __init__(
        self,
        level: int = 4,
        widths: Sequence[Sequence[int]] = SMALL,
        channels: int = 1,
        classes: int = 10,
        orders: int = 2,
        samples: int = 10,
        hidden: int = 64,
        dropout: float = 0.0,
        stencil: str = "smoothed",
        transport: bool = True,
        smooth_pooling: bool = True,
    ) -> None:
        super().__init__()
        if stencil not in STENCILS:
            raise ValueError(f"unknown stencil {stencil!r} (valid: {', '.join(STENCILS)})")
        spec = STENCILS[stencil]
        if level < len(widths) - 1:
            raise ValueError(f"level {level} is too coarse for {len(widths)} levels of layers")
        meshes = [Icosphere(level - i) for i in range(len(widths))]
        layers: list[nn.Module] = []
        fields, input_orders = channels, 0
        for i, (mesh, group) in enumerate(zip(meshes, widths, strict=True)):
            if i > 0:
                layers.append(Pool(meshes[i - 1], mesh, orders, transport, smooth_pooling))
            for width in group:
                layers.append(PDOConv(mesh, fields, width, orders, input_orders, spec, transport))
                layers.append(FieldNormReLU(width, orders, samples))
                fields, input_orders = width, orders
        self.mesh, self.channels = meshes[0], channels
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
        invariants = self.invariants(x)
        with full_precision(x):
            return self.head(invariants)

    def invariants(self, x: Tensor) -> Tensor:
        """The pooled features, (batch, fields of the last layer)."""
        return self.readout(self.features(self._as_field(x)))

    def fields(self, x: Tensor) -> list[Tensor]:
        """The last field of each level, finest first, each (V, N, fields, batch)."""
        field, found = self._as_field(x), []
        for layer in self.features:
            if isinstance(layer, Pool):
                found.append(field)
            field = layer(field)
        return [*found, field]

    def _as_field(self, x: Tensor) -> Tensor:
        """Signals (batch, channels, V) as a field of order 0: (V, 1, channels, batch)."""
        if x.dim() != 3 or x.shape[1:] != (self.channels, len(self.mesh)):
            raise ValueError(
                f"a network of level {self.mesh.level} takes signals (batch, {self.channels}, "
                f"{len(self.mesh)}), not {tuple(x.shape)}"
            )
        return x.permute(2, 1, 0).unsqueeze(1).contiguous()


pdo_es2cnn_small = partial(PDOeS2CNN, widths=SMALL)
"""PDO-eS2CNN-small: `PDOeS2CNN` with 72,370 parameters at its defaults, of the paper's 73,000;
for Spherical MNIST (Table 1)."""

pdo_es2cnn_large = partial(PDOeS2CNN, widths=LARGE)
"""PDO-eS2CNN-large: `PDOeS2CNN` with 179,906 parameters at its defaults, of the paper's 180,000;
for Spherical MNIST (Table 1)."""
