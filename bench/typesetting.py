"""The paper's tables as one reads them: text, LaTeX and a page, beside the .csv."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Template

from bench.config import ProtocolConfig, shipped
from bench.errors import unknown
from bench.frames import Link, address, as_html, meaning, notes, origins, page_frames
from bench.latex import latex
from bench.outdated import MADE_OF, made_of
from bench.registry import TASKS
from bench.tables import COLUMNS, OWN_PROTOCOL, build_table, command, tables_folder
from data_prep.files import atomic_path, write_json


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
    models: list[str] | None = None,
    settings: list[str] | None = None,
    made_by: str | None = None,
    link: Link | None = None,
) -> list[Path]:
    """Write table<k>.csv, .md, .tex and .html of each task; return their paths.

    A protocol that is not in config/ as it is stands beside its tables, and what whole tables were
    made of, for `bench.outdated`.

    Args:
        unavailable: by task, why its data could not be had, one line for each source tried.
        out: folder, results/tables/<protocol> unless given.
        tasks, models, settings: tables, rows and columns, all unless given.
        made_by: the command to print, `bench.tables.command` unless given.
        link: gives the address of a run's folder, that below results/runs unless given.

    Raises:
        ConfigError: no table has such a row or column.
    """
    out = out or tables_folder(results, protocol)
    made_by, tables = made_by or command(protocol, out), {}
    shown = made_of(protocol, results, unavailable)  # before: a run may end meanwhile
    for task in tasks or protocol.tasks:
        empty = "data not available" if (unavailable or {}).get(task) else "no result"
        tables[task] = build_table(protocol, task, results, empty)
    for column, chosen in (("model", models), ("setting", settings)):
        tables = _chosen(tables, column, chosen)
    link = link or (lambda run: address(results / "runs" / run.key, out))
    out.mkdir(parents=True, exist_ok=True)
    for name in (OWN_PROTOCOL, MADE_OF):  # of other tables
        (out / name).unlink(missing_ok=True)
    if shipped(protocol.protocol) != protocol:
        with atomic_path(out / OWN_PROTOCOL) as path:
            path.write_text(yaml.safe_dump(protocol.model_dump(), sort_keys=False))
    written = []
    for task, table in tables.items():
        tried = (unavailable or {}).get(task, [])
        notices = [protocol.notice] if protocol.notice else []
        if tried:
            notices.append(f"DATA NOT AVAILABLE. Sources tried: {'; '.join(tried)}.")
        made = origins(protocol, task, results)
        page = Page(
            title=_title(protocol, task),
            notices=notices,
            command=made_by,
            frames=page_frames(protocol, task, table, results, made, link),
            meaning=meaning(task, table, made),
            notes=[f"[{k}] {note}" for k, note in enumerate(notes(table), 1)],
        )
        stem = out / f"table{TASKS[task].table}"
        label = f"tab:{task}-{protocol.protocol}".replace("_", "-")
        told = [*page.notices, page.meaning]
        texts = {
            ".csv": table[COLUMNS].to_csv(index=False, lineterminator="\n"),
            ".md": markdown(page),
            ".tex": latex(table, page.title, page.command, label, told, notes(table)),
            ".html": html(page),
        }
        for suffix, text in texts.items():
            with atomic_path(stem.with_suffix(suffix)) as path:
                path.write_text(text)
            written.append(stem.with_suffix(suffix))
    if not (tasks or models or settings):  # only now: all tables agree with it
        write_json(out / MADE_OF, shown)
    return written


def _chosen(
    tables: dict[str, pd.DataFrame], column: str, chosen: list[str] | None
) -> dict[str, pd.DataFrame]:
    """Return the chosen rows of each table, without the tables that have none of them."""
    if chosen is None:
        return tables
    valid = [name for table in tables.values() for name in table[column].unique()]
    for name in chosen:
        if name not in valid:
            raise unknown({"model": "row", "setting": "column"}[column], name, dict.fromkeys(valid))
    parts = {task: table[table[column].isin(chosen)] for task, table in tables.items()}
    return {task: table for task, table in parts.items() if len(table)}


def markdown(page: Page) -> str:
    texts = [frame.to_markdown(index=False, disable_numparse=True) for frame in page.frames]
    parts = [page.title, *(f"**{notice}**" for notice in page.notices)]
    parts += [f"Made by `{page.command}`.", *texts[:1], page.meaning, *texts[1:], *page.notes]
    return "\n\n".join(parts) + "\n"


def html(page: Page) -> str:
    return _PAGE.render(page=page, tables=[as_html(frame) for frame in page.frames])


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
