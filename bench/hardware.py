"""Describing the processor, the memory and the GPU of a run, for provenance."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from llvmlite.binding import get_host_cpu_name

from bench import machine

CPUINFO = Path("/proc/cpuinfo")
CPUINFO_KEYS = {
    "vendor": ("vendor_id", "CPU implementer"),
    "family": ("cpu family", "CPU architecture"),
    "model": ("model", "CPU part"),
    "stepping": ("stepping", "CPU revision"),
}
"""What Linux calls them on x86 and on ARM."""
DECIDING = re.compile("avx|amx|fma|f16c|bf16|fp16|dot|i8mm|neon|sve|sme|l[12]d?_cache_size")
"""Capabilities by which libraries choose instructions, or cut a sum into blocks."""


def hardware(device: torch.device) -> dict[str, Any]:
    """Return processor, memory and, on CUDA, the GPU's name.

    `cpu` is the processor's name, which several models share; `processor` tells them apart.
    """
    processor = describe_processor()
    return {
        "cpu": processor["name"],
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gb": round(machine.memory_gb(), 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def describe_processor() -> dict[str, Any]:
    """Return what tells this processor from others that may round a sum otherwise.

    `vendor`, `family`, `model` and `stepping` are as Linux gives them, None elsewhere.
    `torch_capability` is the instruction set that PyTorch's own loops use, `llvm_name` the
    processor for which Numba compiles. `flags` are the instruction sets there are and the sizes of
    caches in bytes.
    """
    capabilities = torch.cpu.get_capabilities()
    deciding = {key: capabilities[key] for key in sorted(capabilities) if DECIDING.match(key)}
    linux = _cpuinfo()
    facts = {
        key: next((linux[name] for name in names if name in linux), None)
        for key, names in CPUINFO_KEYS.items()
    }
    return {
        "name": linux.get("model name") or capabilities.get("cpu_name") or platform.machine(),
        **facts,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "llvm_name": get_host_cpu_name(),
        "flags": [
            key if value is True else f"{key}={value}" for key, value in deciding.items() if value
        ],
    }


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first processor; nothing on other systems."""
    if not CPUINFO.exists():
        return {}
    first = CPUINFO.read_text().partition("\n\n")[0]
    pairs = [line.partition(":") for line in first.splitlines()]
    return {key.strip(): value.strip() for key, _, value in pairs}


def peak_memory_gb(device: torch.device) -> dict[str, float]:
    """Return the peak resident memory of this process and, on CUDA, of the device."""
    peak = {"peak_memory_gb": round(machine.peak_memory_gb(), 3)}
    if device.type == "cuda":
        peak["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return peak
