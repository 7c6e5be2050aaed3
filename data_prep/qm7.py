"""Raw QM7 (Blum & Reymond 2009, Rupp et al. 2012): 7,165 small organic molecules with their
atomization energies, fetched, verified and read."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import requests
from scipy.io import loadmat

from data_prep.fetch import MIRROR_VARIABLE, Source, SourceError, gunzip, mirror, obtain, web
from data_prep.files import DataError

FILE = "qm7.npz"
ELEMENTS = (1, 6, 7, 8, 16)
"""H, C, N, O, S: the atomic numbers that occur."""
FOLDS = 5
ARRAYS = {
    "R": (np.float32, (7165, 23, 3)),
    "Z": (np.uint8, (7165, 23)),
    "T": (np.float32, (7165,)),
    "P": (np.int64, (5, 1433)),
}
SHA256 = {
    "R": "b358f8d1174a40df10409b21558438ce58bf32488cebaff77e29a80c57079626",
    "Z": "832aba0df45b58aeef638635101f77cdd1c0ebe06284c7cae3e6e4d2ca054c72",
    "T": "786d1e9e01fb7fecc5a439af89eb0668cb465438d59a073eb73bc1d173ee0560",
    "P": "02b1a113634f0782000cd7c16eb52c5d79e000b096e8c572cf3eb0d4ac02a718",
}
"""Of the arrays, little-endian and in C order."""
WEB_FOLDERS = ("https://quantum-machine.org/data/", "http://quantum-machine.org/data/")


class MoleculeSet(NamedTuple):
    """Molecules with energies and folds: QM7 or a stand-in with the same arrays."""

    positions: np.ndarray
    """R, (n, 23, 3) float32, Bohr; zeros after the last atom."""
    charges: np.ndarray
    """Z, (n, 23) uint8, atomic numbers; 0 after the last atom."""
    energies: np.ndarray
    """T, (n,) float32, atomization energies in kcal/mol."""
    folds: np.ndarray
    """P, (5, n / 5) int64: the molecules of each fold."""
    source: str
    """'QM7' or 'synthetic molecules'."""
    sha256: dict[str, str]
    """Of the arrays, by their letter."""


def fetch_qm7(folder: str | Path) -> None:
    """Put qm7.npz (arrays R, Z, T, P) into `folder`: from qm7.npz or qm7.mat of the local mirror,
    or from quantum-machine.org. The arrays are verified, not the container they came in.

    Raises:
        DataError: no source had it.
    """
    path = Path(folder) / FILE
    obtain(path, sources(), as_npz, f"put {FILE}, or qm7.mat under that name, at {path}")


def sources() -> list[Source]:
    """Where qm7.npz or qm7.mat may be, in the order in which they are tried."""
    folders = mirror("")
    wanted = [(folder, name) for folder in folders for name in (FILE, "qm7.mat")]
    wanted += [(web(address), "qm7.mat") for address in WEB_FOLDERS]
    return [_file_of(folder, name) for folder, name in wanted]


def why_not_available(folder: str | Path) -> list[str]:
    """Why QM7 cannot be had, one line for each source tried; empty where it is in `folder` or where
    a source seems to have it. Asks the web server for the file's head only."""
    if (Path(folder) / FILE).exists():
        return []
    failures = []
    root = os.environ.get(MIRROR_VARIABLE)
    if root:
        names = (FILE, "qm7.mat", f"{FILE}.gz", "qm7.mat.gz")
        if any((Path(root) / name).is_file() for name in names):
            return []
        failures.append(f"mirror folder {root}: no {FILE} or qm7.mat")
    else:
        failures.append(f"{MIRROR_VARIABLE} is not set")
    for address in WEB_FOLDERS:
        url = urllib.parse.urljoin(address, "qm7.mat")
        try:
            answer = requests.head(url, timeout=5, allow_redirects=True)
            if answer.ok:
                return []
            failures.append(f"{url}: HTTP status {answer.status_code}")
        except requests.RequestException as error:
            failures.append(f"{url}: no connection ({type(error).__name__})")
    return failures


def load_qm7(folder: str | Path) -> MoleculeSet:
    """Read and verify the qm7.npz that `fetch_qm7` put into `folder`.

    Raises:
        DataError: it is missing, damaged or not QM7.
    """
    path = Path(folder) / FILE
    try:
        arrays = decode(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: python -m data_prep fetch qm7 --out {path.parent}"
        ) from error
    except SourceError as error:
        raise DataError(f"{path} is not QM7's ({error}): delete it and fetch again") from error
    return MoleculeSet(*(arrays[name] for name in ARRAYS), source="QM7", sha256=dict(SHA256))


def as_npz(content: bytes) -> bytes:
    """The qm7.npz of a qm7.npz (itself) or qm7.mat, verified.

    Raises:
        SourceError: it is neither, or its arrays are not QM7's.
    """
    content = gunzip(content)
    arrays = decode(content)
    if _is_zip(content):
        return content
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def decode(content: bytes) -> dict[str, np.ndarray]:
    """The verified arrays R, Z, T, P of a qm7.npz or qm7.mat.

    Raises:
        SourceError: the container is damaged, or an array is missing or not QM7's.
    """
    try:
        found = _load_npz(content) if _is_zip(content) else loadmat(io.BytesIO(content))
        arrays = {
            name: np.ascontiguousarray(found[name].reshape(shape), np.dtype(kind).newbyteorder("<"))
            for name, (kind, shape) in ARRAYS.items()
        }
    except Exception as error:  # a damaged container can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"not a readable qm7.npz or qm7.mat ({reason})") from error
    for name, expected in SHA256.items():
        digest = hashlib.sha256(arrays[name].data).hexdigest()
        if digest != expected:
            raise SourceError(
                f"wrong content, SHA-256 of {name} {digest[:12]}... instead of {expected[:12]}..."
            )
    return arrays


def _load_npz(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _is_zip(content: bytes) -> bool:
    return content[:2] == b"PK"


def _file_of(folder: Source, name: str) -> Source:
    """The file `name` of a folder, whatever name it is wanted under."""
    return Source(f"{folder.name.rstrip('/')}/{name}", lambda _: folder.read(name))
