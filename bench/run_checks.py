"""Checking one run folder: its files must agree with each other, and with the place of the folder.

Nothing here believes metrics.json: scores are computed again from the predictions, the best epoch
is looked up in the history, and the data's card is compared with the configuration.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from bench.config import RunConfig, validated
from bench.errors import ConfigError, RunError
from bench.prepared import disagreements
from bench.registry import TASKS, columns_of
from bench.run_folder import read_json
from bench.tasks import TASK_CLASSES

ROUNDING = 1e-5
"""Scores are written with six decimals; sums may be rounded otherwise elsewhere."""


class RunFolder(NamedTuple):
    """The files of a run that has ended."""

    path: Path
    run: RunConfig
    metrics: dict[str, Any]
    provenance: dict[str, Any]


def read_run(path: Path) -> RunFolder:
    """Return what a run folder holds.

    Raises:
        RunError: a file is missing or cannot be read.
    """
    file = path / "config.yaml"
    try:
        run = validated(RunConfig, yaml.safe_load(file.read_text()), "run")
    except (OSError, yaml.YAMLError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{file} holds no configuration of a run ({reason})") from error
    return RunFolder(
        path, run, read_json(path / "metrics.json"), read_json(path / "provenance.json")
    )


def faults_of(folder: RunFolder) -> list[str]:
    """Return one line for each thing in a run folder that contradicts another, `file: reason`."""
    checks = (_configuration, _data, _outcome)
    faults = [fault for check in checks for fault in check(folder)]
    if not faults and folder.metrics["status"] == "finished":
        faults = [*_history(folder), *_scores(folder)]
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


def targets_of(folder: RunFolder) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each column of a run and its targets."""
    with np.load(folder.path / "predictions.npz") as file:
        for column in columns_of(folder.run.task, folder.run.setting):
            yield column, file[f"{column.replace('/', '_')}_targets"]


def digest(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and values."""
    head = f"{values.dtype.str} {values.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()


def _configuration(folder: RunFolder) -> Iterator[str]:
    """All files name the same run and the same configuration."""
    path, run, metrics, provenance = folder
    _, *place = run.key.split("/")
    if list(path.parts[-len(place) :]) != place:
        yield f"config.yaml: it is of {run.key}"
    if metrics.get("run", run.key) != run.key:
        yield f"metrics.json: it is of {metrics['run']}"
    if metrics.get("config_hash") != run.hash:
        yield "metrics.json: its config_hash is not that of config.yaml"
    if provenance.get("config_sha256") != run.hash:
        yield "provenance.json: its config_sha256 is not that of config.yaml"
    if provenance.get("config") != run.model_dump(mode="json"):
        yield "provenance.json: its configuration is not that of config.yaml"


def _data(folder: RunFolder) -> Iterator[str]:
    """The data's card agrees with the configuration, and the counts with the predictions."""
    data = folder.provenance.get("data")
    if not isinstance(data, dict):
        yield "provenance.json: it says nothing of the data"
        return
    yield from (f"provenance.json: {line}" for line in disagreements(folder.run, data.get("card")))


def _outcome(folder: RunFolder) -> Iterator[str]:
    """Status, numbers of epochs and parameters are possible ones."""
    metrics, run = folder.metrics, folder.run
    if metrics.get("status") not in ("finished", "diverged"):
        yield f"metrics.json: its status is {metrics.get('status')!r}"
        return
    if not isinstance(metrics.get("parameters"), int) or metrics["parameters"] < 1:
        yield f"metrics.json: {metrics.get('parameters')!r} parameters"
    if metrics["status"] == "finished" and metrics.get("epochs") != run.train.epochs:
        yield f"metrics.json: {metrics.get('epochs')} epochs, {run.train.epochs} are configured"


def _history(folder: RunFolder) -> Iterator[str]:
    """The best epoch is the one of the best validation score, and validation is its row."""
    metrics, task = folder.metrics, TASKS[folder.run.task]
    path = folder.path / "history.csv"
    try:
        with path.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        scores = [row[f"validation_{task.metric}"] for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        yield f"history.csv: it cannot be read ({error})"
        return
    if [row["epoch"] for row in rows] != list(range(1, metrics["epochs"] + 1)):
        yield f"history.csv: its epochs are not 1 to {metrics['epochs']}"
        return
    best = int(np.argmax(scores) if task.higher_is_better else np.argmin(scores)) + 1
    if metrics.get("best_epoch") != best:
        said = metrics.get("best_epoch")
        yield f"metrics.json: best_epoch is {said}, by history.csv it is {best}"
        return
    for name, value in metrics["validation"].items():
        there = rows[best - 1].get(f"validation_{name}", math.nan)
        if not abs(there - value) < ROUNDING:
            yield f"metrics.json: validation {name} is {value}, history.csv has {there:.6f}"


def _scores(folder: RunFolder) -> Iterator[str]:
    """The scores are those of the predictions, of as many samples as the test set has."""
    metrics, run = folder.metrics, folder.run
    columns = columns_of(run.task, run.setting)
    if set(metrics.get("test", {})) != set(columns):
        yield f"metrics.json: it has scores of {', '.join(metrics.get('test', {})) or 'nothing'}"
        return
    try:
        with np.load(folder.path / "predictions.npz") as file:
            arrays = {name: file[name] for name in file.files}
        for column in columns:
            name = column.replace("/", "_")
            predictions, targets = arrays[f"{name}_predictions"], arrays[f"{name}_targets"]
            if predictions.shape != targets.shape:
                raise ValueError(f"{predictions.shape} predictions of {targets.shape} targets")
            count = folder.provenance["data"]["counts"][column]
            if len(targets) != count:
                yield f"predictions.npz: {len(targets)} samples of {column}, the set has {count}"
            scores = TASK_CLASSES[run.task].score(predictions, targets)
            for metric in scores.keys() | metrics["test"][column].keys():
                said, is_ = metrics["test"][column].get(metric), scores.get(metric)
                known = isinstance(said, int | float) and is_ is not None
                if not known or not abs(said - is_) < ROUNDING:
                    yield f"metrics.json: {column} {metric} is {said}, its predictions give {is_}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"predictions.npz: it cannot be read ({error})"
