"""Processors that round otherwise are told apart, though many share a name."""

import json
import platform
from pathlib import Path

import pytest
import torch

from bench import hardware

CPU = torch.device("cpu")
EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu avx2

processor\t: 1
vendor_id\t: another
"""
NEOVERSE = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""


@pytest.fixture
def machine_of(monkeypatch, tmp_path):
    """`machine_of(text, **capabilities)`: what Linux and PyTorch say; no text: not Linux."""

    def pretend(text: str | None, **capabilities) -> dict:
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(hardware, "CPUINFO", file)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        facts = hardware.hardware(CPU)
        assert json.loads(json.dumps(facts)) == facts
        return facts

    return pretend


def test_two_processors_of_one_name(machine_of):
    has = {"cpu_name": "AMD EPYC", "avx2": True, "aes": True, "l2_cache_size": 1048576}
    older = machine_of(EPYC.replace(": 17", ": 1"), **has, avx512_bf16=False)
    newer = machine_of(EPYC, **has, avx512_bf16=False)
    mixed = machine_of(EPYC, **has, avx512_bf16=True)
    assert older["cpu"] == newer["cpu"] == mixed["cpu"] == "AMD EPYC"
    found = {key: mixed["processor"][key] for key in ("vendor", "family", "model", "stepping")}
    assert found == {"vendor": "AuthenticAMD", "family": "25", "model": "17", "stepping": "1"}
    assert mixed["processor"]["flags"] == ["avx2", "avx512_bf16", "l2_cache_size=1048576"]
    assert newer["processor"]["flags"] == ["avx2", "l2_cache_size=1048576"]
    assert older["processor"] == newer["processor"] | {"model": "1"}


def test_an_arm_processor_and_a_mac(machine_of):
    graviton = machine_of(NEOVERSE, cpu_name="ARM Neoverse-V1", neon=True, sve_max_length=32)
    expected = {"vendor": "0x41", "family": "8", "model": "0xd40", "stepping": "1"}
    assert graviton["processor"].items() >= expected.items()
    assert graviton["cpu"] == "ARM Neoverse-V1"
    assert graviton["processor"]["flags"] == ["neon", "sve_max_length=32"]
    mac = machine_of(None, cpu_name="Apple M2", bf16=True)
    assert mac["cpu"] == "Apple M2" and mac["processor"]["flags"] == ["bf16"]
    assert mac["processor"].items() >= dict.fromkeys(expected).items()
    assert machine_of(None)["cpu"] == platform.machine()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="not x86 Linux"
)
def test_flags_are_those_that_linux_lists():
    """Linux writes avx512f and fma where PyTorch has avx512_f and fma3."""
    facts = hardware.describe_processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    (listed, *_) = (line.split() for line in lines if line.startswith("flags"))
    linux = {flag.replace("_", "") for flag in listed}
    flags = {flag.replace("_", "").replace("fma3", "fma") for flag in facts["flags"]}
    for flag in ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512bf16", "amxbf16", "amxtile"):
        assert (flag in flags) == (flag in linux), flag
    assert facts["torch_capability"] and facts["llvm_name"]
