"""The equivariance certificate: how far a network's outputs move when its input is rotated.

A signal f is rotated without error, f_R(x) = f(R x) evaluated anew at the sampling points x, so all
that moves is the network's doing, its sampling of the sphere included. Which signals:
`bench.rotated_signals`.

With y_i the output for signal i and y_ik that for signal i under rotation k,

    error_ik = |y_ik - y_i| / spread,    spread^2 = mean_i |y_i - mean_j y_j|^2,

in Euclidean norms: the spread is the standard deviation between signals, so 0 is invariance, and
sqrt 2 what exchanging a signal for another does (root mean square). `mean` and `max` are over i and
k; `mean_of_norm` and `max_of_norm` have norm^2 = mean_i |y_i|^2 in place of spread^2 (this flatters
outputs with a large common mean).

A field (mode n = 0 of the networks that have fibres, one value per field and vertex; the scores of
labels at each point, in segmentation) is an output like any other once it is pulled back: y_ik(P)
is compared with y_i(R_k P), interpolated, in L2 norms over the sphere. What interpolation alone
gets wrong is stated in the same units: `floor`, on band-limited signals at the field's vertices,
against their closed form; and `round_trip`, for the field itself, taken to the rotated vertices and
back. Coarse meshes do not carry degree L, and their fields are smoother: there the round trip says
more.

Definitions and interpolation: ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy import sparse
from scipy.spatial import SphericalVoronoi, cKDTree
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from baselines.molecules import Molecules
from bench.errors import ConfigError, RunError, unknown
from bench.provenance import git_state
from bench.registry import MODELS, models_of
from bench.rotated_signals import (
    BAND_LIMIT,
    Batches,
    band_limited_signals,
    digits,
    molecules,
    rooms,
)
from bench.seeds import derive
from bench.tasks_qm7 import in_one_batch
from bench.tasks_rooms import IGNORED
from data_prep.grids import grid_points
from data_prep.panorama_sampler import bilinear
from data_prep.spherical_mnist import haar_rotations
from pdo.mesh import MAX_LEVEL

LEVELS = {"spherical_mnist": 4, "qm7": 2, "stanford_2d3ds": 5, "synthetic_rooms": 4}
"""Of each task's networks where no run says which."""
NEVER = dict.fromkeys(("stanford_2d3ds", "synthetic_rooms"), IGNORED)
"""Classes that a task never predicts."""
SIGNALS = {"spherical_mnist": 100, "qm7": 40, "stanford_2d3ds": 8, "synthetic_rooms": 8}
"""Of each kind."""
NEIGHBOURS = 24
"""Vertices that enter an interpolation."""
Interpolation = Callable[[np.ndarray, np.ndarray], sparse.csr_array]
"""Unit vectors (P, 3) and (T, 3) -> the matrix (T, P) from values at the first to the others."""


def interpolation(points: np.ndarray, targets: np.ndarray) -> sparse.csr_array:
    """Matrix (T, P) that interpolates values at unit vectors `points` (P, 3) to `targets` (T, 3).

    At each target, the cubic spline s(x) = sum_q w_q |x - q|^3 + a + b.x through the NEIGHBOURS
    nearest points (distances in space, sum_q w_q = 0, sum_q w_q q = 0), evaluated there.
    """
    count = min(NEIGHBOURS, len(points))
    _, near = cKDTree(points).query(targets, count)
    offsets = points[near] - targets[:, None]
    offsets /= np.abs(offsets).max(axis=(1, 2), keepdims=True)  # for the condition number
    distances = np.linalg.norm(offsets[:, :, None] - offsets[:, None], axis=-1)
    linear = np.concatenate([np.ones_like(offsets[..., :1]), offsets], axis=-1)
    system = np.zeros((len(targets), count + 4, count + 4))
    system[:, :count, :count] = distances**3
    system[:, :count, count:] = linear
    system[:, count:, :count] = linear.swapaxes(1, 2)
    at_target = np.zeros((len(targets), count + 4, 1))
    at_target[:, :count, 0] = np.linalg.norm(offsets, axis=-1) ** 3
    at_target[:, count] = 1
    weights = np.linalg.solve(system, at_target)[:, :count, 0]
    starts = count * np.arange(len(targets) + 1)
    return sparse.csr_array(
        (weights.ravel(), near.ravel(), starts), shape=(len(targets), len(points))
    )


def bilinear_interpolation(points: np.ndarray, targets: np.ndarray) -> sparse.csr_array:
    """The same from the pixels of a panorama, `points` of a grid planar<L>, bilinear."""
    pixels, shares = bilinear(targets, round(np.sqrt(len(points) / 2)))
    rows = np.broadcast_to(np.arange(len(targets)), pixels.shape)
    entries = (shares.ravel().astype(float), (rows.ravel(), pixels.ravel()))
    return sparse.csr_array(entries, shape=(len(targets), len(points)))


