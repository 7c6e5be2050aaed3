"""What a layer and a network cost: times measured side by side in one process, and the machine's
floors they are held against.

A step of a layer is forward and backward, with gradients to the input and to all weights; a step of
a network also computes the loss and updates the parameters. Steps that are compared run in turn,
several times over, so that a busy machine slows all of them. What is reported is the median over
these repeats, ratios taken in each of them, and beside it the smallest and the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.convergence import fit_order
from bench.hardware import peak_memory_gb
from bench.precision import autocast, precision
from bench.registry import MODELS
from data_prep.grids import grid_points
from pdo.activation import fibre_basis
from pdo.direct import to_direct
from pdo.layers import PDOConv
from pdo.local import Neighbourhood
from pdo.mesh import Icosphere
from pdo.mixing import add_weight_gradients, mix, real_weights, stacked

FIELDS, BATCH = 16, 16
"""Of the single layers. With 8 samples MKL multiplies small matrices four times more slowly."""
SAMPLES = (5, 9, 15)
SCALED_FIELDS = (8, 16, 32, 64)
NETWORK_BATCH = 32
GEMM_SIZE, COPY_BYTES = 1536, 2**28

RANGE = " range"
"""Beside the median of a quantity stands its range, under its name with this appended."""

Row = dict[str, Any]
Step = Callable[[], object]


def run_in_turn(steps: dict[str, Step], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each step (repeats,): all once to warm up, then all in turn, `repeats` times. A
    step that returns a float has taken its own time."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            own = step()
            taken = time.perf_counter() - start
            seconds[name].append(own if isinstance(own, float) else taken)
    return {name: np.array(values) for name, values in seconds.items()}


def summary(values: dict[str, np.ndarray]) -> Row:
    """Of each quantity its median over repeats and [smallest, largest], under its name + RANGE."""
    row: Row = {}
    for name, found in values.items():
        row[name] = float(np.median(found))
        row[name + RANGE] = [float(found.min()), float(found.max())]
    return row


def layer_step(layer: nn.Module, x: Tensor) -> Step:
    """Forward and backward of a layer; the gradients replace those of the step before."""
    x = x.detach().requires_grad_()
    grad = torch.randn_like(layer(x))
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, grad)


def random_field(mesh: Icosphere, samples: int, fields: int, batch: int) -> Tensor:
    return torch.randn(len(mesh), samples, fields, batch)


def compare_forms(level: int, repeats: int, samples: Sequence[int] = SAMPLES) -> list[Row]:
    """A group layer in spectral and in direct form, the same function, for each N.

    `difference`: largest difference of the two outputs on the samples of the fibre, relative to the
    largest output.
    """
    mesh, rows = Icosphere(level), []
    for n in samples:
        spectral = PDOConv(mesh, FIELDS, FIELDS, n // 2)
        direct, basis = to_direct(spectral), fibre_basis(n // 2, n)
        x = random_field(mesh, n, FIELDS, BATCH)
        sampled = torch.einsum("sn,vncb->vscb", basis, x)
        with torch.no_grad():
            want = torch.einsum("sn,vncb->vscb", basis, spectral(x))
            difference = (direct(sampled) - want).abs().max() / want.abs().max()
        steps = {"spectral": layer_step(spectral, x), "direct": layer_step(direct, sampled)}
        seconds = run_in_turn(steps, repeats)
        values = {f"{name} ms": 1e3 * s / BATCH for name, s in seconds.items()}
        values["direct / spectral"] = seconds["direct"] / seconds["spectral"]
        rows.append({"N": n, "difference": float(difference), **summary(values)})
    return rows


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes moved of one step of a group layer.

    mixing: channel mixing, 2 V B sum over m of (rows of m) (columns of m) multiply-adds, three
        times: forward, gradient to its input, gradient to the weights.
    sparse: 2 C_in B nnz for each sparse matrix (smoothing, derivatives), forward and transposed.
    bytes: what must pass through memory if derivatives never do: field x, smooth s, output y, and
        their gradients. Forward x + 2 s + y; backward dy + s + 2 ds + dx; the sparse matrices
        twice, with 4-byte indices.
    """

    mixing: int
    sparse: int
    bytes: int

    @property
    def arithmetic(self) -> int:
        return self.mixing + self.sparse

    def floor(self, gemm: np.ndarray, copy: np.ndarray) -> np.ndarray:
        """Seconds it takes at least: max(arithmetic / GEMM rate, bytes / copy rate)."""
        return np.maximum(self.arithmetic / gemm, self.bytes / copy)


