"""The paper's tables: claims beside measurements, built from run folders alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from bench.config import ProtocolConfig, RunConfig, planned_runs, shipped
from bench.errors import RunError
from bench.registry import TASKS

CLAIMS = Path(__file__).resolve().parent.parent / "results" / "reference" / "paper_tables.csv"

TABLES = Path("results/tables")
OWN_PROTOCOL = "protocol.yaml"
"""Beside the tables of a protocol that is not in config/ as it is."""

COLUMNS = [
    "model",
    "setting",
    "metric",
    "claim_mean",
    "claim_std",
    "measured_mean",
    "measured_std",
    "n_seeds",
    "n_planned",
    "ci95_half_width",
    "params_claim",
    "params_measured",
    "protocol",
    "diverged",
    "only",
    "note",
]
"""Of a table's .csv. `n_seeds` counts runs that finished, `diverged` those that did not; `only`
names the settings (folds) measured so far, where that are not all of the column's; `note` is what a
reader must know of the claim."""

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


def read_claims(path: Path = CLAIMS) -> pd.DataFrame:
    """The published numbers, one row for each table, model, metric and setting (`split`); `note`
    is what a reader must know of a number, or empty."""
    return pd.read_csv(path).rename(columns={"split": "setting"}).fillna({"note": ""})


def read_metrics(results: Path, run: RunConfig) -> dict[str, Any] | None:
    """metrics.json of a run, or None where it has not ended under this very configuration.

    Raises:
        RunError: if the file cannot be read.
    """
    path = results / "runs" / run.key / "metrics.json"
    if not path.exists():
        return None
    try:
        metrics = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): delete it and run again") from error
    return metrics if metrics["config_hash"] == run.hash else None


def ended_runs(
    protocol: ProtocolConfig, task: str, results: Path
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Runs of a task that have ended, diverged ones too, each with its `read_metrics`."""
    runs = [run for run in planned_runs(protocol) if run.task == task]
    ended = [(run, read_metrics(results, run)) for run in runs]
    return [(run, metrics) for run, metrics in ended if metrics is not None]


def finished_runs(
    protocol: ProtocolConfig, task: str, results: Path
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Those of `ended_runs` that did not diverge.

    Raises:
        RunError: if there are none.
    """
    ended = ended_runs(protocol, task, results)
    found = [(run, metrics) for run, metrics in ended if metrics["status"] == "finished"]
    if not found:
        raise RunError(
            f"no finished run of {task} in protocol {protocol.protocol}: run "
            f"`{command(protocol)}` first"
        )
    return found


def build_table(
    protocol: ProtocolConfig, task: str, results: Path, empty: str = "no result"
) -> pd.DataFrame:
    """COLUMNS and `empty` (why there may be no measurement), one row for each model, and setting
    and metric of the table that it has. For the statistics see `summarise`."""
    entry, claims = TASKS[task], read_claims()
    claims = claims[claims["task"] == task].set_index(["model", "metric", "setting"])
    runs = [run for run in planned_runs(protocol) if run.task == task]
    ended = ended_runs(protocol, task, results)
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        for column, settings in entry.columns.items():
            mine = [r for r in runs if r.model == model and r.setting in settings]
            if not mine:
                continue
            found = [
                (run.setting, metrics)
                for run, metrics in ended
                if run.model == model and run.setting in settings
            ]
            for metric in entry.metrics:
                values = [
                    (setting, m["test"][column][metric])
                    for setting, m in found
                    if m["status"] == "finished"
                ]
                key = (model, metric, column)
                claim = claims.loc[key] if key in claims.index else None
                rows.append(
                    {
                        "model": model,
                        "setting": column,
                        "metric": metric,
                        "claim_mean": math.nan if claim is None else claim["mean"],
                        "claim_std": math.nan if claim is None else claim["std"],
                        **summarise(values, settings),
                        "n_planned": len(mine),
                        "params_claim": _params_claim(claims, model),
                        "params_measured": found[0][1]["parameters"] if found else None,
                        "protocol": protocol.protocol,
                        "diverged": sum(m["status"] == "diverged" for _, m in found),
                        "note": "" if claim is None else claim["note"],
                        "empty": empty,
                    }
                )
    table = pd.DataFrame(rows, columns=[*COLUMNS, "empty"])
    for name in ("params_claim", "params_measured"):
        table[name] = table[name].astype("Int64")
    return table


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
        "measured_mean": round(sample.mean(), 4),
        "measured_std": round(std, 4),
        "n_seeds": len(runs),
        "ci95_half_width": round(half, 4),
        "only": "" if whole else ", ".join(folds.index),
    }


def command(protocol: ProtocolConfig, folder: Path = TABLES) -> str:
    """What makes the tables of a protocol, of which those in the folder are. One that config/ does
    not have, or has otherwise, stands beside them."""
    if shipped(protocol.protocol) == protocol:
        return f"snakemake --cores 8 all --config protocol={protocol.protocol}"
    return f"snakemake --cores 8 all --configfile {folder / OWN_PROTOCOL}"


def _params_claim(claims: pd.DataFrame, model: str) -> int | None:
    if model not in claims.index:
        return None
    counts = claims.loc[[model], "params"].dropna()
    return int(counts.iloc[0]) if len(counts) else None
