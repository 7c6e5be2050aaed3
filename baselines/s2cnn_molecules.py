"""S2CNN for atomization energies (Cohen, Geiger, Koehler, Welling, ICLR 2018; Table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.harmonics import SO3Analysis, SO3Synthesis, as_buffer, quadrature_weights
from baselines.inputs import checked
from baselines.molecules import ELEMENTS, AtomSum
from baselines.s2cnn import S2Conv, SO3Conv

BANDWIDTHS = (10, 8, 6, 4)
FEATURES = (20, 40, 60, 80)


class Norm(nn.BatchNorm1d):
    """Batch norm of signals on SO(3), (2 b, 2 b, 2 b, batch, C), over all axes but the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 3)).view(x.shape)


class Lift(nn.Module):
    """Channels mixed on the sphere, and the same for all gamma: (batch, C_in, 4 b^2) ->
    (2 b, 2 b, 2 b, batch, C_out)."""

    def __init__(self, bandwidth: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.size = 2 * bandwidth
        self.mix = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (self.size, self.size)).permute(3, 2, 0, 1)  # alpha, beta, batch, C
        return self.mix(x)[:, None].expand(-1, self.size, -1, -1, -1)


class Lower(nn.Module):
    """Channels mixed, and degrees l >= b_out cut off: (2 b_in, 2 b_in, 2 b_in, batch, C_in) ->
    (2 b_out, 2 b_out, 2 b_out, batch, C_out)."""

    def __init__(self, b_in: int, b_out: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.analysis, self.synthesis = SO3Analysis(b_in, b_out), SO3Synthesis(b_out)
        self.mix = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[3]
        coefficients = self.analysis(x.flatten(3)).unflatten(3, (batch, -1))
        return self.synthesis(self.mix(coefficients).flatten(3)).unflatten(3, (batch, -1))


class ResBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    The first convolution goes from b_in to b_out and from C_in to C_out, and so does the shortcut,
    which mixes channels only. `on_sphere`: x is a signal on the sphere (and b_in = b_out).
    """

    def __init__(
        self, b_in: int, b_out: int, in_channels: int, out_channels: int, on_sphere: bool = False
    ) -> None:
        super().__init__()
        first = S2Conv if on_sphere else SO3Conv
        self.conv1 = first(b_in, b_out, in_channels, out_channels)
        self.conv2 = SO3Conv(b_out, b_out, out_channels, out_channels)
        self.norm1, self.norm2 = Norm(out_channels), Norm(out_channels)
        if on_sphere:
            self.shortcut = Lift(b_in, in_channels, out_channels)
        else:
            self.shortcut = Lower(b_in, b_out, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu_()
        return (self.norm2(self.conv2(y)) + self.shortcut(x)).relu_()


class ResidualS2CNN(nn.Module):
    """Four residual blocks of bandwidths 10, 8, 6, 4 with 20, 40, 60, 80 features, and the mean
    over SO(3).

    Shapes: (batch, 5, 400), points of the grid latlon10, -> (batch, 80).

    Raises:
        ValueError: if an input is not (batch, 5, 400).
    """

    def __init__(self) -> None:
        super().__init__()
        bandwidths, features = (BANDWIDTHS[0], *BANDWIDTHS), (len(ELEMENTS), *FEATURES)
        self.blocks = nn.Sequential(
            *(
                ResBlock(*bandwidths[i : i + 2], *features[i : i + 2], on_sphere=i == 0)
                for i in range(len(BANDWIDTHS))
            )
        )
        last = BANDWIDTHS[-1]
        means = quadrature_weights(last) / (2 * last) ** 2
        self.register_buffer("means", as_buffer(means), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        points = 4 * BANDWIDTHS[0] ** 2
        checked(x, len(ELEMENTS), points, "S2CNN")
        return torch.einsum("j,jbc->bc", self.means, self.blocks(x).sum(dim=(0, 1)))


class MoleculeS2CNN(AtomSum):
    """`AtomSum` of the invariants of a residual S2CNN on the signal round each atom.

    Args:
        level: of the task's meshes; without effect, the grid is latlon10 at any.

    Shapes: Molecules with signals (A, 5, 400) -> (B,), kcal/mol.
    """

    def __init__(self, level: int = 2) -> None:
        super().__init__(ResidualS2CNN(), FEATURES[-1])
