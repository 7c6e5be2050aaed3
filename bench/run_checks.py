"""Checking one run folder: its files must agree with each other, and with the place of the folder.

Nothing here believes metrics.json: scores are computed again from the predictions, the best epoch
is looked up in the history, and the data's card is compared with the configuration.
"""

from __future__ import annotations

import csv
import hashlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import ProtocolConfig, RunConfig
from bench.errors import RunError
from bench.prepared import disagreements
from bench.registry import TASKS, columns_of
from bench.run_folder import RunFolder, ended_runs, read_run
from bench.tasks import TASK_CLASSES

ROUNDING = 1e-5
"""Scores are written with six decimals; sums may be rounded otherwise elsewhere."""


def faults_of(folder: RunFolder) -> list[str]:
    """Return one line for each thing in a run folder that contradicts another, `file: reason`."""
    checks = (_configuration, _data, _outcome)
    faults = [fault for check in checks for fault in check(folder)]
    if not faults:
        faults = list(_history(folder))
    if not faults and folder.metrics["status"] == "finished":
        faults = list(_scores(folder))
    return faults


def checked_metrics(path: Path, run: RunConfig) -> dict[str, Any]:
    """Return the metrics of the folder of a run, after all checks.

    Raises:
        RunError: the first fault, or a file that cannot be read.
    """
    folder = read_run(path)
    faults = faults_of(folder)
    if folder.run != run:
        faults.insert(0, "config.yaml: this is the configuration of another run")
    if faults:
        raise RunError(f"{path}/{faults[0]} (`python -m bench audit` lists all faults)")
    return folder.metrics


