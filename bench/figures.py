"""Figures of the report, each as a PNG in a data URI."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Plot

from bench.config import RunConfig
from bench.registry import TASKS
from bench.tables import METRICS

MOST_CLASSES = 20
"""Predictions with more values than that are no classes."""


@dataclass(frozen=True)
class Figure:
    """An image as a data URI, and what it shows."""

    data: str
    alt: str


def of_file(path: Path, alt: str) -> Figure:
    """A PNG file."""
    return Figure(_uri(path.read_bytes()), alt)


def training_curves(runs: list[RunConfig], results: Path) -> Figure:
    """Validation metric of each model by epoch, mean over its runs and their range; runs of the
    training settings that feed the table's first column."""
    column, settings = next(iter(TASKS[runs[0].task].columns.items()))
    metric = TASKS[runs[0].task].metric
    runs = [run for run in runs if run.setting in settings] or runs
    plot, axes = _axes()
    for i, model in enumerate(dict.fromkeys(run.model for run in runs)):
        curves = [
            pd.read_csv(results / "runs" / run.key / "history.csv").set_index("epoch")
            for run in runs
            if run.model == model
        ]
        frame = pd.concat([curve[f"validation_{metric}"] for curve in curves], axis=1)
        marker = "o" if len(frame) < 4 else None
        axes.plot(frame.index, frame.mean(axis=1), color=f"C{i}", marker=marker, label=model)
        low, high = frame.min(axis=1), frame.max(axis=1)
        axes.fill_between(frame.index, low, high, color=f"C{i}", alpha=0.15)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {METRICS[metric]}")
    if not TASKS[runs[0].task].higher_is_better:
        axes.set_yscale("log")
    axes.legend(fontsize="small")
    return _finish(
        plot, f"Training for {column}: validation metric by epoch, mean and range over runs"
    )


def against_parameters(table: pd.DataFrame, metric: str) -> Figure | None:
    """Measured metric by number of parameters, one series for each setting of the table."""
    shown = table[(table["metric"] == metric) & table["measured_mean"].notna()]
    if shown.empty:
        return None
    plot, axes = _axes()
    for setting, rows in shown.groupby("setting", sort=False):
        parameters = rows["params_measured"].astype(float)
        axes.plot(parameters, rows["measured_mean"], "o", label=setting)
    first = shown.drop_duplicates("model")
    for row in first.itertuples():
        axes.annotate(row.model, (float(row.params_measured), row.measured_mean), fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel(METRICS[metric])
    axes.legend(fontsize="small")
    return _finish(plot, f"{METRICS[metric]} against the number of parameters")


def upright_against_rotated(
    table: pd.DataFrame, metric: str, pair: tuple[str, str]
) -> Figure | None:
    """What networks trained on upright samples score on upright and on rotated ones; None where
    nothing of the kind was measured."""
    shown = table[table["metric"] == metric].pivot(
        index="model", columns="setting", values="measured_mean"
    )
    shown = shown.reindex(columns=list(pair)).dropna()
    if shown.empty:
        return None
    plot, axes = _axes()
    for i, (model, row) in enumerate(shown.iterrows()):
        axes.plot([0, 1], [row[pair[0]], row[pair[1]]], "o-", color=f"C{i}", label=model)
    axes.set_xticks([0, 1], [f"upright ({pair[0]})", f"rotated ({pair[1]})"])
    axes.set_ylabel(METRICS[metric])
    axes.set_xlim(-0.2, 1.2)
    axes.legend(fontsize="small")
    return _finish(plot, f"{METRICS[metric]} of upright and of rotated test samples")


def confusion(model: str, column: str, targets: np.ndarray, predictions: np.ndarray) -> Figure:
    """How often a class (row) is taken for another, as shares of the class."""
    n = int(max(targets.max(), predictions.max())) + 1
    counts = np.zeros((n, n))
    np.add.at(counts, (targets.ravel(), predictions.ravel()), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    plot, axes = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    plot.colorbar(image, label="share of the class")
    return _finish(plot, f"Confusions of {model}, {column}, over all its runs")


def parity(model: str, targets: np.ndarray, predictions: np.ndarray) -> Figure:
    """Predicted against true values, with the differences beside."""
    plot, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    left.plot(targets, predictions, ".", ms=2, alpha=0.5)
    left.axline((targets.mean(), targets.mean()), slope=1, color="k", lw=0.6)
    left.set_xlabel("true")
    left.set_ylabel("predicted")
    right.hist(predictions - targets, bins=60)
    right.set_xlabel("predicted - true")
    right.set_ylabel("samples")
    return _finish(plot, f"Predicted against true values of {model}, and their differences")


def signal_and_features() -> Figure:
    """A digit on the sphere, and what the trained small network makes of it: for each level the
    first field's mean over the fibre (mode 0)."""
    import torch

    import pdo
    from data_prep.spherical_mnist import sample_rotated, to_bytes
    from data_prep.synthetic_digits import synthetic_digits
    from pdo.mesh import Icosphere

    digit = synthetic_digits(n_train=1, n_test=1).test_images
    network = pdo.load("pdo-es2cnn-small-mnist")
    vertices = network.mesh.vertices
    signal = to_bytes(sample_rotated(digit, np.eye(3)[None], vertices))
    with torch.no_grad():
        x = (torch.from_numpy(signal).float()[:, None] / 255 - 0.1307) / 0.3081
        fields = network.network.fields(x)
    shown = [(network.mesh, signal[0].astype(float), "signal")]
    for field in fields:
        mesh = Icosphere(round(np.log((len(field) - 2) / 10) / np.log(4)))
        strongest = int(field[:, 0, :, 0].std(dim=0).argmax())
        shown.append(
            (mesh, field[:, 0, strongest, 0].numpy(), f"field {strongest} at level {mesh.level}")
        )
    plot, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown), 3.2), layout="constrained")
    for axis, (mesh, values, title) in zip(axes, shown, strict=True):
        front = (mesh.vertices[mesh.faces][:, :, 2] < 0.15).all(axis=1)  # the digit is at the south
        axis.tripcolor(
            *mesh.vertices.T[:2], mesh.faces[front], values, shading="gouraud", cmap="viridis"
        )
        axis.set_aspect("equal")
        axis.set_axis_off()
        axis.set_title(title, fontsize="small")
    return _finish(
        plot, "A digit on the sphere, seen from the south, and fields of PDO-eS2CNN-small (mode 0)"
    )


def _axes() -> tuple[Plot, plt.Axes]:
    plot, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.grid(alpha=0.3)
    return plot, axes


def _finish(plot: Plot, alt: str) -> Figure:
    content = io.BytesIO()
    plot.savefig(content, dpi=90, format="png")
    plt.close(plot)
    return Figure(_uri(content.getvalue()), alt)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


matplotlib.use("Agg")
