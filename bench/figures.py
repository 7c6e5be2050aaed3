"""Figures of runs, for the report."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Plot
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from bench.config import RunConfig
from bench.registry import TASKS
from bench.tables import called

matplotlib.use("Agg")

Colours = dict[str, Any]
"""By model, the same in all figures of a table."""

DPI = 110


@dataclass(frozen=True)
class Figure:
    """A PNG image, the name of its file, and what it shows."""

    name: str
    png: bytes
    alt: str

    @property
    def uri(self) -> str:
        """The image itself, for a page without other files."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width, height

    @property
    def place(self) -> str:
        """On the page: `wide` figures take a row, `small` ones stand side by side on phones too."""
        return "wide" if self.size[0] > 8 * DPI else "small" if self.size[0] < 4 * DPI else "normal"


def of_file(path: Path, alt: str) -> Figure:
    """A PNG file."""
    return Figure(path.stem, path.read_bytes(), alt)


def colours(models: Sequence[str]) -> Colours:
    """A colour for each model."""
    palette = plt.get_cmap("tab10" if len(models) <= 10 else "tab20")
    return {model: palette(i % palette.N) for i, model in enumerate(models)}


def training_curves(runs: list[RunConfig], results: Path, colour: Colours) -> Figure:
    """Validation metric of each model by epoch, mean over its runs and their range; runs of the
    training settings that feed the table's first column."""
    column, settings = next(iter(TASKS[runs[0].task].columns.items()))
    metric = TASKS[runs[0].task].metric
    runs = [run for run in runs if run.setting in settings] or runs
    plot, axes = _axes()
    for model in dict.fromkeys(run.model for run in runs):
        curves = [_history(run, results) for run in runs if run.model == model]
        frame = pd.concat([curve[f"validation_{metric}"] for curve in curves], axis=1)
        marker = "o" if len(frame) < 4 else None
        axes.plot(frame.index, frame.mean(axis=1), color=colour[model], marker=marker, label=model)
        low, high = frame.min(axis=1), frame.max(axis=1)
        axes.fill_between(frame.index, low, high, color=colour[model], alpha=0.15)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"validation {called(metric)}")
    if not TASKS[runs[0].task].higher_is_better:
        axes.set_yscale("log")
    _legend(plot)
    alt = f"Training for {column}: validation metric by epoch, mean and range over runs"
    return finish(plot, "training", alt)


def against_parameters(table: pd.DataFrame, metric: str, colour: Colours) -> Figure | None:
    """Measured metric by number of parameters; the settings of a model stand above each other."""
    shown = table[(table["metric"] == metric) & table["reproduced_mean"].notna()]
    if shown.empty:
        return None
    plot, axes = _axes()
    markers = dict(zip(shown["setting"].unique(), "os^DvP*X", strict=False))
    for model, rows in shown.groupby("model", sort=False):
        parameters = rows["params_reproduced"].astype(float)
        axes.plot(parameters, rows["reproduced_mean"], color=colour[model], alpha=0.6, label=model)
        for x, row in zip(parameters, rows.itertuples(), strict=True):
            axes.plot(x, row.reproduced_mean, markers[row.setting], color=colour[model], ms=5)
    for setting, marker in markers.items():
        axes.plot([], [], marker, color="0.4", label=setting)
    _by_parameters(axes)
    axes.set_ylabel(called(metric))
    _legend(plot)
    return finish(plot, "parameters", f"{called(metric)} against the number of parameters")


def upright_against_rotated(
    table: pd.DataFrame, metric: str, pair: tuple[str, str], colour: Colours
) -> Figure | None:
    """What networks trained on upright samples score on upright and on rotated ones; None where
    nothing of the kind was measured."""
    shown = table[table["metric"] == metric].pivot(
        index="model", columns="setting", values="reproduced_mean"
    )
    shown = shown.reindex(index=list(colour), columns=list(pair)).dropna()
    if shown.empty:
        return None
    plot, axes = _axes()
    for model, row in shown.iterrows():
        axes.plot([0, 1], [row[pair[0]], row[pair[1]]], "o-", color=colour[model], label=model)
    axes.set_xticks([0, 1], [f"upright ({pair[0]})", f"rotated ({pair[1]})"])
    axes.set_ylabel(called(metric))
    axes.set_xlim(-0.2, 1.2)
    _legend(plot)
    return finish(plot, "rotation", f"{called(metric)} of upright and of rotated test samples")


def cost(runs: list[RunConfig], results: Path, colour: Colours) -> Figure:
    """Seconds an epoch and peak memory of each model, medians over its runs, by parameters."""
    rows, machines = [], set()
    for run in runs:
        folder = results / "runs" / run.key
        facts = json.loads((folder / "provenance.json").read_text())
        machines.add(facts["gpu"] or facts["cpu"])
        rows.append(
            {
                "model": run.model,
                "parameters": json.loads((folder / "metrics.json").read_text())["parameters"],
                "seconds an epoch": _history(run, results)["seconds"].median(),
                "peak memory in GB": facts["peak_memory_gb"],
            }
        )
    plot, panels = plt.subplots(2, figsize=(5.6, 4.8), sharex=True, layout="constrained")
    for model, row in pd.DataFrame(rows).groupby("model", sort=False).median().iterrows():
        for axes, name in zip(panels, ("seconds an epoch", "peak memory in GB"), strict=True):
            axes.plot(row["parameters"], row[name], "o", color=colour[model], label=model)
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
    panels[0].set_yscale("log")
    _by_parameters(panels[1])
    _legend(plot)
    return finish(
        plot,
        "cost",
        "Time of an epoch and peak memory of the process against the number of parameters, medians "
        f"over runs, on {', '.join(sorted(machines))}",
    )


