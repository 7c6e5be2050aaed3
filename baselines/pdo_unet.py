"""PDO-eS2CNN for segmentation (Table 2): at most 860,000 parameters. The paper gives that budget
and no layer table; the network is ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.inputs import checked
from baselines.rooms import CHANNELS, LABELS
from pdo.activation import FieldNormReLU
from pdo.layers import PDOConv, Pool, Unpool
from pdo.mesh import Icosphere
from pdo.precision import full_precision

WIDTHS = (8, 16, 32, 64, 88)
"""Fields at the input's level and at each coarser one, down to level 1."""


class Block(nn.Module):
    """y = act(conv(x)), then act(conv(y) + y).

    Shapes: (V, N, C_in, B) -> (V, N, C_out, B).
    """

    def __init__(self, mesh: Icosphere, fields: int, out: int, orders: int, samples: int) -> None:
        super().__init__()
        self.conv1 = PDOConv(mesh, fields, out, orders)
        self.conv2 = PDOConv(mesh, out, out, orders)
        self.act1, self.act2 = (FieldNormReLU(out, orders, samples) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.conv1(x))
        return self.act2(self.conv2(y) + y)


class PDOUNet(nn.Module):
    """Residual U-Net of PDO layers, equivariant to rotations up to the discretisation.

    A lifting layer, then on each coarser mesh a `Block`; back by `Unpool`, beside the encoder's
    fields, and one layer. At each vertex a perceptron sees what does not depend on the frame there:
    of each field the mode 0 and the moduli of the others.

    Args:
        level: icosphere level of the input.
        widths: fields at that level, at the next coarser one, and so on; None: WIDTHS as far as
            level 1.
        orders, samples: see `pdo.networks.PDOeS2CNN`.

    Shapes: (batch, 4, V) -> (batch, 15, V).

    Raises:
        ValueError: if the level is too coarse for the widths, or an input is not (batch, 4, V).
    """

    def __init__(
        self,
        level: int = 5,
        widths: Sequence[int] | None = None,
        orders: int = 2,
        samples: int = 10,
    ) -> None:
        super().__init__()
        widths = WIDTHS[: max(level, 1)] if widths is None else widths
        if level < len(widths) - 1:
            raise ValueError(f"level {level} is too coarse for {len(widths)} levels of layers")
        meshes = [Icosphere(level - k) for k in range(len(widths))]
        self.vertices = len(meshes[0])
        self.lift = PDOConv(meshes[0], CHANNELS, widths[0], orders, input_orders=0)
        self.act = FieldNormReLU(widths[0], orders, samples)
        self.pools, self.downs = nn.ModuleList(), nn.ModuleList()
        self.unpools, self.ups = nn.ModuleList(), nn.ModuleList()
        for k in range(1, len(widths)):
            self.pools.append(Pool(meshes[k - 1], meshes[k], orders))
            self.downs.append(Block(meshes[k], widths[k - 1], widths[k], orders, samples))
        for k in reversed(range(len(widths) - 1)):
            both = widths[k] + widths[k + 1]
            self.unpools.append(Unpool(meshes[k + 1], meshes[k], orders))
            self.ups.append(
                nn.Sequential(
                    PDOConv(meshes[k], both, widths[k], orders),
                    FieldNormReLU(widths[k], orders, samples),
                )
            )
        self.head = nn.Sequential(
            nn.BatchNorm1d((orders + 1) * widths[0]),
            nn.Linear((orders + 1) * widths[0], 64),
            nn.ReLU(),
            nn.Linear(64, LABELS),
        )

    def forward(self, x: Tensor) -> Tensor:
        checked(x, CHANNELS, self.vertices, "PDO-eS2CNN")
        y = self.act(self.lift(x.permute(2, 1, 0).unsqueeze(1).contiguous()))
        skips = [y]
        for pool, down in zip(self.pools, self.downs, strict=True):
            y = down(pool(y))
            skips.append(y)
        for unpool, up, skip in zip(self.unpools, self.ups, reversed(skips[:-1]), strict=True):
            y = up(torch.cat([skip, unpool(y)], dim=2))
        with full_precision(x):
            features = invariants(y).permute(0, 2, 1)  # (V, B, features)
            return (
                self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2]).permute(1, 2, 0)
            )


def invariants(field: Tensor) -> Tensor:
    """Mode 0 and the moduli of the others, at each vertex: (V, 2 M + 1, C, B) ->
    (V, (M + 1) C, B). Moduli are softened at 0, sqrt(|f|^2 + 1e-6), for their gradients' sake."""
    pairs = field[:, 1:].unflatten(1, (-1, 2))
    moduli = (pairs.square().sum(dim=2) + 1e-6).sqrt()
    return torch.cat([field[:, :1], moduli], dim=1).flatten(1, 2)
