"""The paper's tables: reported numbers beside reproduced ones, built from run folders alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from bench.config import ProtocolConfig, RunConfig, planned_runs, shipped
from bench.data import DigitData
from bench.registry import TASKS
from bench.run_checks import checked_runs

REPORTED = Path(__file__).resolve().parent.parent / "results" / "reference" / "paper_tables.csv"

OWN_PROTOCOL = "protocol.yaml"
"""Beside the tables of a protocol that is not in config/ as it is."""

COLUMNS = [
    "model",
    "setting",
    "edition",
    "metric",
    "reported_mean",
    "reported_std",
    "read_in_original",
    "reproduced_mean",
    "reproduced_std",
    "n_seeds",
    "n_planned",
    "ci95_half_width",
    "params_reported",
    "params_reproduced",
    "protocol",
    "diverged",
    "only",
    "note",
    "caveat",
]
"""Columns of a table's .csv.

`edition` is that of Spherical MNIST, empty for other data. `read_in_original` is "no" where nobody
has read the reported number in its original paper. `n_seeds` counts runs that finished, `diverged`
those that did not. `only` names the settings (folds) measured so far, where some are missing.
`note` is a remark on the reported number, `caveat` one on the runs (from their provenance)."""

EDITIONS = ("published", "corrected")
"""Of Spherical MNIST, in the order of a table's columns."""

METRICS = {
    "accuracy_percent": "accuracy",
    "rmse_kcal_per_mol": "RMSE",
    "mean_accuracy_percent": "mAcc",
    "mean_iou_percent": "mIoU",
}
"""What a metric is called in headings, if not by its name."""


def called(metric: str) -> str:
    """A metric in headings."""
    return METRICS.get(metric, metric)


def read_reported(path: Path = REPORTED) -> pd.DataFrame:
    """Return the reported numbers, one row for each table, model, metric and setting (`split`)."""
    frame = pd.read_csv(path, dtype={"read_in_original": object})
    return frame.rename(columns={"split": "setting"}).fillna({"note": ""})


def by_edition(protocol: ProtocolConfig, task: str) -> dict[str, ProtocolConfig]:
    """Return the protocols whose runs a table shows, by the edition of their digits.

    One protocol under "" for a task without editions; else the protocol itself and, for the other
    edition, the one that it names as `beside`.
    """
    if not isinstance(protocol.tasks[task].data, DigitData):  # type: ignore[literal-required]
        return {"": protocol}
    protocols = [protocol]
    other = shipped(protocol.beside) if protocol.beside else None
    if other is not None and task in other.tasks:
        protocols.append(other)
    mine = {p.tasks[task].data.edition: p for p in reversed(protocols)}  # type: ignore[literal-required]
    return {edition: mine[edition] for edition in EDITIONS if edition in mine}


def build_table(
    protocol: ProtocolConfig, task: str, results: Path, empty: str = "no result"
) -> pd.DataFrame:
    """Return COLUMNS, `empty` (why there may be no result) and `runs` (those that have ended).

    One row for each model and each setting, edition and metric that it has. For the statistics see
    `summarise`.
    """
    entry, reported = TASKS[task], read_reported()
    reported = reported[reported["task"] == task].set_index(["model", "metric", "setting"])
    protocols = by_edition(protocol, task)
    planned = {e: [r for r in planned_runs(p) if r.task == task] for e, p in protocols.items()}
    ended = {edition: checked_runs(p, task, results) for edition, p in protocols.items()}
    counts = {run.model: m["parameters"] for one in ended.values() for run, m in one}
    rows = []
    for model in dict.fromkeys(run.model for run in planned_runs(protocol) if run.task == task):
        for column, settings in entry.columns.items():
            for edition, one in protocols.items():
                mine = [r for r in planned[edition] if r.model == model and r.setting in settings]
                if not mine:
                    continue
                found = [
                    (run, metrics)
                    for run, metrics in ended[edition]
                    if run.model == model and run.setting in settings
                ]
                for metric in entry.metrics:
                    rows.append(
                        {
                            "model": model,
                            "setting": column,
                            "edition": edition,
                            "metric": metric,
                            **_reported(reported, model, metric, column),
                            **_reproduced(found, column, metric, settings),
                            "params_reproduced": counts.get(model),
                            "n_planned": len(mine),
                            "protocol": one.protocol,
                            "caveat": _caveats([run for run, _ in found], results),
                            "empty": empty,
                            "runs": [run for run, _ in found],
                        }
                    )
    table = pd.DataFrame(rows, columns=[*COLUMNS, "empty", "runs"])
    for name in ("params_reported", "params_reproduced"):
        table[name] = table[name].astype("Int64")
    return table


