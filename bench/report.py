"""One self-contained page: tables, figures, recorded results, and every run with its provenance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from bench import figures, tables
from bench.config import ProtocolConfig, RunConfig, planned_runs
from bench.figures import MOST_CLASSES, Figure
from bench.registry import TASKS
from data_prep.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    protocol: ProtocolConfig, results: Path, unavailable: dict[str, list[str]] | None = None
) -> Path:
    """Write results/report.html from the runs that there are; returns its path. No network, no
    script and no other file is needed to read it.

    unavailable: by task, why its data could not be had, one line for each source tried.
    """
    runs = planned_runs(protocol)
    ended = [run for run in runs if tables.read_metrics(results, run) is not None]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        protocol=protocol,
        command=tables.command(protocol),
        planned=len(runs),
        finished=len(ended),
        sections=[
            _section(protocol, task, results, (unavailable or {}).get(task, []))
            for task in protocol.tasks
        ],
        recorded=_recorded(results / "recorded"),
        runs=[_run(run, results) for run in ended],
        citation=(ROOT / "CITATION.cff").read_text(),
    )
    path = results / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page)
    return path


def _section(
    protocol: ProtocolConfig, task: str, results: Path, tried: list[str]
) -> dict[str, Any]:
    """A table as in results/tables, and its figures."""
    empty = "data not available" if tried else "no result"
    table = tables.build_table(protocol, task, results, empty)
    details = tables.by_setting(protocol, task, results)
    frames = (tables.wide(table), tables.long(table), details)
    entry = TASKS[task]
    return {
        "id": task,
        "title": f"Table {entry.table}: {task}",
        "notices": [f"Data not available. Sources tried: {'; '.join(tried)}."] if tried else [],
        "tables": [frame.to_html(index=False, border=0) for frame in frames if len(frame)],
        "meaning": tables.meaning(task),
        "notes": tables.notes(table),
        "figures": _figures(protocol, task, table, results),
    }


def _figures(
    protocol: ProtocolConfig, task: str, table: pd.DataFrame, results: Path
) -> list[Figure]:
    runs = [run for run in planned_runs(protocol) if run.task == task]
    runs = [r for r in runs if (m := tables.read_metrics(results, r)) and m["status"] == "finished"]
    if not runs:
        return []
    entry = TASKS[task]
    found = [figures.training_curves(runs, results)]
    if sizes := figures.against_parameters(table, entry.metric):
        found.append(sizes)
    if entry.rotated and (
        pair := figures.upright_against_rotated(table, entry.metric, entry.rotated)
    ):
        found.append(pair)
    for model in dict.fromkeys(run.model for run in runs):
        mine = [run for run in runs if run.model == model]
        column = next(iter(c for c, s in entry.columns.items() if mine[0].setting in s))
        targets, predictions = _predictions(mine, column, results)
        if predictions.dtype.kind == "f":
            found.append(figures.parity(model, targets, predictions))
        elif max(targets.max(), predictions.max()) < MOST_CLASSES:
            found.append(figures.confusion(model, column, targets, predictions))
    return found


def _predictions(
    runs: list[RunConfig], column: str, results: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions of all runs that have the column, flat."""
    name, pairs = column.replace("/", "_"), []
    for run in runs:
        with np.load(results / "runs" / run.key / "predictions.npz") as file:
            if f"{name}_targets" in file:
                pair = (file[f"{name}_targets"], file[f"{name}_predictions"])
                pairs.append([values.ravel() for values in pair])
    targets, predictions = zip(*pairs, strict=True)
    return np.concatenate(targets), np.concatenate(predictions)


def _recorded(folder: Path) -> list[dict[str, Any]]:
    """What stands in results/recorded: tables, pictures, and what their pages say in bold."""
    parts: list[dict[str, Any]] = []
    for one in sorted(path for path in folder.glob("*") if path.is_dir()):
        frames = [pd.read_csv(path) for path in sorted(one.glob("table*.csv"))]
        frames = [frame[frame["n_seeds"] > 0].dropna(axis=1, how="all") for frame in frames]
        notices = []
        for page in sorted(one.glob("table*.md")):
            notices += re.findall(r"^\*\*(.+)\*\*$", page.read_text(), re.MULTILINE)
        images = [
            figures.of_file(path, f"{one.name}: {path.stem.replace('_', ' ')}")
            for path in sorted(one.glob("*.png"))
        ]
        if frames or images:
            shown = [f.to_html(index=False, border=0, na_rep="") for f in frames if len(f)]
            parts.append(
                {
                    "title": one.name,
                    "notices": list(dict.fromkeys(notices)),
                    "tables": shown,
                    "figures": images,
                }
            )
    if parts and (folder.parents[1] / "pdo" / "pretrained" / "index.json").exists():
        parts[0]["figures"].append(figures.signal_and_features())
    return parts


def _run(run: RunConfig, results: Path) -> dict[str, str]:
    folder = results / "runs" / run.key
    metrics = tables.read_metrics(results, run) or {}
    scores = json.dumps(metrics["test"]) if metrics["test"] else metrics["status"]
    return {
        "id": re.sub(r"[^a-zA-Z0-9]+", "-", run.key),
        "key": run.key,
        "outcome": scores,
        "metrics": json.dumps(metrics, indent=2),
        "config": (folder / "config.yaml").read_text(),
        "provenance": (folder / "provenance.json").read_text(),
    }
