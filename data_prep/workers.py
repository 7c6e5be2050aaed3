"""Processes that share the work of a preparation."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from data_prep.files import DataError


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` processes.

    Raises:
        DataError: one of them was killed.
    """
    try:
        with ProcessPoolExecutor(workers) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed (out of memory?): run again with fewer --workers; "
            "finished panoramas are kept"
        ) from error
