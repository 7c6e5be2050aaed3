"""What the machine is asked, on systems that answer differently."""

import os
import resource
import sys
from types import SimpleNamespace

import numpy as np

from bench import machine


def test_processors_where_the_system_knows_no_affinity(monkeypatch):
    assert machine.processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert machine.processors() == 5


def test_memory_is_what_linux_says():
    with open("/proc/meminfo") as file:
        kilobytes = int(file.readline().split()[1])
    assert abs(machine.memory_gb() - kilobytes / 2**20) < 0.01


def test_peak_memory_grows_by_what_is_held():
    before = machine.peak_memory_gb()
    held = np.ones(int(before * 2**30) + 2**28, np.uint8)
    assert before + len(held) / 2**30 + 0.1 > machine.peak_memory_gb() > len(held) / 2**30


def test_peak_memory_is_in_bytes_on_macos(monkeypatch):
    taken = SimpleNamespace(ru_maxrss=3 * 2**30)
    monkeypatch.setattr(resource, "getrusage", lambda _: taken)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_memory_gb() == 3