def certificate(
    name: str,
    task: str | None = None,
    level: int | None = None,
    rotations: int = 8,
    signals: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
    data: Path = Path("data"),
) -> dict[str, Any]:
    """Certify a registered model on so many `signals` of each kind its task has (None: SIGNALS),
    all under the same Haar `rotations`; plain values for JSON, defined above.

    Without `weights` the network is untrained: random, its batch-norm statistics taken from the
    unrotated signals, anew for each kind. `weights` is a run's weights.safetensors; task, level,
    options and kind of data are then those of config.yaml beside it, if there is one. Else the task
    is the first one with a model of that name, the level that of LEVELS, and real digits and
    molecules are taken from `data`/raw if they are there, else synthetic ones.

    Raises:
        ConfigError: unknown task or model, or not the weights'; level out of range, fewer than 2
            signals, no rotation, a negative seed; weights that read Omni-MNIST.
        RunError: the weights cannot be read or are another network's, their digits are missing, or
            the network cannot take the molecules.
        DataError: the raw files are damaged.
    """
    run = _run_of(weights, name)
    if task is not None and run.get("task", task) != task:
        raise ConfigError(f"{weights} are weights of task {run['task']}, not of {task}")
    if run.get("setting") == "Omni":
        raise ConfigError(f"{weights} read Omni-MNIST, another projection: take those of N or R")
    task = _task_of(name, run.get("task", task))
    settings = run.get("data", {})
    level = settings.get("level", LEVELS[task]) if level is None else level
    signals = SIGNALS[task] if signals is None else signals
    if signals < 2:
        raise ConfigError(f"--signals must be at least 2 (errors are relative), not {signals}")
    if rotations < 1:
        raise ConfigError(f"--rotations must be at least 1, not {rotations}")
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0, not {seed}")
    if not 0 <= level <= MAX_LEVEL:
        raise ConfigError(f"--level must be in 0..{MAX_LEVEL}, not {level}")
    entry = MODELS[task, name]
    grid = entry.grid_name(level)

    def network() -> nn.Module:
        torch.manual_seed(derive(seed, "initialisation"))
        return entry.build(level=level, **run.get("options", {}))

    try:
        points = np.zeros((0, 3)) if grid == "none" else grid_points(grid)
        parameters = sum(p.numel() for p in network().parameters())
    except ValueError as error:
        raise ConfigError(f"{name} at level {level}: {error}") from error
    if task == "qm7":
        keys = ("power", "radius", "self_exclusion", "source")
        potential = {key: settings[key] for key in keys if key in settings}
        kinds = molecules(points, signals, seed, data, **potential)
    elif task == "spherical_mnist":
        sampling = {key: settings[key] for key in ("source", "legacy_bilinear") if key in settings}
        kinds = digits(points, signals, seed, data, **sampling)
    else:
        kinds = rooms(points, signals, seed)
    turns = haar_rotations(rotations, np.random.default_rng(derive(seed, "rotations")))
    inputs = {}
    for kind, batches in kinds.batches.items():
        model = network()
        if weights is not None:
            _load(model, weights)
        else:
            try:
                warm_up(model, batches(np.eye(3)), kinds.energies)
            except ValueError as error:
                raise RunError(f"{name} cannot take these {kinds.source}: {error}") from error
        interpolate = bilinear_interpolation if grid.startswith("planar") else interpolation
        inputs[kind] = certify(model, batches, points, turns, interpolate, NEVER.get(task, ()))
    return {
        "model": name,
        "task": task,
        "parameters": parameters,
        "level": level,
        "grid": grid,
        "weights": None if weights is None else str(weights),
        "source": kinds.source,
        "signals": signals,
        "rotations": rotations,
        "seed": seed,
        "band_limit": BAND_LIMIT,
        "interpolation_neighbours": NEIGHBOURS,
        **git_state(),
        "definitions": __doc__,
        "inputs": inputs,
    }


