"""One self-contained page: tables, figures, recorded results, and every run with its provenance."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader

from bench import figures, figures_method, frames, run_folder, tables
from bench.config import ProtocolConfig, RunConfig, planned_runs
from bench.figures import Figure
from bench.registry import TASKS
from bench.segmentation import confusion
from data_prep.files import atomic_path, write_bytes

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).parent / "templates"
MOST_CLASSES = 20
"""Predictions with more values than that are no classes."""


def write_report(
    protocol: ProtocolConfig, results: Path, unavailable: dict[str, list[str]] | None = None
) -> Path:
    """Write report.html from the runs that there are; return its path.

    It stands in results/tables/<protocol>, and its figures below `figures` there, a folder that is
    made anew. No network, no script and no other file is needed to read the page.

    Args:
        unavailable: by task, why its data could not be had, one line for each source tried.
    """
    folder = tables.tables_folder(results, protocol)
    runs = planned_runs(protocol)
    ended = [run for run in runs if run_folder.read_metrics(results, run) is not None]
    sections = [
        _section(protocol, task, results, (unavailable or {}).get(task, []))
        for task in protocol.tasks
    ]
    method = _method(results)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        protocol=protocol,
        command=tables.command(protocol, folder),
        planned=len(runs),
        finished=len(ended),
        sections=sections,
        method=method,
        recorded=_recorded(results / "recorded"),
        runs={
            task: [_run(run, results) for run in ended if run.task == task]
            for task in protocol.tasks
        },
        citation=_citation(),
    )
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    shown = {section["id"]: section["figures"] for section in sections} | {"method": method}
    for about, drawn in shown.items():
        for figure in drawn:
            write_bytes(folder / "figures" / about / f"{figure.name}.png", figure.png)
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page)
    return path


def _section(
    protocol: ProtocolConfig, task: str, results: Path, tried: list[str]
) -> dict[str, Any]:
    """Return a table as in its files, and its figures."""
    empty = "data not available" if tried else "no result"
    table = tables.build_table(protocol, task, results, empty)
    made = frames.origins(protocol, task, results)
    page = results / "tables" / protocol.protocol
    shown = frames.page_frames(
        protocol,
        task,
        table,
        results,
        made,
        lambda run: frames.address(results / "runs" / run.key, page),
    )
    entry = TASKS[task]
    return {
        "id": task,
        "title": f"Table {entry.table}: {task}",
        "notices": [f"Data not available. Sources tried: {'; '.join(tried)}."] if tried else [],
        "tables": [_html(frame) for frame in shown],
        "meaning": frames.meaning(task, table, made),
        "notes": frames.notes(table),
        "figures": _figures(protocol, task, table, results),
    }


def _figures(
    protocol: ProtocolConfig, task: str, table: pd.DataFrame, results: Path
) -> list[Figure]:
    planned = [run for run in planned_runs(protocol) if run.task == task]
    ended = run_folder.ended_runs(protocol, task, results)
    runs = [run for run, metrics in ended if _finished(metrics)]
    if not runs:
        return []
    entry, table = TASKS[task], table[table["protocol"] == protocol.protocol]
    colour = figures.colours(list(dict.fromkeys(run.model for run in planned)))
    found = [figures.training_curves(runs, results, colour)]
    if sizes := figures.against_parameters(table, entry.metric, colour):
        found.append(sizes)
    if entry.rotated and (
        pair := figures.upright_against_rotated(table, entry.metric, entry.rotated, colour)
    ):
        found.append(pair)
    found.append(figures.cost(runs, results, colour))
    energies = {}
    for model in dict.fromkeys(run.model for run in runs):
        mine = [run for run in runs if run.model == model]
        column = next(iter(c for c, s in entry.columns.items() if mine[0].setting in s))
        targets, predictions = _predictions(mine, column, results)
        classes = len(entry.labels) or int(max(targets.max(), predictions.max())) + 1
        if predictions.dtype.kind == "f":
            energies[model] = np.stack([targets, predictions], axis=1)
        elif classes <= MOST_CLASSES:
            counts = confusion(predictions, targets, classes)
            found.append(figures.confusions({model: counts}, column, entry.labels))
    if energies:
        found.append(figures.parity(energies))
    return found + _panoramas(task, tables.tables_folder(results, protocol))


def _panoramas(task: str, folder: Path) -> list[Figure]:
    """Return the picture that `python -m bench rooms` has drawn, if it is there."""
    picture = folder / f"{task}_panoramas.png"
    if not picture.exists():
        return []
    alt = "Input, truth and prediction of each network for one panorama, upright and rotated"
    return [figures.of_file(picture, alt)]


def _finished(metrics: dict[str, Any]) -> bool:
    return metrics["status"] == "finished"


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


def _method(results: Path) -> list[Figure]:
    """What no run is needed for, from the files that there are."""
    found = []
    if (ROOT / "pdo/pretrained/index.json").exists():
        found.append(figures_method.signal_and_features())
    if (errors := results / "recorded/convergence/errors.csv").exists():
        found.append(figures_method.equivariance_against_mesh(errors))
    if (speed := results / "recorded/speed/speed.json").exists():
        found.append(figures_method.time_and_memory(json.loads(speed.read_text())))
    return found


def _recorded(folder: Path) -> list[dict[str, Any]]:
    """What stands in results/recorded: tables, pictures, and what their pages say in bold."""
    parts: list[dict[str, Any]] = []
    texts = ("note", "only", "edition", "caveat", "read_in_original")
    for one in sorted(path for path in folder.glob("*") if path.is_dir()):
        shown, notices = [], []
        for path in sorted(one.glob("table*.csv")):
            frame = pd.read_csv(path, dtype=dict.fromkeys(texts, object))
            frame = frame.fillna(dict.fromkeys(texts, ""))
            counts = {"params_reported": "Int64", "params_reproduced": "Int64"}
            frame = frame.astype(counts).assign(empty="no result")
            measured = frame[frame.groupby("model")["n_seeds"].transform("max") > 0]
            if len(measured):
                shown.append(
                    {
                        "title": f"Table {path.stem.removeprefix('table')}",
                        "html": _html(frames.wide(measured)),
                        "notes": frames.notes(measured),
                    }
                )
        for page in sorted(one.glob("table*.md")):
            notices += re.findall(r"^\*\*(.+)\*\*$", page.read_text(), re.MULTILINE)
        images = [
            figures.of_file(path, f"{one.name}: {path.stem.replace('_', ' ')}")
            for path in sorted(one.glob("*.png"))
        ]
        if shown or images:
            parts.append(
                {
                    "title": one.name,
                    "notices": list(dict.fromkeys(notices)),
                    "tables": shown,
                    "figures": images,
                }
            )
    return parts


def _run(run: RunConfig, results: Path) -> dict[str, Any]:
    folder = results / "runs" / run.key
    metrics = run_folder.read_metrics(results, run) or {}
    return {
        "id": re.sub(r"[^a-zA-Z0-9]+", "-", run.key),
        "key": run.key,
        "outcome": _outcome(run, metrics),
        "curves": _curves(folder / "history.csv"),
        "metrics": json.dumps(metrics, indent=2),
        "config": (folder / "config.yaml").read_text(),
        "provenance": (folder / "provenance.json").read_text(),
    }


def _curves(path: Path) -> list[dict[str, str]]:
    """Losses and validation metrics by epoch, as points of a polyline 300 wide and 60 high; of a
    run that diverged, those that are numbers."""
    if not path.exists():
        return []
    history = pd.read_csv(path).replace([np.inf, -np.inf], np.nan)
    curves = []
    for name in history.filter(regex="^(train|validation)_"):
        values = history[name].dropna()
        if values.empty:
            continue
        x = 300 * np.arange(len(values)) / max(len(values) - 1, 1)
        y = 60 * (values.max() - values) / (np.ptp(values) or 1)
        points = " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True))
        told = f"{values.iloc[0]:.4g} to {values.iloc[-1]:.4g} in {len(values)} epochs"
        curves.append({"name": name.replace("_", " "), "points": points, "told": told})
    return curves


def _outcome(run: RunConfig, metrics: dict[str, Any]) -> str:
    """`N/N accuracy 98.63, N/R accuracy 96.40`, or how it ended."""
    if not _finished(metrics):
        return metrics["status"]
    names = [(name, tables.called(name)) for name in TASKS[run.task].metrics]
    return ", ".join(
        f"{column} {title} {values[name]:.2f}"
        for column, values in metrics["test"].items()
        for name, title in names
    )


def _citation() -> dict[str, str]:
    """From CITATION.cff: the paper in words and as BibTeX, and this suite."""
    suite = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = suite["preferred-citation"]
    authors = [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]]
    fields = {
        "title": "{" + paper["title"] + "}",
        "author": " and ".join(authors),
        "booktitle": paper["collection-title"],
        "year": paper["year"],
        "url": paper["url"],
    }
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return {
        "words": f"{', '.join(authors)}: {paper['title']}. {paper['conference']['name']}, "
        f"{paper['year']}. {paper['url']}",
        "bibtex": "@inproceedings{shen2021pdoes2cnns,\n" + lines + "}",
        "suite": f"{suite['title']}, version {suite['version']}",
    }


def _html(frame: pd.DataFrame) -> str:
    told = frame.loc[:, (frame != "").any()]
    return frames.as_html(told)
