"""What a layer may be given: the loops of `pdo.kernels` trust the shapes they are called with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Size = int | str
"""A dimension's length, or the letter of one that may be any."""


def check_field(
    layer: nn.Module, x: Tensor, vertices: Size, coordinates: Size, fields: Size, dtype: torch.dtype
) -> None:
    """Whether x is a field (vertices, coordinates, fields, batch) in the layer's own precision.

    Raises:
        ValueError: if its shape is another, or it is empty.
        TypeError: if its dtype is another, or neither float32 nor float64.
    """
    name, wanted = type(layer).__name__, (vertices, coordinates, fields, "B")
    fits = x.dim() == len(wanted) and all(
        w == size or isinstance(w, str) for w, size in zip(wanted, x.shape, strict=True)
    )
    if not fits or x.numel() == 0:
        sizes = ", ".join(map(str, wanted))
        raise ValueError(f"{name} takes fields ({sizes}), B > 0, not {tuple(x.shape)}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} is in {dtype}: for half precision keep it in float32 and use torch.autocast "
            "(on a CPU in bfloat16)"
        )
    if x.dtype != dtype:
        raise TypeError(f"{name} is in {dtype}, its field in {x.dtype}: take .to({dtype})")