def confusions(found: dict[str, np.ndarray], column: str, labels: Sequence[str]) -> Figure:
    """Of each model, from counts (n, n): how often a class (row) is taken for another, as shares of
    the class; `labels` are names of the classes, or empty."""
    side = 4.2 if labels else 3.2
    plot, panels = plt.subplots(
        1, len(found), figsize=(side * len(found), side), squeeze=False, layout="constrained"
    )
    for axes, (model, counts) in zip(panels[0], found.items(), strict=True):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        axes.set_title(model, fontsize="medium")
        names = labels or [str(k) for k in range(len(counts))]
        axes.set_xticks(range(len(names)), names, fontsize="small", rotation=90 * bool(labels))
        first = axes is panels[0, 0]
        axes.set_yticks(range(len(names)), names if first else [], fontsize="small")
        axes.set_xlabel("taken for")
    panels[0, 0].set_ylabel("class")
    if labels:
        plot.colorbar(image, ax=list(panels[0]), label="share of the class", shrink=0.7)
    alt = f"Confusions of {', '.join(found)}, {column}, all runs: shares of each class"
    return finish(plot, f"confusion-{next(iter(found))}", alt)


def parity(found: dict[str, np.ndarray]) -> Figure:
    """Of each model, from energies and what was predicted (n, 2): the second against the first, and
    below what is between them."""
    plot, panels = plt.subplots(
        2,
        len(found),
        figsize=(1 + 3 * len(found), 5.5),
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=(2, 1),
        layout="constrained",
    )
    for (top, bottom), (model, pairs) in zip(panels.T, found.items(), strict=True):
        energies, predicted = pairs.T
        rmse = np.sqrt(np.mean((predicted - energies) ** 2))
        top.plot(energies, predicted, ".", ms=2, alpha=0.5)
        top.axline((energies.mean(), energies.mean()), slope=1, color="k", lw=0.6)
        top.set_title(f"{model}: RMSE {rmse:.2f}", fontsize="medium")
        bottom.plot(energies, predicted - energies, ".", ms=2, alpha=0.5)
        bottom.axhline(0, color="k", lw=0.6)
        bottom.set_xlabel("energy in kcal/mol")
    panels[0, 0].set_ylabel("predicted")
    panels[1, 0].set_ylabel("predicted - energy")
    alt = f"Predicted against measured energies of {', '.join(found)}, and their differences"
    return finish(plot, "parity", alt)


def learning_curve(curve: pd.DataFrame) -> Figure:
    """From `bench.energies.learning_curve`: error by the number of molecules trained on."""
    plot, axes = _axes()
    for network, rows in curve.groupby("network", sort=False):
        rows = rows.sort_values("trained_on")
        spread = [rows["mean"] - rows["min"], rows["max"] - rows["mean"]]
        axes.errorbar(rows["trained_on"], rows["mean"], spread, fmt="o-", capsize=3, label=network)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis)
    axes.set_xlabel("molecules trained on")
    axes.set_ylabel("RMSE on the test fold in kcal/mol")
    _legend(plot)
    return finish(plot, "learning-curve", "Error on the test fold against molecules trained on")


def rotations(found: pd.DataFrame) -> Figure:
    """From `bench.robustness.certificates`: accuracy by number of parameters, and N/R by the mean
    equivariance error on digits, a point for each seed."""
    plot, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.6), layout="constrained")
    colour = colours(list(found["model"].unique()))
    for model, rows in found.groupby("model", sort=False):
        parameters, shown = rows["parameters"], colour[model]
        left.plot(parameters, rows["N/N"], "o", color=shown, label=model)
        left.plot(parameters, rows["N/R"], "o", color=shown, mfc="white")
        left.vlines(parameters, rows["N/R"], rows["N/N"], color=shown, lw=0.5)
        right.plot(rows["digits: mean error"], rows["N/R"], "o", color=shown)
    _by_parameters(left)
    left.set_ylabel("accuracy in %: N/N (full), N/R (open)")
    right.set_xscale("log")
    right.set_xlabel("equivariance error of the invariants on digits")
    right.set_ylabel("N/R in %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    _legend(plot)
    return finish(plot, "rotations", "Accuracy against parameters, and N/R against the error")


def finish(plot: Plot, name: str, alt: str) -> Figure:
    """The plot as an image; it is closed."""
    content = io.BytesIO()
    plot.savefig(content, dpi=DPI, format="png")
    plt.close(plot)
    return Figure(name, content.getvalue(), alt)


def _history(run: RunConfig, results: Path) -> pd.DataFrame:
    return pd.read_csv(results / "runs" / run.key / "history.csv").set_index("epoch")


def _axes() -> tuple[Plot, plt.Axes]:
    plot, axes = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    axes.grid(alpha=0.3)
    return plot, axes


def _by_parameters(axes: plt.Axes) -> None:
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    axes.set_xlabel("parameters")


def _plain_ticks(axis: Axis) -> None:
    """On a logarithmic axis: 5, 70, 200k."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_locator(NullLocator())


def _legend(plot: Plot) -> None:
    """Below the axes, so that it hides nothing."""
    handles, labels = plot.axes[0].get_legend_handles_labels()
    plot.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
