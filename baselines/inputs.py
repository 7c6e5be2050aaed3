"""Inputs of networks of signals: their shape, and the grey levels of digits."""

from __future__ import annotations

from torch import Tensor

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
"""Of the grey levels v of digits, by which inputs are standardised: x = (v / 255 - mean) / std."""


def checked(x: Tensor, channels: int, points: int, name: str) -> Tensor:
    """The input, if it has the right shape.

    Raises:
        ValueError: if it is not (batch, channels, points), or the batch is empty.
    """
    if x.dim() != 3 or x.shape[1:] != (channels, points) or not len(x):
        shape = f"(batch, {channels}, {points}), batch > 0"
        raise ValueError(f"{name} wants an input of shape {shape}, not {tuple(x.shape)}")
    return x
