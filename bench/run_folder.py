"""A run's folder: its files, and which runs of a protocol have ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.config import ProtocolConfig, RunConfig, planned_runs
from bench.errors import RunError

RUN_FILES = ("metrics.json", "config.yaml", "provenance.json", "history.csv", "predictions.npz")
"""What a finished run leaves, beside its weights."""


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


def ended_runs(
    protocol: ProtocolConfig, task: str, results: Path
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Return the runs of a task that have ended, diverged ones too, each with its metrics."""
    runs = [run for run in planned_runs(protocol) if run.task == task]
    ended = [(run, read_metrics(results, run)) for run in runs]
    return [(run, metrics) for run, metrics in ended if metrics is not None]


def finished_runs(
    protocol: ProtocolConfig, task: str, results: Path
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Return the runs of `ended_runs` that did not diverge.

    Raises:
        RunError: there are none.
    """
    ended = ended_runs(protocol, task, results)
    finished = [(run, metrics) for run, metrics in ended if metrics["status"] == "finished"]
    if not finished:
        raise RunError(
            f"no finished run of {task} in protocol {protocol.protocol}: run `snakemake --cores 2 "
            f"all --config protocol={protocol.protocol}` first"
        )
    return finished
