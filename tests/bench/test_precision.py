"""Mixed precision is used where it is wanted and the hardware has it, and recorded."""

import pytest
import torch

from bench.precision import autocast, mixed_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_only_where_the_hardware_has_it(monkeypatch, native, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert mixed_precision(CPU, wanted) == (native and wanted)
    with autocast(CPU, wanted):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native and wanted else torch.float32)


@pytest.mark.parametrize(("amx", "expected"), [(False, False), (True, True)])
def test_intel_is_faster_at_it_with_amx_alone(monkeypatch, amx, expected):
    intel = {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: intel)
    assert mixed_precision(CPU, True) == expected


def test_processors_of_other_kinds_do_not_say(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"})
    assert not mixed_precision(CPU, True)
