"""Claims of GPUs: by name only, no GPU is needed."""

import multiprocessing
import os
import queue
import signal
import time
from itertools import pairwise

import pytest
import torch

from bench.gpus import claim, run_device, visible_gpus

fork = multiprocessing.get_context("fork")
NAMES = ["0", "GPU-b", "5"]


def _hold(folder, go, report):
    with claim(NAMES, folder, seconds_between=0.02) as index:
        start = time.monotonic()
        report.put(index)
        go.wait()
        report.put((index, start, time.monotonic()))


def test_racing_processes_never_share_a_device(tmp_path):
    go, report = fork.Event(), fork.Queue()
    processes = [fork.Process(target=_hold, args=(tmp_path, go, report)) for _ in range(8)]
    for process in processes:
        process.start()
    assert {report.get(timeout=60) for _ in NAMES} == {0, 1, 2}
    with pytest.raises(queue.Empty):  # the others wait
        report.get(timeout=0.5)
    go.set()
    rest = [report.get(timeout=60) for _ in range(2 * len(processes) - len(NAMES))]
    held = sorted((row for row in rest if isinstance(row, tuple)), key=lambda row: row[1])
    for process in processes:
        process.join()
    assert len(held) == len(processes)
    for index in range(len(NAMES)):
        mine = [row for row in held if row[0] == index]
        assert all(before[2] <= after[1] for before, after in pairwise(mine))


def test_a_killed_process_gives_its_device_back(tmp_path):
    report = fork.Queue()
    holder = fork.Process(target=_hold, args=(tmp_path, fork.Event(), report))
    holder.start()
    assert report.get(timeout=60) == 0
    with claim(NAMES, tmp_path) as index:
        assert index == 1
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with claim(NAMES, tmp_path) as index:
        assert index == 0


def test_a_device_is_known_by_its_name(tmp_path):
    """Index 1 of one process may be index 0 of another."""
    with claim(["2", "3"], tmp_path) as a, claim(["2", "3", "0"], tmp_path) as b:
        assert (a, b) == (0, 1)
        with claim(["3", "2", "0"], tmp_path) as c:
            assert c == 2


def test_a_single_device_is_taken_as_given(tmp_path):
    with claim(["0"], tmp_path) as a, claim(["0"], tmp_path) as b:
        assert a == b == 0


@pytest.mark.parametrize(
    ("listed", "count", "names"),
    [
        (None, 3, ["0", "1", "2"]),
        ("2,7", 2, ["2", "7"]),
        ("GPU-a, 3", 2, ["GPU-a", "3"]),
        ("1,-1,2", 1, ["1"]),
        ("", 0, []),
    ],
)
def test_cuda_visible_devices_is_the_list_to_choose_from(monkeypatch, listed, count, names):
    """`count` is what torch makes of the same variable."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus() == names


def test_the_cpu_where_no_gpu_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with run_device(0, tmp_path) as device:
        assert device == torch.device("cpu")
    assert not list(tmp_path.iterdir())
