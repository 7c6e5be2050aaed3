"""What the machine is asked, on systems that answer differently."""

import os
import resource
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bench import machine
from bench.speed import in_fresh_process


def test_processors_where_the_system_knows_no_affinity(monkeypatch):
    assert machine.processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert machine.processors() == 5


def test_memory_is_what_linux_says(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "none")
    with open("/proc/meminfo") as file:
        kilobytes = int(file.readline().split()[1])
    assert abs(machine.memory_gb() - kilobytes / 2**20) < 0.01


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/job/step\n", {"job": "3221225472", "job/step": "max"}, 3),
        ("0::/job/step\n", {"job": "max", "job/step": "1073741824"}, 1),
        ("0::/\n", {".": "2147483648"}, 2),  # a container sees its own group as the root
        ("0::/job\n", {"job": "max"}, None),
        ("4:memory:/job\n", {}, None),  # version 1
    ],
)
def test_memory_is_what_a_job_may_take(monkeypatch, tmp_path, own, limits, expected):
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    whole = machine.memory_gb()
    (tmp_path / "own").write_text(own)
    for group, limit in limits.items():
        (tmp_path / "groups" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / group / "memory.max").write_text(f"{limit}\n")
    assert machine.memory_gb() == (expected or whole)


def peak_before_and_after(size):
    before = machine.peak_memory_gb()
    held = np.ones(size, np.uint8)
    return before, machine.peak_memory_gb() + 0 * float(held[0])


def test_peak_memory_grows_by_what_is_held():
    """In a process of its own: this one's peak may be far above what it holds."""
    before, after = in_fresh_process(peak_before_and_after, 2**30)
    assert before + 1.1 > after > 1


def test_peak_memory_is_in_bytes_on_macos(monkeypatch):
    taken = SimpleNamespace(ru_maxrss=3 * 2**30)
    monkeypatch.setattr(resource, "getrusage", lambda _: taken)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_memory_gb() == 3