def _reported(reported: pd.DataFrame, model: str, metric: str, column: str) -> dict[str, Any]:
    """Return the reported columns of one row."""
    key = (model, metric, column)
    row = reported.loc[key] if key in reported.index else None
    counts = reported[reported.index.get_level_values("model") == model]["params"].dropna()
    return {
        "reported_mean": math.nan if row is None else row["mean"],
        "reported_std": math.nan if row is None else row["std"],
        "read_in_original": "" if row is None else row["read_in_original"],
        "params_reported": int(counts.iloc[0]) if len(counts) else None,
        "note": "" if row is None else row["note"],
    }


def _reproduced(
    found: list[tuple[RunConfig, dict[str, Any]]],
    column: str,
    metric: str,
    settings: Sequence[str],
) -> dict[str, Any]:
    """Return the statistics of one row, from the runs that have ended."""
    values = [
        (run.setting, metrics["test"][column][metric])
        for run, metrics in found
        if metrics["status"] == "finished"
    ]
    return {
        **summarise(values, settings),
        "diverged": sum(metrics["status"] == "diverged" for _, metrics in found),
    }


def _caveats(runs: list[RunConfig], results: Path) -> str:
    """Return the caveats in the provenance of these runs, each once, as one text."""
    files = [results / "runs" / run.key / "provenance.json" for run in runs]
    found = [c for path in files for c in json.loads(path.read_text()).get("caveats", [])]
    return " ".join(dict.fromkeys(found))


def summarise(values: list[tuple[str, float]], settings: Sequence[str]) -> dict[str, Any]:
    """Statistics of a column that is the mean over `settings`, of runs as (setting, value).

    Mean and sample standard deviation s are over runs (seeds) where there is one setting; where
    there are several (folds), over these, each the mean of its seeds: seeds of one fold are not
    independent measurements of the column. ci95_half_width is that of the two-sided 95 %
    t-interval of the mean, t_{0.975, n-1} s / sqrt(n), if all settings have been measured; of two
    values, with t = 12.7, it would say nothing.
    """
    runs = pd.DataFrame(values, columns=["setting", "value"]).astype({"value": float})
    folds = runs.groupby("setting")["value"].mean()
    sample = folds if len(settings) > 1 else runs["value"]
    n, std = len(sample), sample.std(ddof=1)
    whole = len(folds) == len(settings)
    half = stats.t.ppf(0.975, n - 1) * std / math.sqrt(n) if whole and n > 2 else math.nan
    return {
        "reproduced_mean": round(sample.mean(), 4),
        "reproduced_std": round(std, 4),
        "n_seeds": len(runs),
        "ci95_half_width": round(half, 4),
        "only": "" if whole else ", ".join(folds.index),
    }


def tables_folder(results: Path, protocol: ProtocolConfig) -> Path:
    """Return the folder of a protocol's tables, report and figures."""
    return results / "tables" / protocol.protocol


def command(protocol: ProtocolConfig, folder: Path | None = None) -> str:
    """Return the command that makes the tables of a protocol, in `folder` (default: where they
    stand). One that config/ does not have, or has otherwise, is read from a file in that folder."""
    folder = folder or tables_folder(Path("results"), protocol)
    if shipped(protocol.protocol) == protocol:
        return f"snakemake --cores 8 all --config protocol={protocol.protocol}"
    return f"snakemake --cores 8 all --configfile {folder / OWN_PROTOCOL}"
