"""What this machine has, and what this process took of it, on Linux and on macOS."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def processors() -> int:
    """Processors that this process may use; where the system does not say, all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float:
    """Memory in GiB: physical, or what a container or a batch job (control groups of Linux, version
    2) leaves of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_group_limits()]) / 2**30


def _group_limits() -> list[int]:
    """Bytes that this process's control group, and those above it, allow."""
    if not OWN_GROUP.exists():
        return []
    own = re.search(r"^0::/(.*)$", OWN_GROUP.read_text(), re.MULTILINE)
    if own is None:  # version 1
        return []
    folder = GROUPS / own[1]
    files = [at / "memory.max" for at in (folder, *folder.parents)]
    said = [file.read_text().strip() for file in files if file.exists()]
    return [int(text) for text in said if text != "max"]


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kilobytes elsewhere
