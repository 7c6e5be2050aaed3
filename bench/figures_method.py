"""Figures of the method itself, for the report: what it makes of a signal, and measurements of
`python -m bench convergence` and `speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt

import pdo
from bench.figures import Figure, finish
from data_prep.spherical_mnist import sample_rotated, to_bytes
from data_prep.synthetic_digits import synthetic_digits
from pdo.mesh import Icosphere

LAYERS = ("lifting layer", "group layer")
STENCILS = ("nearest ring (paper)", "2 rings, Gaussian 1", "smoothed (default)")


def signal_and_features() -> Figure:
    """A digit on the sphere, and what the trained small network makes of it: for each level the
    field that varies most, its mean over the fibre (mode 0)."""
    digit = synthetic_digits(n_train=1, n_test=1).test_images
    network = pdo.load("pdo-es2cnn-small-mnist")
    points = network.points  # those of coarser meshes come first
    signal = to_bytes(sample_rotated(digit, np.eye(3)[None], points))
    with torch.no_grad():
        x = (torch.from_numpy(signal).float()[:, None] / network.scale - network.mean) / network.std
        fields = network.network.fields(x)
    shown = [(network.mesh, signal[0].astype(float), "signal")]
    for field in fields:
        mesh = Icosphere(round(np.log((len(field) - 2) / 10) / np.log(4)))
        strongest = int(field[:, 0, :, 0].std(dim=0).argmax())
        shown.append(
            (mesh, field[:, 0, strongest, 0].numpy(), f"field {strongest} at level {mesh.level}")
        )
    plot, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 2.9), layout="constrained")
    for axis, (mesh, values, title) in zip(axes, shown, strict=True):
        front = (points[mesh.faces][:, :, 2] < 0.15).all(axis=1)  # the digit is at the south
        x, y, _ = points[: len(mesh)].T
        axis.tripcolor(x, y, mesh.faces[front], values, shading="gouraud", cmap="viridis")
        axis.set_aspect("equal")
        axis.set_axis_off()
        axis.set_title(title, fontsize="medium")
    return finish(
        plot,
        "spheres",
        "A digit on the sphere, seen from the south, and fields of PDO-eS2CNN-small (mode 0), "
        "trained on MNIST",
    )


def equivariance_against_mesh(errors: Path) -> Figure:
    """Equivariance error of the two layers by mesh size, from the convergence measurements' CSV."""
    frame = pd.read_csv(errors)
    plot, axes = plt.subplots(1, len(LAYERS), figsize=(8.4, 3.8), sharey=True, layout="constrained")
    for axis, layer in zip(axes, LAYERS, strict=True):
        for stencil in STENCILS:
            rows = frame[(frame["quantity"] == layer) & (frame["family"] == stencil)]
            axis.loglog(rows["h"], rows["equivariance"], "o-", ms=4, label=stencil)
        axis.set_title(layer, fontsize="medium")
        axis.set_xlabel("mesh size h (radians)")
        axis.set_xticks(rows["h"], [f"{h:.2g}" for h in rows["h"]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("equivariance error (relative)")
    plot.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return finish(
        plot, "equivariance", "Equivariance error of a layer against mesh size, by stencil"
    )


def time_and_memory(found: dict[str, Any]) -> Figure:
    """From `bench.speed_report.measure`: time of a layer by vertices and, in both forms, by N; time
    and memory of the networks."""
    scaling, forms = pd.DataFrame(found["scaling"]), pd.DataFrame(found["forms"])
    scaling = scaling[scaling["over"] == "vertices"]
    plot, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    vertices, ms = scaling["vertices"], scaling["spectral ms"]
    left.loglog(vertices, ms, "o-", label=f"layer, N = {scaling['N'].iloc[0]}")
    left.loglog(vertices, ms.iloc[0] * vertices / vertices.iloc[0], "k:", label="linear")
    left.set_xlabel("vertices")
    for form in ("spectral", "direct"):
        middle.semilogy(forms["N"], forms[f"{form} ms"], "o-", label=form)
    middle.set_xlabel(f"N (level {found['level']})")
    middle.set_xticks(forms["N"])
    for axis in (left, middle):
        axis.set_ylabel("step, ms a sample")
        axis.legend(fontsize="small")
    networks = pd.DataFrame(found["networks"]).sort_values("ms a digit")
    names = networks["network"]
    right.barh(names, networks["ms a digit"], height=0.35, align="edge")
    memory = right.twiny()
    memory.barh(names, networks["peak memory GB"], height=-0.35, align="edge", color="C1")
    right.set_xlabel("training step, ms a digit (blue)")
    memory.set_xlabel("peak memory in GB (orange)")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    return finish(
        plot,
        "speed",
        f"Time of a layer against the number of vertices and against N, and time and memory of "
        f"networks at level {found['level']}, with {found['threads']} threads of {found['cpu']}",
    )
