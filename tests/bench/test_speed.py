"""The speed measurements: work against brute-force counts, fits on made-up times, the command."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import speed, speed_peers
from bench.__main__ import main
from bench.errors import RunError
from bench.registry import MODELS, ModelEntry
from pdo.layers import PDOConv
from pdo.mesh import Icosphere
from pdo.stencils import PAPER, SMOOTHED

MESH = Icosphere(1)
BATCH = 3


@pytest.fixture(params=[SMOOTHED, PAPER], ids=["smoothed", "paper"])
def layer(request):
    return PDOConv(MESH, 2, 3, 2, stencil=request.param)


def test_mixing_is_what_torch_counts(layer):
    x = speed.random_field(MESH, 5, 2, BATCH)
    step = speed.mixing_step(layer, x)
    with FlopCounterMode(display=False) as counter:
        step()
    assert speed.count_work(layer, BATCH).mixing == counter.get_total_flops()


def test_sparse_work_is_two_operations_for_each_number_that_counts(layer):
    """The matrices written out: their nonzeros act on 2 fields x batch columns, twice."""
    columns = 5 * len(MESH)
    unit = torch.eye(columns).view(len(MESH), 5, columns)
    derived = torch.empty(layer.derivatives.rows, 1, len(MESH), columns)
    layer.derivatives.gather(unit.unsqueeze(2), layer.derivatives.order, True, derived)
    nonzeros = int(derived.count_nonzero())
    if layer.smoothing is not None:
        nonzeros += int(layer.smoothing(unit.unsqueeze(2)).count_nonzero())
    assert speed.count_work(layer, BATCH).sparse == 2 * 2 * nonzeros * 2 * BATCH


def test_bytes_are_those_of_the_tensors(layer):
    """x, the smooth field and y, each with its gradient, written by one product and read by the
    next; for the gradients of the weights the smooth field once more."""
    x = speed.random_field(MESH, 5, 2, BATCH)
    field, out = x.nbytes, layer(x).nbytes
    matrices = layer.derivatives.nnz * 2 * (4 + 4)
    if layer.smoothing is None:
        tensors = field + out + (out + field + field)
    else:
        matrices += layer.smoothing.forth.nnz * 2 * (4 + 4)
        tensors = (field + 2 * field + out) + (out + field + 2 * field + field)
    assert speed.count_work(layer, BATCH).bytes == tensors + matrices


def test_the_floor_is_the_larger_of_two():
    work = speed.Work(mixing=60, sparse=40, bytes=30)
    assert work.floor(gemm=10, copy=30) == 10
    assert work.floor(gemm=100, copy=10) == 3


def test_steps_are_taken_in_turn(monkeypatch):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    taken = iter([9.0, 1.0, 8.0, 2.0])
    steps = {"a": lambda: order.append("a"), "own": lambda: order.append("own") or next(taken)}
    seconds = speed.run_in_turn(steps, 3)
    assert order == ["a", "own"] * 4
    assert {name: values.tolist() for name, values in seconds.items()} == {
        "a": [1, 1, 1],
        "own": [1.0, 8.0, 2.0],  # the first only warmed up
    }
    own = speed.summary({"own": seconds["own"]})
    assert own == {"own": 2.0, "own" + speed.RANGE: [1.0, 8.0]}


def test_exponents_of_made_up_times():
    rows = [{"over": "vertices", "vertices": v, "spectral ms": 3 * v**1.04} for v in (42, 162, 642)]
    rows += [{"over": "fields", "fields": c, "spectral ms": 0.1 * c**1.7} for c in (8, 16, 32)]
    exponents = speed.fit_exponents(rows)
    assert exponents["vertices"] == pytest.approx((1.04, 0), abs=1e-6)
    assert exponents["fields"] == pytest.approx((1.7, 0), abs=1e-6)


def test_layer_step_has_all_gradients():
    layer = PDOConv(MESH, 2, 3, 1)
    gradients = speed.layer_step(layer, speed.random_field(MESH, 3, 2, BATCH))()
    assert [g.shape for g in gradients[1:]] == [w.shape for w in layer.parameters()]
    assert gradients[0].shape == (len(MESH), 3, 2, BATCH)
    assert all(g.abs().max() > 0 for g in gradients)


def test_network_step_updates_the_parameters(monkeypatch):
    made = []
    build = MODELS["spherical_mnist", "PDO-eS2CNN-small"].build
    entry = ModelEntry(lambda **options: made.append(build(**options)) or made[0])
    monkeypatch.setitem(MODELS, ("spherical_mnist", "PDO-eS2CNN-small"), entry)
    step = speed.network_step("PDO-eS2CNN-small", level=3, batch=4)
    before = [p.detach().clone() for p in made[0].parameters()]
    step()
    assert not any(torch.equal(a, b) for a, b in zip(before, made[0].parameters(), strict=True))


def grab(megabytes):
    block = torch.ones(megabytes * 2**18)
    return speed.peak_memory_gb(torch.device("cpu"))["peak_memory_gb"] + 0 * float(block[0])


def test_memory_is_that_of_a_fresh_process():
    """800 MB held here do not count there, 200 MB held there do."""
    here = torch.ones(800 * 2**18)
    small, large = (speed.in_fresh_process(grab, size) for size in (1, 201))
    assert large - small == pytest.approx(200 / 1024, abs=0.02)
    assert small < 0.75 and here[0] == 1


def test_pairs_hold_as_many_numbers():
    vertices = len(Icosphere(4))
    for pair in speed_peers.pairs(vertices):
        per_field = (2 * pair.orders + 1) * vertices
        if pair.peer == "e3nn":
            assert speed_peers.coefficients(pair.size) == sum(
                (2 * degree + 1) ** 2 for degree in range(pair.size + 1)
            )
            numbers = speed_peers.coefficients(pair.size)
        else:
            numbers = 2 * pair.size**2 * pair.channels / speed.FIELDS
        if pair.remark != "same bandwidth":
            assert numbers == pytest.approx(per_field, rel=0.1)


def test_a_peer_that_fails_says_why():
    pair = speed_peers.Pair("no such library", 4, 2, 0, "")
    with pytest.raises(RunError, match="no such library failed, its last word: KeyError"):
        speed_peers.Peer(pair, Path(sys.executable))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "2"], "--level must be one of 3..5, not 2"),
        (["--repeats", "0"], "at least 1"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
    ],
)
def test_bad_options_are_one_line(options, message, capsys, tmp_path):
    assert main(["speed", "--out", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command(tmp_path, capsys):
    arguments = ["speed", "--level", "3", "--repeats", "1", "--out", str(tmp_path), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "speed.json").read_text())
    assert [row["N"] for row in found["forms"]] == [5, 9, 15]
    assert all(row["difference"] < 1e-4 for row in found["forms"])
    assert [row["vertices"] for row in found["scaling"][:4]] == [162, 642, 2562, 10242]
    names = [model for task, model in MODELS if task == "spherical_mnist"]
    assert [row["network"] for row in found["networks"]] == names
    assert found["threads"] >= 1 and found["git_commit"] and "peers" not in found
    text = (tmp_path / "speed.md").read_text()
    assert "python -m bench speed --level 3" in text and "PDO-eS2CNN-small" in text
    first = found["forms"][0]["direct / spectral"]
    assert f"| {first:.3g} ({first:.3g} to {first:.3g})" in text  # of one repeat
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
