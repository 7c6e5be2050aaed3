"""Mixed precision: where it is used, and how."""

from __future__ import annotations

import torch


def mixed_precision(device: torch.device, wanted: bool) -> bool:
    """Whether training is in bfloat16: if wanted, and the hardware multiplies it natively. Where it
    does not it would be slower than float32, not faster."""
    if device.type == "cuda":
        return wanted and torch.cuda.is_bf16_supported(including_emulation=False)
    return wanted and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def precision(device: torch.device, wanted: bool) -> str:
    """What training multiplies in, for the record."""
    return "bfloat16" if mixed_precision(device, wanted) else "float32"


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """Mixed precision in a `with` block, see `mixed_precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device, wanted))
