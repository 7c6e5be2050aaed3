"""Certificates of registered networks: which signals they are shown, whose weights they have, and
what `bench.equivariance` finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor, nn

from baselines.molecules import ELEMENTS, Molecules
from bench import equivariance
from bench.equivariance import certify
from bench.errors import ConfigError, RunError, unknown
from bench.interpolation import NEIGHBOURS, bilinear_interpolation, interpolation
from bench.registry import MODELS, models_of
from bench.rotated_signals import BAND_LIMIT, digits, molecules, rooms
from bench.seeds import derive
from bench.source_tree import git_state
from bench.tasks_qm7 import in_one_batch
from bench.tasks_rooms import IGNORED
from data_prep.grids import grid_points
from data_prep.spherical_mnist import haar_rotations
from pdo.mesh import MAX_LEVEL


class Certified(NamedTuple):
    """How networks of a task are certified."""

    level: int
    """Where no run says which."""
    signals: int
    """Of each kind, where nobody says how many."""
    least: int = 2
    """Signals: with fewer there is no spread to which errors are relative."""
    keys: tuple[str, ...] = ()
    """Of a run's data: those that say how its signals are made."""
    never: tuple[int, ...] = ()
    """Classes that are not predicted."""
    unit: str | None = None
    """Of outputs."""


CERTIFIED = {
    "spherical_mnist": Certified(level=4, signals=100, keys=("source", "edition")),
    "qm7": Certified(
        level=2,
        signals=40,
        least=len(ELEMENTS) + 2,  # a fit to composition can match one fewer
        keys=("source", "power", "radius", "self_exclusion"),
        unit="kcal/mol",
    ),
    "stanford_2d3ds": Certified(level=5, signals=8, keys=("missing_depth_far",), never=IGNORED),
    "synthetic_rooms": Certified(level=4, signals=8, never=IGNORED),
}


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
    """Certify a registered model on so many `signals` of each kind its task has (None: CERTIFIED),
    all under the same Haar `rotations`; plain values for JSON, defined in `bench.equivariance`.

    Without `weights` the network is untrained: random, its batch-norm statistics taken from the
    unrotated signals, anew for each kind. `weights` is a run's weights.safetensors; task, level,
    options and kind of data are then those of config.yaml beside it, if there is one. Else the task
    is the first one with a model of that name, the level that of CERTIFIED, and real digits and
    molecules are taken from `data`/raw if they are there, else synthetic ones.

    Raises:
        ConfigError: unknown task or model, or not the weights'; level out of range, too few
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
    how = CERTIFIED[task]
    level = settings.get("level", how.level) if level is None else level
    signals = how.signals if signals is None else signals
    if signals < how.least:
        raise ConfigError(
            f"--signals must be at least {how.least} (errors are relative), not {signals}"
        )
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
    sampling = {key: settings[key] for key in how.keys if key in settings}
    if task == "qm7":
        kinds = molecules(points, signals, seed, data, **sampling)
    elif task == "spherical_mnist":
        kinds = digits(points, signals, seed, data, **sampling)
    else:
        kinds = rooms(points, signals, seed, **sampling)
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
        inputs[kind] = certify(model, batches, points, turns, interpolate, how.never)
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
        "unit": how.unit,
        **git_state(),
        "definitions": equivariance.__doc__,
        "inputs": inputs,
    }


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
    said = []
    for kind, found in result["inputs"].items():
        if found["agreement"] is not None:
            said.append(
                f"{kind}: {100 * found['agreement']:.1f} % of predictions agree "
                f"(of unrelated signals: {100 * found['agreement_by_chance']:.1f} %)"
            )
        if result["unit"] is not None:
            said.append(
                f"{kind}: an error of 1 in the output is {found['output']['spread']:.3g} "
                f"{result['unit']}, the spread of what composition does not explain"
            )
    note = (
        "Errors under rotation in units of the standard deviation between signals; /norm: of their "
        "norm.\nFields are pulled back by interpolation; floor: its own error at degree "
        f"{result['band_limit']}; round trip: of this\nfield there and back. Definitions: --json, "
        "or bench/equivariance.py."
    )
    body = tabulate(rows, columns, tablefmt="simple", floatfmt=".4f", missingval="")
    return "\n".join([head, "", body, "", *said, *([""] if said else []), note])


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
        task = next((t for t in tasks if t in CERTIFIED), tasks[0])
    if name not in models_of(task):
        raise unknown(f"model of task {task}", name, models_of(task))
    if task not in CERTIFIED:
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
