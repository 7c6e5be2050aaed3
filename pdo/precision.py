"""Mixed precision, asked for with `torch.autocast`."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the large products of a layer are computed in: autocast's dtype where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which operations on x keep its dtype."""
    return torch.autocast(x.device.type, enabled=False)
