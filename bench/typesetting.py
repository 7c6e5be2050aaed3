"""The paper's tables as one reads them: text, LaTeX and a page, beside the .csv."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Template
from pandas.api.typing import DataFrameGroupBy

from bench.config import ProtocolConfig, planned_runs, shipped
from bench.provenance import stretches
from bench.registry import TASKS
from bench.tables import COLUMNS, OWN_PROTOCOL, build_table, called, command, ended_runs
from data_prep.files import atomic_path

NOT_CLAIMED = "not claimed"


@dataclass(frozen=True)
class Page:
    """What the forms of a table say; `frames` are those of `page_frames`."""

    title: str
    notices: list[str]
    command: str
    frames: list[pd.DataFrame]
    meaning: str
    notes: list[str]


def write_tables(
    protocol: ProtocolConfig,
    results: Path,
    unavailable: dict[str, list[str]] | None = None,
    out: Path | None = None,
    tasks: Iterable[str] | None = None,
) -> list[Path]:
    """Write table<k>.csv, .md, .tex and .html of the tasks, all unless given, into `out`,
    results/tables unless given, and the protocol if it is not in config/ as it is; returns the
    paths of the tables.

    unavailable: by task, why its data could not be had, one line for each source tried.
    """
    out = out or results / "tables"
    out.mkdir(parents=True, exist_ok=True)
    (out / OWN_PROTOCOL).unlink(missing_ok=True)  # of other tables
    if shipped(protocol.protocol) != protocol:
        with atomic_path(out / OWN_PROTOCOL) as path:
            path.write_text(yaml.safe_dump(protocol.model_dump(), sort_keys=False))
    made_by, written = command(protocol, out), []
    for task in tasks or protocol.tasks:
        tried = (unavailable or {}).get(task, [])
        table = build_table(protocol, task, results, "data not available" if tried else "no result")
        notices = [protocol.notice] if protocol.notice else []
        if tried:
            notices.append(f"DATA NOT AVAILABLE. Sources tried: {'; '.join(tried)}.")
        made = origins(protocol, task, results)
        page = Page(
            title=_title(protocol, task),
            notices=notices,
            command=made_by,
            frames=page_frames(protocol, task, table, results, made),
            meaning=meaning(task, made),
            notes=[f"[{k}] {note}" for k, note in enumerate(notes(table), 1)],
        )
        stem = out / f"table{TASKS[task].table}"
        texts = {
            ".csv": table[COLUMNS].to_csv(index=False, lineterminator="\n"),
            ".md": markdown(page),
            ".tex": latex(page, wide(table)),
            ".html": html(page),
        }
        for suffix, text in texts.items():
            with atomic_path(stem.with_suffix(suffix)) as path:
                path.write_text(text)
            written.append(stem.with_suffix(suffix))
    return written


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: one row a model, claim and measurement side by side, as text. In a setting that
    only some models have, the cells of the others name those. Claims stand in no column where
    nobody claims anything."""
    rows: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = rows.setdefault(
            row.model,
            {
                "parameters (claim)": _count(row.params_claim),
                "parameters (ours)": _count(row.params_measured),
            },
        )
        cells[f"{_column(row, table)} claim"] = _claim(row, notes(table))
        cells[f"{_column(row, table)} ours"] = _measured(row)
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "model"
    for _, group in table.groupby(["setting", "metric"]):
        name, models = _column(group.iloc[0], table), ", ".join(group["model"])
        columns = [f"{name} claim", f"{name} ours"]
        frame[columns] = frame[columns].fillna(f"{models} only")
    unclaimed = [c for c in frame if c.endswith(" claim") and (frame[c] == NOT_CLAIMED).all()]
    return frame.drop(columns=unclaimed).reset_index()


def _column(row: Any, table: pd.DataFrame) -> str:
    """Heading of a setting, and of a metric where the table has several."""
    several = table["metric"].nunique() > 1
    return f"{row.setting} {called(row.metric)}" if several else row.setting


def long(table: pd.DataFrame) -> pd.DataFrame:
    """In full: seeds, 95 % interval and difference to the claim, as text."""
    return pd.DataFrame(
        [
            {
                "model": row.model,
                "setting": _column(row, table),
                "claim": _claim(row, notes(table)),
                "ours": plus_minus(row.measured_mean, row.measured_std) or row.empty,
                "seeds": _seeds(row),
                "95 % interval": "" if pd.isna(row.ci95_half_width) else _interval(row),
                "ours - claim": _difference(row, notes(table)),
            }
            for row in table.itertuples()
        ]
    )


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
    """Which processors, precisions and commits the runs of each model that have ended come from, as
    text. Columns of the tables pool the lines of a model."""
    rows = []
    models = list(dict.fromkeys(run.model for run in planned_runs(protocol) if run.task == task))
    runs = [run for run, _ in ended_runs(protocol, task, results)]
    for run in sorted(runs, key=lambda run: models.index(run.model)):
        facts = json.loads((results / "runs" / run.key / "provenance.json").read_text())
        rows.append(
            {
                "model": run.model,
                "processor": facts["gpu"] or facts["cpu"],
                "precision": facts["precision"],
                "commit": [str(stretch["git_commit"])[:7] for stretch in stretches(facts)],
            }
        )
    if not rows:
        return pd.DataFrame()
    groups = pd.DataFrame(rows).groupby(["model", "processor", "precision"], sort=False)["commit"]
    commits = groups.agg(lambda lists: ", ".join(dict.fromkeys(c for some in lists for c in some)))
    return pd.DataFrame({"runs": groups.size(), "commits": commits}).reset_index()


