"""Writing files so that a crash, a kill or a full disk leaves no half-written one behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FULL_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class DataError(RuntimeError):
    """What is wrong with the data and what to do about it, in one line meant for the user."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` only if the block succeeds.

    The temporary file lies in the same folder (made if missing), is flushed to disk before it
    replaces `path`, and is removed on any failure, with the old `path` left as it was. Inside the
    block use Python's own file objects or `write_array`: `np.save(path, ...)` and
    `ndarray.tofile` drop the errno of a failed write, so a full disk would not be recognised.

    Raises:
        DataError: the disk is full, the quota used up or the file-size limit reached.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise DataError(
            f"cannot write {path}: {os.strerror(error.errno)}; free some space (or raise the "
            "limit) and run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` to `path` as indented JSON, atomically.

    Raises:
        ValueError: `obj` holds a NaN or infinity, which JSON does not know.
    """
    text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def write_array(
    path: str | Path, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]
) -> None:
    """Write one `.npy` array from consecutive blocks along its first axis, atomically.

    Raises:
        ValueError: the blocks do not add up to `shape`.
    """
    dtype = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    rows = 0
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                if block.shape[1:] != shape[1:]:
                    raise ValueError(f"a block of shape {block.shape} does not fit into {shape}")
                file.write(np.ascontiguousarray(block, dtype=dtype).data)
                rows += len(block)
        if rows != shape[0]:
            raise ValueError(f"the blocks have {rows} rows in all, {shape[0]} were announced")


def sha256_of_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
