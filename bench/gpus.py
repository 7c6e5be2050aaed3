"""One GPU for one process, on a machine that has several: Snakemake only counts them."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

log = logging.getLogger("bench")


@contextmanager
def run_device(gpus: int, results: Path) -> Iterator[torch.device]:
    """The device of one run: the CPU where no GPU is asked for or there is none, else a GPU that no
    other run with the same results folder holds. To be entered before anything is put on a GPU."""
    names = visible_gpus() if gpus > 0 else []
    if not names:
        yield torch.device("cpu")
        return
    with claim(names, results) as index:
        torch.cuda.set_device(index)
        yield torch.device("cuda", index)


def visible_gpus() -> list[str]:
    """Names of the GPUs to choose from, in torch's order: the entries of CUDA_VISIBLE_DEVICES if it
    is set, else their numbers."""
    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(k) for k in range(count)]
    return [name.strip() for name in names[:count]]


@contextmanager
def claim(names: Sequence[str], folder: Path, seconds_between: float = 2.0) -> Iterator[int]:
    """Index of a device that this process has for itself inside the block; waits for one.

    A claim is a lock on `folder/.gpu-<host>-<name>.lock`, which the kernel gives back however the
    process ends. A single name is taken without: a batch system shows each of its jobs one device,
    often under the same number.
    """
    if len(names) == 1:
        yield 0
        return
    folder.mkdir(parents=True, exist_ok=True)
    said = False
    while (claimed := _try(names, folder)) is None:
        if not said:
            log.info("all %d GPUs are taken (%s); waiting for one", len(names), ", ".join(names))
            said = True
        time.sleep(seconds_between)
    index, file = claimed
    with file:
        log.info("GPU %s", names[index])
        yield index


def _try(names: Sequence[str], folder: Path) -> tuple[int, IO[str]] | None:
    """The first device nobody holds, and the open file that holds it."""
    for index, name in enumerate(names):
        file = (folder / f".gpu-{platform.node()}-{name}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return index, file
    return None