def certify(
    model: nn.Module,
    batches: Batches,
    points: np.ndarray,
    rotations: np.ndarray,
    interpolate: Interpolation = interpolation,
    never: Sequence[int] = (),
) -> dict[str, Any]:
    """Errors of one network, in evaluation mode, on signals sampled at points (P, 3) under
    rotations (K, 3, 3). `never` lists classes that are not predicted, whatever their scores.

    Returns `output` and `invariants` (errors as defined above), `invariants_are` ("features" of the
    model's method `invariants`, or "output" if it has none), `fields` (one entry for each field
    that the model exposes), and of outputs that are scores of classes or labels `agreement` (the
    share of rotated signals, or of the sphere, whose predicted class is that of the signal itself)
    and `agreement_by_chance` (of two signals drawn at random), else None.
    """
    model.eval()
    still = _outputs(model, batches(np.eye(3)))
    sizes = {len(value) for value in still.values() if value.ndim == 3}
    areas = {size: SphericalVoronoi(points[:size]).calculate_areas() for size in sizes}
    moves, trips, agreement = defaultdict(list), defaultdict(list), []
    for rotation in tqdm(rotations, desc="rotations", disable=None, leave=False):
        there, back = (
            {size: interpolate(points[:size], points[:size] @ r) for size in sizes}
            for r in (rotation.T, rotation)
        )
        for key, moved in _outputs(model, batches(rotation)).items():
            expected, area = still[key], None
            if expected.ndim == 3:
                size = len(expected)
                area, expected = areas[size], _apply(there[size], expected)
                trips[key].append(_norms(_apply(back[size], expected) - still[key], area))
            moves[key].append(_norms(moved - expected, area))
            if key == "output":
                same = _classes(moved, never) == _classes(expected, never)
                agreement.append(np.average(same.mean(axis=-1), weights=area))

    def errors(key: str) -> dict[str, Any]:
        value = still[key]
        if value.ndim == 2:
            return _relative(moves[key], value)
        area, vertices = areas[len(value)], points[: len(value)]
        return {
            "vertices": len(vertices),
            "fields": value.shape[1],
            **_relative(moves[key], value, area),
            "floor": interpolation_floor(vertices, rotations, interpolate),
            "round_trip": _relative(trips[key], value, area)["mean"],
        }

    output = still["output"]
    scores = output.shape[-2] > 1
    of_output = errors("output")
    return {
        "output": of_output,
        "invariants": errors("invariants") if "invariants" in still else of_output,
        "invariants_are": "features" if "invariants" in still else "output",
        "agreement": float(np.mean(agreement)) if scores else None,
        "agreement_by_chance": _by_chance(_classes(output, never), areas) if scores else None,
        "fields": [errors(key) for key in still if key.startswith("field")],
    }


def interpolation_floor(
    vertices: np.ndarray, rotations: np.ndarray, interpolate: Interpolation = interpolation
) -> float:
    """Mean error of interpolating 20 fixed band-limited signals from the vertices to the rotated
    vertices, relative to their spread."""
    signals = band_limited_signals(20, vertices, np.random.default_rng(0))
    still = signals(np.eye(3))[:, 0].T
    errors = [
        _norms(interpolate(vertices, vertices @ rotation.T) @ still - signals(rotation)[:, 0].T)
        for rotation in rotations
    ]
    mean = _relative(errors, still)["mean"]
    assert mean is not None  # the signals differ
    return mean


def warm_up(model: Any, batches: list[Any], energies: Tensor | None = None) -> None:
    """Let an untrained network take its statistics: of molecules, those of `fit`, and those of
    batch norm, means over the batches of what it finds in each."""
    if energies is not None:
        _fit(model, batches, energies)
    model.train()
    norms = [module for module in model.modules() if hasattr(module, "momentum")]
    with torch.no_grad():
        for k, batch in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1 / k
            model(batch)


def as_text(result: dict[str, Any]) -> str:
    """A certificate as a small table."""
    rows = []
    for kind, found in result["inputs"].items():
        lines = [("output", found["output"])]
        if found["invariants_are"] == "features":
            lines.insert(0, ("invariants", found["invariants"]))
        lines += [(f"{f['fields']} fields, {f['vertices']} vertices", f) for f in found["fields"]]
        keys = ("mean", "max", "mean_of_norm", "max_of_norm", "floor", "round_trip")
        rows += [[kind, what, *(errors.get(key) for key in keys)] for what, errors in lines]
    columns = ["signals", "output", "mean", "max", "mean/norm", "max/norm", "floor", "round trip"]
    head = (
        f"{result['model']} ({result['task']}) at level {result['level']} ({result['grid']}), "
        f"{result['weights'] or 'untrained'}\n{result['signals']} signals x "
        f"{result['rotations']} rotations, seed {result['seed']}; {result['source']}"
    )
    agreement = [
        f"{kind}: {100 * found['agreement']:.1f} % of predictions agree "
        f"(of unrelated signals: {100 * found['agreement_by_chance']:.1f} %)"
        for kind, found in result["inputs"].items()
        if found["agreement"] is not None
    ]
    note = (
        "Errors under rotation in units of the standard deviation between signals; /norm: of their "
        "norm.\nFields are pulled back by interpolation; floor: its own error at degree "
        f"{result['band_limit']}; round trip: of this\nfield there and back. Definitions: --json, "
        "or bench/equivariance.py."
    )
    body = tabulate(rows, columns, tablefmt="simple", floatfmt=".4f", missingval="")
    return "\n".join([head, "", body, "", *agreement, *([""] if agreement else []), note])


