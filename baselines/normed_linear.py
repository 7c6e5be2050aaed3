"""Batch norm of a linear map, folded into the map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pdo.precision import full_precision


class _Moments(torch.autograd.Function):
    """Mean (C,) and covariance (C, C) of the rows of x, (rows, C). Its gradient is one product,
    where that of the formulas takes five passes over x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=0)
        centred = x - mean
        ctx.save_for_backward(x, mean)
        return mean, centred.T @ centred / len(x)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_covariance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        slope = (grad_covariance + grad_covariance.T) / len(x)
        return torch.addmm(grad_mean / len(x) - mean @ slope, x, slope)


def normed_linear(x: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """W' and b' with norm(linear(x)) = W' x + b' for the rows x given: a map that widens its input
    need not be written, read for its statistics and normalised, since these follow from the
    moments of the input,

        mean(W x + b) = W mean(x) + b,  var(W x + b) = diag(W cov(x) W^T)   (ours).

    The running statistics of `norm` are used in evaluation and move on in training, as they are and
    do in its own forward pass. `linear` has a bias, `norm` torch's defaults but for numbers. It is
    slower than the two in turn if the map does not widen its input.

    Shapes: x (rows, C_in) -> W' (C_out, C_in), b' (C_out,).

    Raises:
        ValueError: if there are fewer than two rows in training: one has no variance.
    """
    if norm.training:
        if len(x) < 2:
            raise ValueError(f"batch norm in training takes two rows at least, not {len(x)}")
        with full_precision(x):
            mean, covariance = _Moments.apply(x.to(linear.weight.dtype))
            mean = linear.weight @ mean + linear.bias
            # Rounding may leave less than 0 where W and cov(x) are orthogonal.
            var = ((linear.weight @ covariance) * linear.weight).sum(dim=1).clamp_min(0)
        norm.running_mean.lerp_(mean.detach(), norm.momentum)
        norm.running_var.lerp_(var.detach() * len(x) / (len(x) - 1), norm.momentum)
        norm.num_batches_tracked.add_(1)
    else:
        mean, var = norm.running_mean, norm.running_var
    scale = norm.weight * (var + norm.eps).rsqrt()
    return scale[:, None] * linear.weight, norm.bias + scale * (linear.bias - mean)