def count_work(layer: PDOConv, batch: int) -> Work:
    """Work of one step of `layer` on `batch` samples."""
    vertices, number = len(layer.mesh), layer.weights[0].element_size()
    columns = layer.weights[0].shape[-1] * batch
    matrices = [real_weights(w) for w in layer.weights]
    nonzeros, smoothed = layer.derivatives.nnz, 0
    field = vertices * layer.derivatives.coordinates * columns
    if layer.smoothing is not None:
        nonzeros, smoothed = nonzeros + layer.smoothing.forth.nnz, field
    out = vertices * batch * sum(len(w) for w in matrices)
    moved = 2 * field + 2 * out + 2 * 2 * smoothed + field
    return Work(
        mixing=3 * 2 * vertices * batch * sum(w.numel() for w in matrices),
        sparse=2 * 2 * columns * nonzeros,
        bytes=number * (moved + 2 * nonzeros) + 2 * 4 * nonzeros,
    )


def compare_with_floors(level: int, repeats: int, samples: Sequence[int] = SAMPLES) -> list[Row]:
    """Group layers and their mixing against the rates of a large GEMM and of a large copy: with all
    threads, and with one, as training has."""
    mesh, rows = Icosphere(level), []
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    source, target = torch.empty(2, COPY_BYTES // 4).fill_(1.0)
    before = torch.get_num_threads()
    for threads, n in product(sorted({1, before}, reverse=True), samples):
        torch.set_num_threads(threads)
        layer = PDOConv(mesh, FIELDS, FIELDS, n // 2)
        work = count_work(layer, BATCH)
        x = random_field(mesh, n, FIELDS, BATCH)
        steps = {
            "gemm": lambda: a @ b,
            "copy": lambda: target.copy_(source),
            "mixing": mixing_step(layer, x),
            "layer": layer_step(layer, x),
        }
        seconds = run_in_turn(steps, repeats)
        gemm, copy = 2 * GEMM_SIZE**3 / seconds["gemm"], 2 * COPY_BYTES / seconds["copy"]
        mixing, floor = work.mixing / seconds["mixing"], work.floor(gemm, copy)
        values = {"GEMM GFLOP/s": gemm / 1e9, "copy GB/s": copy / 1e9}
        values |= {"mixing GFLOP/s": mixing / 1e9, "mixing / GEMM": mixing / gemm}
        values |= {"layer ms": 1e3 * seconds["layer"], "floor ms": 1e3 * floor}
        values |= {"arithmetic ms": 1e3 * work.arithmetic / gemm}
        values |= {"bytes ms": 1e3 * work.bytes / copy, "layer / floor": seconds["layer"] / floor}
        rows.append({"threads": threads, "N": n, **summary(values)})
    torch.set_num_threads(before)
    return rows


def mixing_step(layer: PDOConv, x: Tensor) -> Step:
    """Channel mixing alone, forward and backward, on columns in the cache as in a layer that does
    not widen the field."""
    with torch.no_grad():
        forth = stacked([real_weights(w) for w in layer.weights])
        back = stacked(layer.derivatives.adjoint(layer.weights))
        y = layer(x)
    totals = [torch.zeros_like(w.mT, memory_format=torch.contiguous_format) for w in back]
    batch = x.shape[3]

    def columns(near: Neighbourhood, field: Tensor) -> list[Tensor]:
        """Of every chunk but the last the same memory."""
        sizes = [len(part) for part in near.chunks(field, field.dtype)]
        made = [torch.randn(near.rows * field.shape[2], size * batch) for size in sizes[-2:]]
        return [made[0]] * (len(sizes) - 1) + [made[-1]]

    derived, terms = columns(layer.derivatives, x), columns(layer.derivatives.back, y)
    values = {part.shape[1]: torch.randn(x[0, :, :, 0].numel(), part.shape[1]) for part in terms}

    def step() -> None:
        for part in derived:
            mix(part, forth)
        for part in terms:
            add_weight_gradients(part, values[part.shape[1]], totals)
            mix(part, back)

    return step


def measure_scaling(level: int, repeats: int, fields: Sequence[int] = SCALED_FIELDS) -> list[Row]:
    """Time of a layer's step per sample over levels level - 1 .. level + 2 and over fields."""
    n, meshes = SAMPLES[0], [Icosphere(at) for at in range(level - 1, level + 3)]
    sizes = [("vertices", mesh, FIELDS) for mesh in meshes]
    sizes += [("fields", meshes[1], count) for count in fields]
    rows: list[Row] = []
    steps = {}
    for over, mesh, count in sizes:
        layer = PDOConv(mesh, count, count, n // 2)
        steps[f"{over} {len(rows)}"] = layer_step(layer, random_field(mesh, n, count, BATCH))
        rows.append({"over": over, "vertices": len(mesh), "fields": count, "N": n})
    seconds = run_in_turn(steps, repeats).values()
    return [
        row | summary({"spectral ms": 1e3 * s / BATCH})
        for row, s in zip(rows, seconds, strict=True)
    ]


def fit_exponents(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Exponents of the time in vertices and in fields, each with its 95 % half width."""
    exponents = {}
    for over in ("vertices", "fields"):
        found = [row for row in rows if row["over"] == over]
        order = fit_order([r[over] for r in found], [r["spectral ms"] for r in found])
        exponents[over] = order[:2]
    return exponents


def network_step(model: str, level: int, batch: int = NETWORK_BATCH) -> Step:
    """A training step of a registered network on random signals, in the precision of its recipe."""
    entry = MODELS["spherical_mnist", model]
    network = entry.build(level=level)
    x = torch.randn(batch, 1, len(grid_points(entry.grid_name(level))))
    target = torch.randint(10, (batch,))
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        with autocast(torch.device("cpu"), entry.recipe.get("amp", False)):
            loss = nn.functional.cross_entropy(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure_networks(level: int, repeats: int) -> list[Row]:
    """Time and peak memory of a training step of every registered network; the memory is that of a
    fresh process which makes the network and takes three steps."""
    names = [model for task, model in MODELS if task == "spherical_mnist"]
    seconds = run_in_turn({name: network_step(name, level) for name in names}, repeats)
    rows = []
    for name in names:
        memory = in_fresh_process(peak_memory, name, level, torch.get_num_threads())
        amp = MODELS["spherical_mnist", name].recipe.get("amp", False)
        row = {"network": name, "precision": precision(torch.device("cpu"), amp)}
        row |= summary({"ms a digit": 1e3 * seconds[name] / NETWORK_BATCH})
        rows.append(row | {"peak memory GB": memory})
    return rows


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value in a process forked from a small one: Linux lets a process that this one
    starts itself begin with this one's peak memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(model: str, level: int, threads: int) -> float:
    """Peak resident memory (GB) of this process after three training steps."""
    from bench.__main__ import _keep_freed_memory  # as in training

    _keep_freed_memory()
    torch.set_num_threads(threads)
    step = network_step(model, level)
    for _ in range(3):
        step()
    return peak_memory_gb(torch.device("cpu"))["peak_memory_gb"]
