"""Mixed precision: where it is used, and how."""

from __future__ import annotations

import torch


def mixed_precision(device: torch.device, wanted: bool) -> bool:
    """Whether training is in bfloat16: if wanted, and the hardware multiplies it natively and
    faster than float32. Intel's AVX512-BF16 alone does not: there it takes AMX."""
    if device.type == "cuda":
        return wanted and torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities()
    vectors = cpu.get("avx512_bf16") and not cpu.get("cpu_name", "").startswith("Intel")
    return wanted and bool(cpu.get("amx_bf16") or vectors)


def precision(device: torch.device, wanted: bool) -> str:
    """What training multiplies in, for the record."""
    return "bfloat16" if mixed_precision(device, wanted) else "float32"


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """Mixed precision in a `with` block, see `mixed_precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device, wanted))
