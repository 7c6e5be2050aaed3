"""Evaluating and training a recorded run again, to see whether its numbers come back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import stats

from bench.engine import ORIGIN, build, evaluate, seed_everything, train
from bench.errors import RunError
from bench.record import recorded_folder
from bench.registry import TASKS, columns_of
from bench.run_checks import ROUNDING, checked_metrics
from bench.run_folder import RunFolder, read_run
from bench.seeds import derive
from bench.tasks import TASK_CLASSES

SHARE = 1e-3
"""As many of the predicted classes, or one, may differ on another processor, where sums are rounded
otherwise."""
ENERGY = 0.01
"""As much may an energy differ there, in kcal/mol. Measured: 0.0002 between two processors."""


HALF = 0.005
"""Half of the last place of a score in the tables."""


def evaluate_recorded(key: str, results: Path, data: Path) -> tuple[str, bool]:
    """Evaluate the recorded weights of a run on its test sets; return a report and a verdict.

    The verdict is True where the recorded predictions come back: on the processor model of the run
    they do exactly, elsewhere up to SHARE of the classes, or energies up to ENERGY.

    Raises:
        RunError: the run or its weights are not recorded, or the data are not prepared.
    """
    folder = _recorded(key, results)
    weights = folder.path / "weights.safetensors"
    if not weights.exists():
        raise RunError(f"{folder.path} has no weights: `python -m bench reproduce {key}` trains it")
    torch.set_num_threads(folder.provenance.get("threads", 1))
    run = folder.run
    seed_everything(derive(run.base_seed, "initialisation", run.seed))
    task = TASK_CLASSES[run.task](run, data)
    model = build(run)
    task.fit(model)
    model.load_state_dict(load_file(weights))
    lines, verdict = _other_data(folder, task.facts["card"]), True
    with np.load(folder.path / "predictions.npz") as file:
        for column in task.tests:
            there = file[f"{column.replace('/', '_')}_predictions"]
            outputs = evaluate(task, model, column, torch.device("cpu"))
            same, text = _compared(outputs.predictions, there)
            verdict &= same
            recorded = folder.metrics["test"][column]
            scores = ", ".join(
                f"{name} {value:.4f} (recorded {recorded[name]:.4f})"
                for name, value in outputs.scores.items()
            )
            lines.append(f"{run.key} {column}: {text}; {scores}")
    return "\n".join(lines), verdict


def reproduce(key: str, results: Path, data: Path, out: Path) -> tuple[str, bool]:
    """Train a recorded run again below `out`; return a report and a verdict.

    A run that was stopped goes on. The verdict is True where predictions and recorded weights are
    the same bit for bit, or each score lies inside the 95 % prediction interval of the recorded
    seeds of its row, mean ± t_{0.975, n-1} s sqrt(1 + 1/n), from three seeds on.

    Raises:
        RunError: the run is not recorded, its data are not prepared, or `out` is `results`.
    """
    if out.resolve() == results.resolve():
        raise RunError(f"{out} holds the results themselves: name another folder by --out")
    folder = _recorded(key, results)
    run = folder.run
    torch.set_num_threads(folder.provenance.get("threads", 1))
    metrics = train(run, out, data, torch.device("cpu"), track=False)
    new = read_run(out / "runs" / run.key)
    lines = [f"{out / 'runs' / run.key}: {metrics['status']}"]
    lines += _changes(folder.provenance, new.provenance)
    lines += _other_data(folder, new.provenance["data"]["card"])
    if _same_files(folder.path, new.path):
        return "\n".join([*lines, f"{run.key}: the same bit for bit"]), True
    if metrics["status"] != "finished" or folder.metrics["status"] != "finished":
        said = f"{metrics['status']} in epoch {metrics['epochs']}"
        was = f"{folder.metrics['status']} in epoch {folder.metrics['epochs']}"
        return "\n".join([*lines, f"{run.key}: {said}, recorded: {was}"]), said == was
    inside = True
    for column in columns_of(run.task, run.setting):
        metric = TASKS[run.task].metric
        was, is_ = (m["test"][column][metric] for m in (folder.metrics, metrics))
        text, within = _against(is_, was, _seeds(folder, column, metric))
        lines.append(f"{run.key} {column} {metric}: {text}")
        inside &= within
    return "\n".join(lines), inside


def _recorded(key: str, results: Path) -> RunFolder:
    """Return a recorded run, named by its key or by its folder, after checking its files."""
    path = Path(key)
    if not (path / "metrics.json").exists() and key.count("/") == 4:
        path = recorded_folder(results, key)
    if not (path / "metrics.json").exists():
        raise RunError(f"{path} is no recorded run: name PROTOCOL/TASK/MODEL/SETTING/seedK")
    folder = read_run(path)
    checked_metrics(path, folder.run)
    if path != Path(key) and folder.run.key != key:
        raise RunError(f"{path} holds {folder.run.key}")
    return folder


def _other_data(folder: RunFolder, card: dict[str, Any]) -> list[str]:
    """Return a line if the data at hand are not those of a recorded run."""
    was, is_ = folder.provenance["data"]["card"]["sha256"], card["sha256"]
    names = [name for name in was if was[name] != is_.get(name)]
    return [f"the data here are not those of the run: {', '.join(names)} differ"] if names else []


def _compared(predictions: np.ndarray, there: np.ndarray) -> tuple[bool, str]:
    """Return whether predictions are the recorded ones, and how many are not."""
    if predictions.shape != there.shape:
        return False, f"{predictions.shape} predictions, {there.shape} are recorded"
    if np.array_equal(predictions, there):
        return True, f"the {there.size:,} recorded predictions"
    if there.dtype.kind == "f":
        most = float(np.abs(predictions - there).max())
        return most <= ENERGY, f"predictions differ by {most:.3g} kcal/mol at most"
    differ = int((predictions != there).sum())
    return differ <= max(1, SHARE * there.size), f"{differ:,} of {there.size:,} predictions differ"


def _same_files(a: Path, b: Path) -> bool:
    """Return whether predictions, and weights where both have them, are equal bit for bit."""
    if not all((folder / "predictions.npz").exists() for folder in (a, b)):
        return False
    with np.load(a / "predictions.npz") as one, np.load(b / "predictions.npz") as other:
        same = set(one.files) == set(other.files) and all(
            np.array_equal(one[name], other[name]) for name in one.files
        )
    pair = [folder / "weights.safetensors" for folder in (a, b)]
    if same and all(path.exists() for path in pair):
        same = pair[0].read_bytes() == pair[1].read_bytes()
    return same


def _changes(was: dict[str, Any], is_: dict[str, Any]) -> list[str]:
    """Return one line for each fact of code and machine that is another one now."""
    names = [name for name in ORIGIN if name not in ("git_dirty", "git_problem")]
    return [
        f"{name}: {was.get(name)} when recorded, {is_.get(name)} now"
        for name in names
        if was.get(name) != is_.get(name)
    ]


def _seeds(folder: RunFolder, column: str, metric: str) -> list[float]:
    """Return the scores of all recorded seeds of a run's row, each after its files were checked."""
    values = []
    for path in sorted(file.parent for file in folder.path.parent.glob("seed*/metrics.json")):
        metrics = checked_metrics(path, read_run(path).run)
        if metrics["status"] == "finished":
            values.append(metrics["test"][column][metric])
    return values


def _against(value: float, recorded: float, seeds: list[float]) -> tuple[str, bool]:
    """Return a score beside the recorded one and the interval of its seeds, and whether it fits."""
    text = f"{value:.4f}, recorded {recorded:.4f}"
    if len(seeds) < 3:
        off = value - recorded
        return f"{text} ({off:+.2g}); {len(seeds)} recorded seeds give no interval", abs(off) < HALF
    mean, std = float(np.mean(seeds)), float(np.std(seeds, ddof=1))
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * std * math.sqrt(1 + 1 / len(seeds))
    inside = abs(value - mean) <= half + ROUNDING
    where = "inside" if inside else "outside"
    return f"{text}; {where} the 95 % interval {mean - half:.2f} to {mean + half:.2f}", inside