def page_frames(
    protocol: ProtocolConfig, task: str, table: pd.DataFrame, results: Path, made: pd.DataFrame
) -> list[pd.DataFrame]:
    """What a page shows of a table, as far as it has rows: `wide`, `long`, `by_setting`, and
    `made`, the `origins`."""
    frames = [wide(table), long(table), by_setting(protocol, task, results), made]
    return [frame for frame in frames if len(frame)]


def notes(table: pd.DataFrame) -> list[str]:
    """The notes on claims, each once; the first is [1] in the tables."""
    return [note for note in table["note"].unique() if note]


def markdown(page: Page) -> str:
    texts = [frame.to_markdown(index=False, disable_numparse=True) for frame in page.frames]
    parts = [page.title, *(f"**{notice}**" for notice in page.notices)]
    parts += [f"Made by `{page.command}`.", *texts[:1], page.meaning, *texts[1:], *page.notes]
    return "\n\n".join(parts) + "\n"


def latex(page: Page, shown: pd.DataFrame) -> str:
    style = shown.style.hide(axis="index").format(_tex).format_index(_tex, axis=1)
    told = "".join(f"\n{_tex(text)}\n" for text in [*page.notices, page.meaning, *page.notes])
    return f"% {page.title}\n% {page.command}\n{style.to_latex(hrules=True)}{told}"


def _tex(text: str) -> str:
    """Text as LaTeX shows it."""
    escaped = re.sub(r"([%_&#$])", r"\\\1", text)
    return escaped.replace("±", r"$\pm$")


def html(page: Page) -> str:
    return _PAGE.render(
        page=page, tables=[frame.to_html(index=False, border=0) for frame in page.frames]
    )


_PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ page.title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem }
body { padding: 0 1rem }
table { border-collapse: collapse; margin: 1.5rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd }
th, td { text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.notice { background: #fff3cd; padding: .6rem 1rem; font-weight: 600 }
</style></head><body>
<h1>{{ page.title }}</h1>
{% for notice in page.notices %}<p class="notice">{{ notice | e }}</p>{% endfor %}
<p>Made by <code>{{ page.command }}</code>. {{ page.meaning }}</p>
{% for table in tables %}{{ table }}{% endfor %}
{% for note in page.notes %}<p>{{ note }}</p>{% endfor %}
</body></html>
""",
    autoescape=False,
)


def _title(protocol: ProtocolConfig, task: str) -> str:
    entry = TASKS[task]
    metrics = ", ".join(entry.metrics) + ("" if entry.higher_is_better else ", lower is better")
    return f"Table {entry.table}: {task} ({metrics}), protocol {protocol.protocol}"


def meaning(task: str, made: pd.DataFrame) -> str:
    """What a cell of the task's table is, what an interval, and what runs stand in one column, if
    `made` are its `origins`."""
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
    if len(made) and made["model"].duplicated().any():
        mixed = ", ".join(made.loc[made["model"].duplicated(), "model"].unique())
        text += f" Columns pool runs of different processors or precisions, those of {mixed}."
    return text


def _count(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:,}"


def plus_minus(mean: float, std: float, places: str = ".2f", of_std: str = ".2f") -> str:
    """Empty where there is no mean, the mean alone where there is no deviation."""
    if pd.isna(mean):
        return ""
    return f"{mean:{places}}" + ("" if pd.isna(std) else f" ± {std:{of_std}}")


def _claim(row: Any, notes: list[str]) -> str:
    text = plus_minus(row.claim_mean, row.claim_std) or NOT_CLAIMED
    return text + _mark(row, notes)


def _mark(row: Any, notes: list[str]) -> str:
    """Of the claim's note."""
    return f" [{notes.index(row.note) + 1}]" if row.note else ""


def _seeds(row: Any) -> str:
    return f"{row.n_seeds}/{row.n_planned}" + (f", {row.diverged} diverged" * (row.diverged > 0))


def _measured(row: Any) -> str:
    text = plus_minus(row.measured_mean, row.measured_std) or row.empty
    return f"{text} ({_seeds(row)}{f'; {row.only}' if row.only else ''})"


def _interval(row: Any) -> str:
    low, high = (row.measured_mean + sign * row.ci95_half_width for sign in (-1, 1))
    if row.metric.endswith("_percent"):
        low, high = max(low, 0), min(high, 100)
    return f"{low:.2f} to {high:.2f}"


def _difference(row: Any, notes: list[str]) -> str:
    """With the claim's note, which may say that other data were measured. None where folds are
    missing: the claim is the mean over all."""
    difference = row.measured_mean - row.claim_mean
    missing = pd.isna(difference) or row.only
    return "" if missing else f"{difference:+.2f}{_mark(row, notes)}"
