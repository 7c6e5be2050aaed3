from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.files import (
    DataError,
    atomic_path,
    sha256_of_file,
    write_array,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).parents[2]


def run_with_small_files(code: str, limit: int, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python code that cannot write files longer than `limit` bytes: a full disk."""
    preamble = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)\n"
    return subprocess.run(
        [sys.executable, "-c", preamble + code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_success_replaces_the_old_file_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for content in ("old", "new"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_failure_keeps_the_old_file_and_removes_the_temporary(tmp_path, failure):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_permissions_follow_the_umask(tmp_path):
    write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # The published test vector of FIPS 180.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "a") == expected == hashlib.sha256(b"abc").hexdigest()


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, "é"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, "é"]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, "é"]}


def test_array_in_blocks_is_what_numpy_reads(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (10, 7), dtype=np.uint8)
    blocks = (array[i : i + 4] for i in range(0, 10, 4))
    write_array(tmp_path / "a.npy", array.shape, np.uint8, blocks)
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("shape", [(3, 7), (11, 7), (10, 8)])
def test_array_of_another_shape_is_refused(tmp_path, shape):
    with pytest.raises(ValueError):
        write_array(tmp_path / "a.npy", shape, np.uint8, [np.zeros((10, 7), np.uint8)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "write",
    [
        "write_bytes(sys.argv[1], bytes(50_000))",
        "write_array(sys.argv[1], (50, 1000), 'u1', [np.zeros((50, 1000))])",
        "with atomic_path(sys.argv[1]) as temporary: np.savez(temporary, a=np.zeros(9000))",
    ],
)
def test_full_disk_leaves_nothing_but_the_old_file_and_one_line(tmp_path, write):
    path = tmp_path / "file.npz"
    path.write_bytes(b"old")
    code = f"""
import numpy as np
from data_prep.files import *
try:
    {write}
except DataError as error:
    print(error)
"""
    run = run_with_small_files(code, 10_000, str(path))
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert str(path) in line
    assert "free some space" in line
    assert os.listdir(tmp_path) == ["file.npz"]
    assert path.read_bytes() == b"old"


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    assert issubclass(DataError, RuntimeError)


def test_full_disk_in_the_command_line_tool(tmp_path):
    code = """
from data_prep.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    command = ["spherical-mnist", "--synthetic", "200", "20", "--grid", "icosphere3"]
    run = run_with_small_files(code, 40_000, *command, "--out", str(tmp_path))
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: cannot write ") and "train_N.npy" in line
    assert os.listdir(tmp_path) == []
