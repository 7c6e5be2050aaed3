"""S2CNN for Spherical MNIST (Cohen, Geiger, Koehler, Welling, ICLR 2018).

A filter is a sum of point masses w_i near the identity, and a layer correlates with it:

    S2 layer:     out(R) = sum over i of w_i f(R x_i),    x_i on the sphere,
    SO(3) layer:  out(R) = sum over i of w_i f(R Q_i),    Q_i rotations,

with f cut off at the output's bandwidth. In coefficients: x^l_m is the mean of f R^l_m0 over the
sphere, X^l_mn that of f R^l_mn over SO(3), and with

    S2 layer:     y^l_n = sum over i of w_i R^l_n0(x_i),     out^l_mn = x^l_m y^l_n,
    SO(3) layer:  y^l_nk = sum over i of w_i R^l_nk(Q_i),    out^l = X^l (y^l)^T:

one matrix product for each degree. Channels are summed over, and several channels come out.

Everything is real (`baselines.harmonics`), so a layer is matrix products only: no FFT is faster at
these bandwidths. Layout inside: coefficients (m, n, l, sample, channel), samples
(alpha, gamma, beta, sample, channel).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from baselines.harmonics import (
    SO3Analysis,
    SO3Synthesis,
    as_buffer,
    quadrature_weights,
    real_harmonics,
    real_wigner,
    soft_points,
    stack_degrees,
)
from baselines.inputs import MNIST_MEAN, MNIST_STD, checked

MAX_BETA = math.pi / 8
"""Radius of the filters."""


def near_identity() -> np.ndarray:
    """Euler angles (alpha, beta, gamma) of the 24 points of an S2 filter, (3, 24), gamma = 0: eight
    directions alpha at each distance beta = 1/3, 2/3, 1 of MAX_BETA from the north pole."""
    alpha = 2 * np.pi / 8 * np.arange(8)
    beta = MAX_BETA / 3 * np.arange(1, 4)
    alpha, beta = (angle.ravel() for angle in np.meshgrid(alpha, beta))
    return np.stack([alpha, beta, np.zeros(24)])


def near_identity_so3() -> np.ndarray:
    """Euler angles of the 72 rotations of an SO(3) filter, (3, 72): the points of `near_identity`,
    with gamma = g - alpha for g = -pi/8, 0, pi/8 (about the identity, where alpha + gamma is what
    counts)."""
    alpha, beta, _ = np.tile(near_identity(), 3)
    return np.stack([alpha, beta, np.repeat([-np.pi / 8, 0, np.pi / 8], 24) - alpha])


class S2Conv(nn.Module):
    """Correlation of a signal on the sphere with a filter on the sphere, plus a bias.

    The filter's weights are drawn from U(-1, 1) and multiplied by 2 b_in / (b_out sqrt(24 C_in)).

    Shapes: (batch, C_in, 4 b_in^2), points of the grid `soft_points`, -> (2 b_out, 2 b_out,
    2 b_out, batch, C_out), axes alpha, gamma, beta.
    """

    def __init__(self, b_in: int, b_out: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        means = np.repeat(quadrature_weights(b_in), 2 * b_in) / (2 * b_in)
        alpha, beta = soft_points(b_in)
        analysis = real_harmonics(b_out, alpha, beta) * means
        points = near_identity()
        scale = 2 * b_in / (b_out * math.sqrt(points.shape[1] * in_channels))
        filters = scale * real_harmonics(b_out, *points[:2])
        self.register_buffer("analysis", as_buffer(analysis), persistent=False)
        self.register_buffer("filters", as_buffer(filters), persistent=False)
        self.synthesis = SO3Synthesis(b_out)
        self.weight = nn.Parameter(torch.empty(points.shape[1], in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.uniform_(self.weight, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        coefficients = torch.einsum("mlp,bip->mlbi", self.analysis, x)
        filters = torch.einsum("nlp,pio->nlio", self.filters, self.weight)
        out = torch.einsum("mlbi,nlio->mnlbo", coefficients, filters)
        return _samples(out, self.bias, self.synthesis)


class SO3Conv(nn.Module):
    """Correlation of a signal on SO(3) with a filter on SO(3), plus a bias.

    The filter's weights are drawn from U(-1, 1) and multiplied by (b_in / b_out)^1.5 /
    sqrt(72 C_in).

    Shapes: (2 b_in, 2 b_in, 2 b_in, batch, C_in), axes alpha, gamma, beta, -> (2 b_out, 2 b_out,
    2 b_out, batch, C_out).
    """

    def __init__(self, b_in: int, b_out: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        points = near_identity_so3()
        scale = (b_in / b_out) ** 1.5 / math.sqrt(points.shape[1] * in_channels)
        blocks = [real_wigner(degree, *points).transpose(1, 2, 0) for degree in range(b_out)]
        filters = scale * stack_degrees(blocks, 2)
        self.register_buffer("filters", as_buffer(filters), persistent=False)
        self.analysis = SO3Analysis(b_in, b_out)
        self.synthesis = SO3Synthesis(b_out)
        self.weight = nn.Parameter(torch.empty(points.shape[1], in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.uniform_(self.weight, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[3]
        coefficients = self.analysis(x.flatten(3)).unflatten(3, (batch, -1))
        filters = torch.einsum("nklp,pio->nklio", self.filters, self.weight)
        out = torch.einsum("mklbi,nklio->mnlbo", coefficients, filters)
        return _samples(out, self.bias, self.synthesis)


class S2CNN(nn.Module):
    """Classifier of signals on the sphere: bandwidth b -> b / 3 -> b / 5 with 1-20-40 channels,
    ReLU, mean over SO(3), linear. 58,550 parameters at any level; b = 30 at level 4.

    Standardised inputs are turned back into grey levels 0..255, which the published network is fed.
    Its initialisation and learning rate are made for this size: at 1/80 of it training is slower.

    Shapes: (batch, 1, 4 b^2), points of the grid latlon<b>, b = round(30 2^(level - 4)),
    -> logits (batch, n_classes).

    Raises:
        ValueError: if `level` is below 2, or an input is not (batch, 1, 4 b^2).
    """

    def __init__(self, level: int = 4, n_classes: int = 10) -> None:
        super().__init__()
        if level < 2:
            raise ValueError(
                f"S2CNN divides its bandwidth by 5: level must be at least 2, not {level}"
            )
        b = round(30 * 2.0 ** (level - 4))
        b1, b2 = round(b / 3), round(b / 5)
        self.points = 4 * b**2
        self.conv1 = S2Conv(b, b1, 1, 20)
        self.conv2 = SO3Conv(b1, b2, 20, 40)
        self.head = nn.Linear(40, n_classes)
        means = quadrature_weights(b2) / (2 * b2) ** 2
        self.register_buffer("means", as_buffer(means), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.invariants(x))

    def invariants(self, x: Tensor) -> Tensor:
        """The features averaged over SO(3), (batch, 40)."""
        checked(x, 1, self.points, "S2CNN")
        grey = 255 * (MNIST_STD * x + MNIST_MEAN)
        y = self.conv2(self.conv1(grey).relu_()).relu_()
        return torch.einsum("j,jbc->bc", self.means, y.sum(dim=(0, 1)))


def _samples(coefficients: Tensor, bias: Tensor, synthesis: SO3Synthesis) -> Tensor:
    """Synthesis of (m, n, l, batch, C), and the bias; a constant is the coefficient of degree 0."""
    batch, middle = coefficients.shape[3], coefficients.shape[0] // 2
    coefficients[middle, middle, 0] += bias
    return synthesis(coefficients.flatten(3)).unflatten(3, (batch, -1))
