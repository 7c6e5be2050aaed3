"""A table as LaTeX for a paper: `table*` across both columns, booktabs, caption and label."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.frames import DAGGER, plus_minus
from bench.tables import called

FITTED = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
"""Shrinks a table that is wider than the page, and leaves another one as it is."""


def latex(
    table: pd.DataFrame, title: str, command: str, label: str, told: list[str], notes: list[str]
) -> str:
    """Return a float that needs the packages booktabs and graphicx.

    Args:
        table: as `bench.tables.build_table` gives it.
        title, told: the caption: what the table is, and the sentences after it.
        command: what made it, in a comment.
        label: for `\\ref`.
        notes: footnotes, the first is [1] in the cells.
    """
    groups = list(table.groupby(["setting", "metric"], sort=False))
    columns = [(key, kind) for key, group in groups for kind in _kinds(group)]
    rows = [_row(table, model, columns, notes) for model in table["model"].unique()]
    remarks = [f"[{k}] {note}" for k, note in enumerate(notes, 1)]
    caption = _tex(" ".join([f"{title}.", *told, *remarks]))
    several = table["metric"].nunique() > 1
    lines = [
        f"% {title}",
        f"% {command}",
        "% Packages: booktabs, graphicx.",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{{label}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        FITTED,
        rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}",
        r"\toprule",
        *_head(groups, several),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _kinds(group: pd.DataFrame) -> list[str]:
    """Return what stands in one setting: reported if anybody has, then each edition."""
    reported = ["reported"] if group["reported_mean"].notna().any() else []
    return reported + list(group["edition"].unique())


def _head(groups: list[tuple[Any, pd.DataFrame]], several: bool) -> list[str]:
    """Return two lines of headings, settings over kinds, and the rules between them."""
    first, rules, second, at = ["", ""], [], ["model", "parameters"], 3
    for (setting, metric), group in groups:
        kinds = _kinds(group)
        name = f"{setting} {called(metric)}" if several else setting
        first.append(rf"\multicolumn{{{len(kinds)}}}{{c}}{{{_tex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(kinds) - 1}}}")
        second += [kind or "reproduced" for kind in kinds]
        at += len(kinds)
    return [" & ".join(first) + r" \\", " ".join(rules), " & ".join(second) + r" \\"]


def _row(table: pd.DataFrame, model: str, columns: list[tuple[Any, str]], notes: list[str]) -> str:
    """Return one line: name, parameters, and a cell for each column."""
    mine = table[table["model"] == model]
    counts = mine["params_reproduced"].dropna()
    cells = [_tex(model), f"{counts.iloc[0]:,}" if len(counts) else "--"]
    for (setting, metric), kind in columns:
        here = mine[(mine["setting"] == setting) & (mine["metric"] == metric)]
        if kind != "reported":
            here = here[here["edition"] == kind]
        found = list(here.itertuples())
        cells.append(_cell(found[0], kind, notes) if found else "")
    return " & ".join(cells) + r" \\"


def _cell(row: Any, kind: str, notes: list[str]) -> str:
    """Return a reported number, or a reproduced one with the seeds that are missing."""
    if kind == "reported":
        text = plus_minus(row.reported_mean, row.reported_std) or "--"
        text += DAGGER if row.read_in_original == "no" and text != "--" else ""
        note = row.note if text != "--" else ""
    else:
        empty = "--" if row.empty == "no result" else row.empty
        text = plus_minus(row.reproduced_mean, row.reproduced_std) or empty
        note = row.caveat
        if row.n_seeds < row.n_planned and row.n_seeds:
            text += f" ({row.n_seeds}/{row.n_planned})"
    return _tex(text + (f" [{notes.index(note) + 1}]" if note else ""))


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    DAGGER: r"\textsuperscript{$\dagger$}",
    **{sign: f"\\{sign}" for sign in "%_&#${}"},
}
"""Signs that LaTeX would not show as they are."""


def _tex(text: str) -> str:
    """Return text as LaTeX shows it."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)