def checked_runs(
    protocol: ProtocolConfig, task: str, results: Path
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Return the runs of a task that have ended, each with its metrics, after all checks.

    Raises:
        RunError: a run contradicts itself.
    """
    runs = [run for run, _ in ended_runs(protocol, task, results)]
    return [(run, checked_metrics(results / "runs" / run.key, run)) for run in runs]


def finished_runs(
    protocol: ProtocolConfig, task: str, results: Path
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Return the runs of `checked_runs` that did not diverge.

    Raises:
        RunError: there are none, or a run contradicts itself.
    """
    ended = checked_runs(protocol, task, results)
    finished = [(run, metrics) for run, metrics in ended if metrics["status"] == "finished"]
    if not finished:
        raise RunError(
            f"no finished run of {task} in protocol {protocol.protocol}: run `snakemake --cores 2 "
            f"all --config protocol={protocol.protocol}` first"
        )
    return finished


def targets_of(folder: RunFolder) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each column of a run and its targets."""
    with np.load(folder.path / "predictions.npz") as file:
        for column in columns_of(folder.run.task, folder.run.setting):
            yield column, file[f"{column.replace('/', '_')}_targets"]


def digest(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and values."""
    head = f"{values.dtype.str} {values.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()


def misplaced(folder: RunFolder) -> list[str]:
    """Return a line if a folder is not at the place of its run: <protocol>/<task>/... below
    results/runs, <protocol>/runs/<task>/... below results/recorded."""
    *_, protocol, inner, task, model, setting, seed = folder.path.absolute().parts
    names = [protocol if inner == "runs" else inner, task, model, setting, seed]
    key = folder.run.key
    return [] if names == key.split("/") else [f"config.yaml: it is of {key}"]


def _configuration(folder: RunFolder) -> Iterator[str]:
    """All files name the same run and the same configuration."""
    _, run, metrics, provenance = folder
    if metrics["run"] != run.key:
        yield f"metrics.json: it is of {metrics['run']}"
    if metrics["config_hash"] != run.hash:
        yield "metrics.json: its config_hash is not that of config.yaml"
    if provenance["config_sha256"] != run.hash:
        yield "provenance.json: its config_sha256 is not that of config.yaml"
    if provenance["config"] != run.model_dump(mode="json"):
        yield "provenance.json: its configuration is not that of config.yaml"


def _data(folder: RunFolder) -> Iterator[str]:
    """The data's card agrees with the configuration, and says which arrays they are."""
    facts = folder.provenance
    card = facts["data"]["card"]
    yield from (f"provenance.json: {line}" for line in disagreements(folder.run, card))
    hashes = card.get("sha256")
    if not isinstance(hashes, dict) or not hashes:
        yield "provenance.json: the card has no SHA-256 of any file"
    if "approximation" in card and not facts.get("caveats"):
        yield "provenance.json: the data are an approximation, and no caveat says so"


def _outcome(folder: RunFolder) -> Iterator[str]:
    """Status, numbers of epochs and parameters are possible ones; what diverged has no result."""
    path, run, metrics, _ = folder
    if metrics["status"] not in ("finished", "diverged"):
        yield f"metrics.json: its status is {metrics['status']!r}"
        return
    if metrics["parameters"] < 1:
        yield f"metrics.json: {metrics['parameters']} parameters"
    diverged = metrics["status"] == "diverged"
    if not (1 if diverged else run.train.epochs) <= metrics["epochs"] <= run.train.epochs:
        yield f"metrics.json: {metrics['epochs']} epochs, {run.train.epochs} are configured"
    if diverged:
        if metrics["validation"] or metrics["test"]:
            yield "metrics.json: it has scores, and the run diverged"
        for name in ("predictions.npz", "weights.safetensors"):
            if (path / name).exists():
                yield f"{name}: it is there, and the run diverged"


def _history(folder: RunFolder) -> Iterator[str]:
    """The history has all epochs and possible numbers, and the best one is that of metrics.json.

    An epoch in which a run diverged has no row. The engine takes a later epoch only if it is
    better; one whose score is not a number never is.
    """
    metrics, task = folder.metrics, TASKS[folder.run.task]
    path = folder.path / "history.csv"
    length = metrics["epochs"] - (metrics["status"] == "diverged")
    try:
        rows = _rows(path) if length or path.exists() else []
        scores = [row[f"validation_{task.metric}"] for row in rows]
        impossible = [f"{k} {v}" for row in rows for k, v in row.items() if not _possible(k, v)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        yield f"history.csv: it cannot be read ({error})"
        return
    if [row.get("epoch") for row in rows] != list(range(1, length + 1)):
        yield f"history.csv: its epochs are not 1 to {length}"
        return
    if impossible:
        yield f"history.csv: it has {impossible[0]}"
        return
    best, highest = 0, -math.inf
    for epoch, score in enumerate(scores, 1):
        if (value := score if task.higher_is_better else -score) > highest:
            best, highest = epoch, value
    if metrics["best_epoch"] != best:
        yield f"metrics.json: best_epoch is {metrics['best_epoch']}, by history.csv it is {best}"
        return
    if metrics["status"] == "finished":
        there = {
            name.removeprefix("validation_"): value
            for name, value in rows[best - 1].items()
            if name.startswith("validation_") and name != "validation_loss"
        }
        for name in dict.fromkeys([*there, *metrics["validation"]]):
            said, is_ = metrics["validation"].get(name), there.get(name)
            if said is None or is_ is None or not abs(said - is_) < ROUNDING:
                yield f"metrics.json: validation {name} is {said}, history.csv has {is_}"


def _rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of a history as numbers."""
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _possible(name: str, value: float) -> bool:
    """Return whether a number of the history can be what its column says: nothing there is
    negative, no percentage above 100, and only validation can fail to give a number."""
    if not math.isfinite(value):
        return name.startswith("validation_")
    return 0 <= value <= (100 if name.endswith("_percent") else math.inf)


def _scores(folder: RunFolder) -> Iterator[str]:
    """The scores are those of the predictions, of as many samples as the test set has."""
    metrics, run = folder.metrics, folder.run
    counts = folder.provenance["data"]["counts"]
    columns = columns_of(run.task, run.setting)
    if set(metrics["test"]) != set(columns):
        yield f"metrics.json: it has scores of {', '.join(metrics['test']) or 'nothing'}"
        return
    try:
        with np.load(folder.path / "predictions.npz") as file:
            arrays = {name: file[name] for name in file.files}
        for column in columns:
            name = column.replace("/", "_")
            predictions, targets = arrays[f"{name}_predictions"], arrays[f"{name}_targets"]
            if predictions.shape != targets.shape:
                raise ValueError(f"{predictions.shape} predictions of {targets.shape} targets")
            if len(targets) != (count := counts.get(column)):
                yield f"predictions.npz: {len(targets)} samples of {column}, the set has {count}"
            scores = TASK_CLASSES[run.task].score(predictions, targets)
            for metric in dict.fromkeys([*scores, *metrics["test"][column]]):
                said, is_ = metrics["test"][column].get(metric), scores.get(metric)
                if said is None or is_ is None or not abs(said - is_) < ROUNDING:
                    yield f"metrics.json: {column} {metric} is {said}, its predictions give {is_}"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        yield f"predictions.npz: it cannot be read ({error})"
