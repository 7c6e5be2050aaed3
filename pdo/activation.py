"""Batch normalisation and ReLU of regular fields, in one pass that keeps little in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pdo import kernels
from pdo.fields import check_field
from pdo.kernels import array
from pdo.precision import full_precision


class FieldNormReLU(nn.Module):
    """ReLU(gain * (f - mean) / sqrt(variance + eps) + bias), back to fibre modes |n| <= orders.

    Mean, variance, gain and bias are those of a field: shared by its whole fibre, so this commutes
    with rotations of the fibre by a sample. The ReLU is evaluated at `samples` equidistant
    orientations and the result projected back to the modes; more samples alias less (ours).

    Args:
        fields: C.
        orders: fibre modes |n| <= orders are kept.
        samples: orientations of the ReLU, at least 2 orders + 1.
        momentum: of the running mean and variance, as in `nn.BatchNorm1d`; the running variance
            is, as that of the batch, over the number of values, not one less.
        eps: added to the variance.

    Shapes: (V, 2 orders + 1, C, B), kept.

    Raises:
        ValueError: if the samples are too few for the orders, or the input has another shape.
        TypeError: if the input is not in the layer's precision, float32 or float64.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor

    def __init__(
        self, fields: int, orders: int, samples: int, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if samples < 2 * orders + 1:
            raise ValueError(f"{samples} samples cannot hold {2 * orders + 1} fibre coordinates")
        self.momentum, self.eps = momentum, eps
        self.gain = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))
        self.register_buffer("mean", torch.zeros(fields))
        self.register_buffer("variance", torch.ones(fields))
        self.register_buffer("basis", fibre_basis(orders, samples), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_field(self, x, "V", self.basis.shape[1], len(self.gain), self.gain.dtype)
        with full_precision(x):
            mean, variance = self.mean, self.variance
            if self.training:
                mean, variance = moments(x)
                with torch.no_grad():
                    self.mean.lerp_(mean, self.momentum)
                    self.variance.lerp_(variance, self.momentum)
            if kernels.apply_to(x):
                return _NormReLU.apply(
                    x, self.gain, self.bias, mean, variance, self.eps, self.basis, self.training
                )
            scale = self.gain * torch.rsqrt(variance + self.eps)
            return scale_relu(x, scale, self.bias - mean * scale, self.basis)


def fibre_basis(orders: int, samples: int) -> Tensor:
    """Values of the fibre basis 1, sqrt2 cos(n phi), sqrt2 sin(n phi) at equidistant orientations,
    (samples, 2 orders + 1); basis^T basis = samples * identity."""
    phi = 2 * np.pi * np.arange(samples) / samples
    columns = [np.ones(samples)]
    for n in range(1, orders + 1):
        columns += [np.sqrt(2) * np.cos(n * phi), np.sqrt(2) * np.sin(n * phi)]
    return torch.tensor(np.stack(columns, axis=1), dtype=torch.get_default_dtype())


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each field over vertices, fibre and batch: (V, N, C, B) -> two (C,).
    On a CPU without gradients: `_NormReLU` knows them. Of a nearly constant field, rounding may
    leave a mean square below the squared mean: variance 0 then."""
    count = x.shape[0] * x.shape[3]
    if kernels.apply_to(x):
        kernels.threads()
        sums = torch.from_numpy(kernels.moments(array(x.contiguous()))) / count
        return sums[0].to(x.dtype), (sums[1] - sums[0].square()).clamp_min(0).to(x.dtype)
    mean = x[:, 0].mean(dim=(0, 2))
    return mean, (x.square().sum(dim=(0, 1, 3)) / count - mean.square()).clamp_min(0)


def scale_relu(x: Tensor, scale: Tensor, shift: Tensor, basis: Tensor) -> Tensor:
    """basis^T relu(basis (scale x + shift)) / samples, the shift to mode 0: (V, N, C, B), kept."""
    y = x * scale[:, None]
    y = torch.cat([y[:, :1] + shift[:, None], y[:, 1:]], dim=1)
    samples = torch.einsum("sn,vncb->vscb", basis, y).relu()
    return torch.einsum("sn,vscb->vncb", basis / len(basis), samples)


class _NormReLU(torch.autograd.Function):
    """`scale_relu` by the kernels, with gradients through mean and variance if they are `own`:
    those of x. Nothing but x is kept: the samples are made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        basis: Tensor,
        own: bool,
    ) -> Tensor:
        x, inverse = x.contiguous(), torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, gain, bias, mean, inverse, basis)
        ctx.own = own
        scale = gain * inverse
        return kernels.relu(x, scale, bias - mean * scale, basis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, mean, inverse, basis = ctx.saved_tensors
        scale = gain * inverse
        shift = bias - mean * scale
        h, sums = kernels.relu_backward(x, scale, shift, basis, grad.contiguous())
        of_scale, of_shift = sums.to(x.dtype)
        of_inverse = of_scale - mean * of_shift  # for each unit of the gain
        along, ahead = torch.zeros_like(gain), torch.zeros_like(gain)
        if ctx.own:  # mean and variance = power - mean^2 depend on x
            count = x.shape[0] * x.shape[3]
            of_power = -0.5 * inverse**3 * gain * of_inverse
            along = 2 * of_power / count
            ahead = (-scale * of_shift - 2 * mean * of_power) / count
        kernels.combine(*map(array, (x, h, scale, along, ahead)))
        return h, inverse * of_inverse, of_shift, None, None, None, None, None
