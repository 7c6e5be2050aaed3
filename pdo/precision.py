"""In which precision layers are built, and mixed precision, asked for with `torch.autocast`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A context in which layers are built, and their geometry rounded, in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the large products of a layer are computed in: autocast's dtype where it is on, but for
    float64, which autocast leaves alone, as in torch.

    Raises:
        TypeError: if that is float16 on a CPU, which the kernels do not know.
    """
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x.dtype
    dtype = torch.get_autocast_dtype(kind)
    if kind == "cpu" and dtype == torch.float16:
        raise TypeError("on a CPU autocast in torch.bfloat16, not in torch.float16")
    return dtype


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which operations on x keep its dtype."""
    return torch.autocast(x.device.type, enabled=False)
