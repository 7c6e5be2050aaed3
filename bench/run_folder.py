"""A run's folder: its files, and which runs of a protocol have ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, FiniteFloat

from bench.config import ProtocolConfig, RunConfig, planned_runs, validated
from bench.errors import ConfigError, RunError

RUN_FILES = ("metrics.json", "config.yaml", "provenance.json", "history.csv", "predictions.npz")
"""What a finished run leaves, beside its weights."""


class Metrics(BaseModel):
    """What metrics.json must hold, and of which kind."""

    model_config = ConfigDict(strict=True)

    run: str
    status: str
    config_hash: str
    parameters: int
    epochs: int
    best_epoch: int
    validation: dict[str, FiniteFloat]
    test: dict[str, dict[str, FiniteFloat]]


class Stretch(BaseModel):
    """Where a stretch of a run comes from."""

    model_config = ConfigDict(strict=True)

    git_commit: str | None
    git_dirty: bool | None = None


class DataFacts(BaseModel):
    """The data's part of provenance."""

    model_config = ConfigDict(strict=True)

    card: dict[str, Any]
    counts: dict[str, int]


class Provenance(Stretch):
    """What provenance.json must hold, and of which kind."""

    config: dict[str, Any]
    config_sha256: str
    data: DataFacts
    cpu: str
    gpu: str | None
    precision: str
    resumed_from: list[Stretch] = []
    caveats: list[str] = []


class RunFolder(NamedTuple):
    """The files of a run that has ended."""

    path: Path
    run: RunConfig
    metrics: dict[str, Any]
    provenance: dict[str, Any]


def read_metrics(results: Path, run: RunConfig) -> dict[str, Any] | None:
    """Return metrics.json of a run, None where it has not ended under this very configuration.

    Raises:
        RunError: the file cannot be read.
    """
    path = results / "runs" / run.key / "metrics.json"
    if not path.exists():
        return None
    metrics = read_json(path)
    return metrics if metrics.get("config_hash") == run.hash else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the entries of a JSON file of a run.

    Raises:
        RunError: the file cannot be read, or holds no entries.
    """
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): delete it and run again") from error
    if not isinstance(tree, dict):
        raise RunError(f"{path} holds no entries: delete it and run again")
    return tree


def read_run(path: Path) -> RunFolder:
    """Return what a run folder holds.

    Raises:
        RunError: a file is missing or cannot be read, or an entry is missing or of another kind.
    """
    file = path / "config.yaml"
    try:
        run = validated(RunConfig, yaml.safe_load(file.read_text()), "run")
    except (OSError, yaml.YAMLError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{file} holds no configuration of a run ({reason})") from error
    folder = RunFolder(
        path, run, read_json(path / "metrics.json"), read_json(path / "provenance.json")
    )
    kinds: tuple[tuple[str, type[BaseModel], dict[str, Any]], ...] = (
        ("metrics", Metrics, folder.metrics),
        ("provenance", Provenance, folder.provenance),
    )
    for name, kind, tree in kinds:
        try:
            validated(kind, tree, name)
        except ConfigError as error:
            raise RunError(f"{path / name}.json: {error}") from error
    return folder


def ended_runs(
    protocol: ProtocolConfig, task: str, results: Path
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Return the runs of a task that have ended, diverged ones too, each with its metrics."""
    runs = [run for run in planned_runs(protocol) if run.task == task]
    ended = [(run, read_metrics(results, run)) for run in runs]
    return [(run, metrics) for run, metrics in ended if metrics is not None]