def _outputs(model: Any, batches: list[Any]) -> dict[str, np.ndarray]:
    """By name "output", "invariants" and "field 0", ..., where the model has them: values
    (channels, signals), or (vertices, channels, signals)."""
    parts = defaultdict(list)
    with torch.no_grad():
        for x in batches:
            output = model(x)
            output = output[:, None] if output.ndim == 1 else output
            parts["output"].append(output.T if output.ndim == 2 else output.permute(2, 1, 0))
            if hasattr(model, "invariants"):
                parts["invariants"].append(model.invariants(x).T)
            for i, field in enumerate(model.fields(x) if hasattr(model, "fields") else ()):
                parts[f"field {i}"].append(field[:, 0])
    return {key: torch.cat(part, dim=-1).double().numpy() for key, part in parts.items()}


def _apply(matrix: sparse.csr_array, field: np.ndarray) -> np.ndarray:
    return (matrix @ field.reshape(len(field), -1)).reshape(len(field), *field.shape[1:])


def _norms(values: np.ndarray, areas: np.ndarray | None = None) -> np.ndarray:
    """Euclidean norms over all axes but the last, the signals; of fields, root mean squares over
    the sphere."""
    squares = values**2 if areas is None else values**2 * (areas / areas.sum())[:, None, None]
    return np.sqrt(np.sum(squares, axis=tuple(range(values.ndim - 1))))


def _relative(
    distances: list[np.ndarray], reference: np.ndarray, areas: np.ndarray | None = None
) -> dict[str, float | None]:
    """The errors defined above, from |y_ik - y_i| and the y_i; None in place of x / 0."""
    deviations = _norms(reference - reference.mean(-1, keepdims=True), areas)
    spread = float(np.sqrt(np.mean(deviations**2)))
    norm = float(np.sqrt(np.mean(_norms(reference, areas) ** 2)))
    found: dict[str, float | None] = {}
    for suffix, unit in (("", spread), ("_of_norm", norm)):
        for key, value in (("mean", np.mean(distances)), ("max", np.max(distances))):
            found[key + suffix] = float(value / unit) if unit else 0.0 if value == 0 else None
    return found | {"spread": spread, "norm": norm}


def _classes(scores: np.ndarray, never: Sequence[int]) -> np.ndarray:
    """The class of the highest score, of those that are predicted at all (numbered anew)."""
    return np.delete(scores, list(never), axis=-2).argmax(axis=-2)


def _by_chance(classes: np.ndarray, areas: dict[int, np.ndarray]) -> float:
    """How often two signals drawn at random agree: the sum of the squared shares of the classes."""
    weights = np.ones(classes.shape)
    if classes.ndim == 2:
        weights *= areas[len(classes)][:, None]
    shares = np.bincount(classes.ravel(), weights.ravel()) / weights.sum()
    return float(np.sum(shares**2))


def _fit(model: Any, batches: list[Molecules], energies: Tensor) -> None:
    """`fit` of a network of molecules on all batches, without signals."""
    together = in_one_batch(
        np.concatenate([np.bincount(b.molecule, minlength=len(b)) for b in batches]),
        np.concatenate([b.charges for b in batches]),
        np.concatenate([b.positions for b in batches]),
        None,
    )
    model.fit(together, energies)


def _task_of(name: str, task: str | None) -> str:
    """The task of a model: the one asked for, else the first that has it; of those whose signals
    can be rotated."""
    if task is None:
        tasks = [t for t, model in MODELS if model == name]
        if not tasks:
            raise unknown("model", name, {model for _, model in MODELS})
        task = next((t for t in tasks if t in LEVELS), tasks[0])
    if name not in models_of(task):
        raise unknown(f"model of task {task}", name, models_of(task))
    if task not in LEVELS:
        raise ConfigError(f"bench/rotated_signals.py has no signals of task {task} to rotate")
    return task


def _run_of(weights: Path | None, name: str) -> dict[str, Any]:
    """The configuration beside a run's weights; {} if there is none."""
    if weights is None:
        return {}
    if weights.is_dir():
        raise RunError(f"{weights} is a folder: name the weights.safetensors in it")
    file = weights.with_name("config.yaml")
    run = yaml.safe_load(file.read_text()) if file.is_file() else {}
    if run and (network := run.get("network", run["model"])) != name:
        raise ConfigError(f"{weights} are weights of {network}, not of {name}")
    return run


def _load(model: nn.Module, weights: Path) -> None:
    try:
        model.load_state_dict(load_file(weights))
    except FileNotFoundError as error:
        raise RunError(f"{weights} is missing: name a run's weights.safetensors") from error
    except SafetensorError as error:
        raise RunError(f"{weights} is not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{weights} do not fit the network (other options, or an older version): {reason}"
        ) from error
