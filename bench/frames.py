"""The frames of a table's page: text in rows and columns, captions and footnotes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from bench.config import ProtocolConfig, RunConfig, planned_runs
from bench.provenance import stretches
from bench.registry import TASKS
from bench.run_folder import ended_runs
from bench.tables import by_edition, called

NOT_REPORTED = "not reported"
DAGGER = "†"
DAGGER_NOTE = f"{DAGGER} Reported value not read in the original paper, see the model card."
Link = Callable[[RunConfig], str]
"""Gives the address of a run's folder, as a page links it."""
EDITIONS_PAGE = "docs/findings/sampling-leak.md"


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table for reading, as text: one row a model, reported beside reproduced numbers.

    In a setting that only some models have, the cells of the others name those. Reported numbers
    have no column where nobody has reported any.
    """
    marks = notes(table)
    rows: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = rows.setdefault(
            row.model,
            {
                "parameters (reported)": _count(row.params_reported),
                "parameters (reproduced)": _count(row.params_reproduced),
            },
        )
        cells[f"{_column(row, table)} reported"] = _reported(row, marks)
        cells[f"{_column(row, table)} {_kind(row)}"] = _reproduced(row, marks)
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "model"
    for _, group in table.groupby(["setting", "metric"]):
        name, models = _column(group.iloc[0], table), ", ".join(group["model"].unique())
        kinds = ["reported", *dict.fromkeys(_kind(row) for row in group.itertuples())]
        columns = [f"{name} {kind}" for kind in kinds]
        frame[columns] = frame[columns].fillna(f"{models} only")
    empty = [c for c in frame if c.endswith(" reported") and (frame[c] == NOT_REPORTED).all()]
    return frame.drop(columns=empty).reset_index()


def _column(row: Any, table: pd.DataFrame) -> str:
    """Return the heading of a setting, with the metric where the table has several."""
    several = table["metric"].nunique() > 1
    return f"{row.setting} {called(row.metric)}" if several else row.setting


def _kind(row: Any) -> str:
    """Return the heading of a reproduced number: the edition of its digits, if it has one."""
    return row.edition or "reproduced"


def long(table: pd.DataFrame, link: Link) -> pd.DataFrame:
    """Return the table in full, as text: seeds, 95 % interval, difference to the reported value.

    The last column links each run that has ended, as Markdown, at the address that `link` gives.
    """
    marks = notes(table)
    return pd.DataFrame(
        [
            {
                "model": row.model,
                "setting": _column(row, table),
                **({"edition": row.edition} if row.edition else {}),
                "reported": _reported(row, marks),
                "reproduced": plus_minus(row.reproduced_mean, row.reproduced_std) or row.empty,
                "seeds": _seeds(row),
                "95 % interval": "" if pd.isna(row.ci95_half_width) else _interval(row),
                "difference": _difference(row, marks),
                "runs": " ".join(f"[{_short(run)}]({link(run)})" for run in row.runs),
            }
            for row in table.itertuples()
        ]
    )


def _short(run: RunConfig) -> str:
    """Return what tells a run from others of its cell: seed, or fold and seed."""
    fold = f"{run.setting}/" if run.setting.startswith("fold") else ""
    return f"{fold}seed{run.seed}"


def by_setting(protocol: ProtocolConfig, task: str, results: Path) -> pd.DataFrame:
    """All metrics of each training setting (fold) in each column that is the mean of several, mean
    ± sample standard deviation over its seeds, as text; empty where there is no such column."""
    columns = {c: s for c, s in TASKS[task].columns.items() if len(s) > 1}
    rows = []
    for run, metrics in ended_runs(protocol, task, results):
        for column, settings in columns.items():
            if metrics["status"] == "finished" and run.setting in settings:
                head = {"model": run.model, "setting": run.setting, "column": column}
                rows.append(head | metrics["test"][column])
    if not rows:
        return pd.DataFrame()
    groups = pd.DataFrame(rows).groupby(["model", "setting", "column"], sort=False)
    return over_runs(groups).assign(runs=groups.size()).reset_index()


def over_runs(
    groups: DataFrameGroupBy, places: Mapping[str, tuple[str, str]] | None = None
) -> pd.DataFrame:
    """Mean ± sample standard deviation of every column over the rows of each group, as text, with
    the `places` of a column, or two, for `plus_minus`."""
    mean, std = groups.mean(), groups.std(ddof=1)
    texts = {}
    for name in mean:
        formats = (places or {}).get(name, ())
        pairs = zip(mean[name], std[name], strict=True)
        texts[name] = [plus_minus(*pair, *formats) for pair in pairs]
    return pd.DataFrame(texts, index=mean.index)


def origins(protocol: ProtocolConfig, task: str, results: Path) -> pd.DataFrame:
    """Return processors, precisions and commits of the ended runs of each model, as text.

    A column of the table pools the lines of a model, or those of a model and an edition.
    """
    rows = []
    models = list(dict.fromkeys(run.model for run in planned_runs(protocol) if run.task == task))
    runs = [
        (run, edition)
        for edition, one in by_edition(protocol, task).items()
        for run, _ in ended_runs(one, task, results)
        if run.model in models
    ]
    for run, edition in sorted(runs, key=lambda pair: models.index(pair[0].model)):
        facts = json.loads((results / "runs" / run.key / "provenance.json").read_text())
        rows.append(
            {
                "model": run.model,
                "edition": edition,
                "processor": facts["gpu"] or facts["cpu"],
                "precision": facts["precision"],
                "commit": [str(stretch["git_commit"])[:7] for stretch in stretches(facts)],
            }
        )
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    keys = ["model", "edition", "processor", "precision"]
    if not frame["edition"].any():
        keys.remove("edition")
    groups = frame.groupby(keys, sort=False)["commit"]
    commits = groups.agg(lambda lists: ", ".join(dict.fromkeys(c for some in lists for c in some)))
    return pd.DataFrame({"runs": groups.size(), "commits": commits}).reset_index()


def page_frames(
    protocol: ProtocolConfig,
    task: str,
    table: pd.DataFrame,
    results: Path,
    made: pd.DataFrame,
    link: Link,
) -> list[pd.DataFrame]:
    """Return what a page shows of a table, as far as it has rows: `wide`, `long`, `by_setting`, and
    `made`, the `origins`."""
    frames = [wide(table), long(table, link), by_setting(protocol, task, results), made]
    return [frame for frame in frames if len(frame)]


def notes(table: pd.DataFrame) -> list[str]:
    """Return the footnotes, each once: remarks on reported numbers, then caveats of runs.

    The first is [1] in the tables.
    """
    return [note for name in ("note", "caveat") for note in table[name].unique() if note]


def meaning(task: str, table: pd.DataFrame, made: pd.DataFrame) -> str:
    """Return the caption of a table: how cells and intervals are computed, what its marks mean, and
    which models mix hardware (`made` are the `origins` of its runs)."""
    if all(len(settings) == 1 for settings in TASKS[task].columns.values()):
        text = (
            "Mean ± sample standard deviation over seeds (seeds found/planned). 95 % t-intervals "
            "of the mean, from three seeds on."
        )
    else:
        text = (
            "Mean ± sample standard deviation over folds, each the mean of its seeds (runs "
            "found/planned; the folds, if some are missing). 95 % t-intervals of the mean, where "
            "all folds are there; folds share training samples, so an interval describes them and "
            "is no test."
        )
    if table["edition"].any():
        editions = " and ".join(table["edition"].unique())
        text += f" Columns {editions}: reproduced on that edition of the digits ({EDITIONS_PAGE})."
    if (table["read_in_original"] == "no").any():
        text += f" {DAGGER_NOTE}"
    pooled = made.columns.intersection(["model", "edition"]).to_list()
    if len(made) and made.duplicated(pooled).any():
        mixed = ", ".join(made.loc[made.duplicated(pooled), "model"].unique())
        text += f" Columns of {mixed} pool runs of different processors or precisions."
    return text


def _count(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:,}"


def plus_minus(mean: float, std: float, places: str = ".2f", of_std: str = ".2f") -> str:
    """Empty where there is no mean, the mean alone where there is no deviation."""
    if pd.isna(mean):
        return ""
    return f"{mean:{places}}" + ("" if pd.isna(std) else f" ± {std:{of_std}}")


def _reported(row: Any, notes: list[str]) -> str:
    text = plus_minus(row.reported_mean, row.reported_std)
    if not text:
        return NOT_REPORTED
    return text + (DAGGER if row.read_in_original == "no" else "") + _mark(row.note, notes)


def _mark(note: str, notes: list[str]) -> str:
    """Return the footnote mark of a note."""
    return f" [{notes.index(note) + 1}]" if note else ""


def _seeds(row: Any) -> str:
    return f"{row.n_seeds}/{row.n_planned}" + (f", {row.diverged} diverged" * (row.diverged > 0))


def _reproduced(row: Any, notes: list[str]) -> str:
    text = plus_minus(row.reproduced_mean, row.reproduced_std) or row.empty
    only = f"; {row.only}" if row.only else ""
    return f"{text} ({_seeds(row)}{only})" + _mark(row.caveat, notes)


def _interval(row: Any) -> str:
    low, high = (row.reproduced_mean + sign * row.ci95_half_width for sign in (-1, 1))
    if row.metric.endswith("_percent"):
        low, high = max(low, 0), min(high, 100)
    return f"{low:.2f} to {high:.2f}"


def _difference(row: Any, notes: list[str]) -> str:
    """Return reproduced minus reported, with the footnote marks of both.

    Empty where folds are missing: the reported value is the mean over all.
    """
    difference = row.reproduced_mean - row.reported_mean
    missing = pd.isna(difference) or row.only
    marks = _mark(row.note, notes) + _mark(row.caveat, notes)
    return "" if missing else f"{difference:+.2f}{marks}"


def address(folder: Path, page: Path) -> str:
    """Return the relative address of a folder, as a page in the folder `page` links it."""
    return Path(os.path.relpath(folder, page)).as_posix()


def as_html(frame: pd.DataFrame) -> str:
    """Return a frame as an HTML table; its Markdown links become links."""
    text = frame.to_html(index=False, border=0)
    return re.sub(r"\[([^\[\]<]+)\]\(([^()\s<]+)\)", r'<a href="\2">\1</a>', text)
