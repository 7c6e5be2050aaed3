"""Batch normalisation and ReLU of regular fields, in one pass that keeps little in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pdo.precision import full_precision

CHUNK_BYTES = 2**19
"""So many bytes of a field are worked on at a time, to stay in a core's cache."""


class FieldNormReLU(nn.Module):
    """ReLU(gain * (f - mean) / sqrt(variance + eps) + bias), back to fibre modes |n| <= orders.

    Mean, variance, gain and bias are those of a field: shared by its whole fibre, so this commutes
    with rotations of the fibre by a sample. The ReLU is evaluated at `samples` equidistant
    orientations and the result projected back to the modes; more samples alias less (ours).

    Args:
        fields: C.
        orders: fibre modes |n| <= orders are kept.
        samples: orientations of the ReLU, at least 2 orders + 1.
        momentum: of the running mean and variance, as in `nn.BatchNorm1d`.
        eps: added to the variance.

    Shapes: (V, 2 orders + 1, C, B), kept.

    Raises:
        ValueError: if the samples are too few for the orders.
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
        with full_precision(x):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if not self.training:
            scale = self.gain * torch.rsqrt(self.variance + self.eps)
            return _ScaleReLU.apply(x, scale, self.bias - self.mean * scale, self.basis)
        mean, power = _Moments.apply(x)
        variance = power - mean.square()
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance, self.momentum)
        scale = self.gain * torch.rsqrt(variance + self.eps)
        return _ScaleReLU.apply(x, scale, self.bias - mean * scale, self.basis)


def fibre_basis(orders: int, samples: int) -> Tensor:
    """Values of the fibre basis 1, sqrt2 cos(n phi), sqrt2 sin(n phi) at equidistant orientations,
    (samples, 2 orders + 1); basis^T basis = samples * identity."""
    phi = 2 * np.pi * np.arange(samples) / samples
    columns = [np.ones(samples)]
    for n in range(1, orders + 1):
        columns += [np.sqrt(2) * np.cos(n * phi), np.sqrt(2) * np.sin(n * phi)]
    return torch.tensor(np.stack(columns, axis=1), dtype=torch.get_default_dtype())


class _Moments(torch.autograd.Function):
    """Mean and mean square of each field over vertices, fibre and batch, with no temporary."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        count = x.shape[0] * x.shape[3]
        squares = (_field_sum(x[chunk].square()) for chunk in _chunks(x))
        power = sum(squares, torch.zeros_like(x[0, 0, :, 0])) / count
        return _field_sum(x[:, :1]) / count, power

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_power: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        count = x.shape[0] * x.shape[3]
        grad = x * (2 / count * grad_power)[:, None]
        grad[:, 0] += (grad_mean / count)[:, None]
        return grad


class _ScaleReLU(torch.autograd.Function):
    """basis^T relu(basis (scale x + shift)) / samples, chunk by chunk of vertices.

    The shift goes to mode 0. The samples are made again in the backward pass: cheaper than keeping.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, basis: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, shift, basis)
        out = torch.empty_like(x)
        back = basis.t() / len(basis)
        for chunk in _chunks(x):
            values = _samples(x[chunk], scale, shift, basis).relu_()
            _times(back, values, out=out[chunk].flatten(2))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, shift, basis = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        grad_scale, grad_shift = torch.zeros_like(scale), torch.zeros_like(shift)
        for chunk in _chunks(x):
            values = _samples(x[chunk], scale, shift, basis)
            through = _times(basis / len(basis), grad[chunk].flatten(2))
            through = torch.ops.aten.threshold_backward(through, values, 0)
            part = grad_x[chunk]
            _times(basis.t(), through, out=part.flatten(2))
            grad_shift += _field_sum(part[:, :1])
            grad_scale += _field_sum(part * x[chunk])
            part *= scale[:, None]
        return grad_x, grad_scale, grad_shift, None


def _samples(x: Tensor, scale: Tensor, shift: Tensor, basis: Tensor) -> Tensor:
    """basis (scale x + shift): (V, N, C, B) -> (V, samples, C B)."""
    scaled = x * scale[:, None]
    scaled[:, 0] += shift[:, None]
    return _times(basis, scaled.flatten(2))


def _times(matrix: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """The same small matrix times each x[v]; torch.matmul would fold and copy."""
    return torch.bmm(matrix.expand(len(x), -1, -1), x, out=out)


def _field_sum(x: Tensor) -> Tensor:
    """Sum of (V, N, C, B) over all but C, the contiguous axis first: much the fastest order."""
    return x.sum(dim=3).sum(dim=(0, 1))


def _chunks(x: Tensor) -> list[slice]:
    """Slices of vertices; one for all on a GPU."""
    if x.device.type != "cpu":
        return [slice(None)]
    step = max(1, CHUNK_BYTES // (x[0].numel() * x.element_size()))
    return [slice(start, start + step) for start in range(0, len(x), step)]
