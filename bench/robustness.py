"""What rotations do to the trained networks of a protocol, beside what they score: one table of
equivariance certificates, and two figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib import pyplot as plt

from bench.certificate import certificate
from bench.config import ProtocolConfig
from bench.errors import RunError
from bench.provenance import git_state, hardware, origin
from bench.tables import build_table, command, finished_runs
from data_prep.files import atomic_path

TASK = "spherical_mnist"


def certificates(
    protocol: ProtocolConfig, results: Path, data: Path, digits: int, rotations: int
) -> tuple[pd.DataFrame, str]:
    """One row for each model of the protocol that has a finished run on upright digits (N): its
    accuracies (mean over seeds) and, by `bench.equivariance`, the errors of its invariants under
    random rotations in units of their spread between signals, and the share of rotated digits that
    it classifies as the upright ones. The certificate is that of the first finished seed. And
    where the digits come from.

    Raises:
        RunError: if no such run has ended, or the weights of one or the digits are gone.
    """
    upright = [run for run in finished_runs(protocol, TASK, results) if run.setting == "N"]
    if not upright:
        raise RunError(
            f"no finished run of protocol {protocol.protocol} on upright digits: run "
            f"`{command(protocol)}` first"
        )
    table = build_table(protocol, TASK, results).set_index(["model", "setting"])
    rows, source = [], ""
    for model in table.index.unique("model"):
        run = next((run for run in upright if run.model == model), None)
        if run is None:
            continue
        weights = results / "runs" / run.key / "weights.safetensors"
        if not weights.exists():
            raise RunError(
                f"{weights} is missing: train it again with `snakemake --cores 2 --config "
                f"protocol={protocol.protocol} --force {weights.with_name('metrics.json')}`"
            )
        found = certificate(
            run.network, TASK, weights=weights, signals=digits, rotations=rotations, data=data
        )
        drawn, smooth = found["inputs"]["digits"], found["inputs"]["band-limited"]
        source = found["source"]  # the same for all: that of the protocol's data
        rows.append(
            {
                "model": run.model,
                "parameters": found["parameters"],
                "N/N": table.loc[(run.model, "N/N"), "measured_mean"],
                "N/R": table.loc[(run.model, "N/R"), "measured_mean"],
                "digits: mean error": drawn["invariants"]["mean"],
                "digits: max error": drawn["invariants"]["max"],
                "digits: agreement %": 100 * drawn["agreement"],
                "band-limited: mean error": smooth["invariants"]["mean"],
                "band-limited: max error": smooth["invariants"]["max"],
                "errors of": drawn["invariants_are"],
            }
        )
    return pd.DataFrame(rows), source


def write_robustness(
    protocol: ProtocolConfig, results: Path, data: Path, out: Path, digits: int, rotations: int
) -> list[Path]:
    """Write robustness.csv, .md and .png into `out`; returns the paths."""
    facts = git_state() | hardware(torch.device("cpu"))  # before: code may be edited meanwhile
    found, source = certificates(protocol, results, data, digits, rotations)
    settings = f"--protocol {protocol.protocol} --digits {digits} --rotations {rotations}"
    made = (
        f"{origin(f'python -m bench robustness {settings}', facts)}. {digits} test digits "
        f"({source}) and {digits} band-limited signals, {rotations} random rotations"
    )
    paths = [out / f"robustness.{kind}" for kind in ("csv", "md", "png")]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(paths[0]) as path:
        found.to_csv(path, index=False, lineterminator="\n")
    with atomic_path(paths[1]) as path:
        path.write_text(_markdown(protocol, found, made))
    with atomic_path(paths[2]) as path:
        _figure(found, path)
    return paths


def _markdown(protocol: ProtocolConfig, found: pd.DataFrame, made: str) -> str:
    notice = f"**{protocol.notice}**\n\n" if protocol.notice else ""
    return (
        f"# What rotations do to the trained networks, protocol {protocol.protocol}\n\n{notice}"
        f"Made by {made}; first finished seed, trained on upright digits. Error: how far the "
        "invariants move under a rotation, over their standard deviation between signals (0: "
        "invariant; 1.4: as far as to another signal); definitions in `bench/equivariance.py`. "
        "Accuracies: means over seeds.\n\n"
        f"{found.to_markdown(index=False, floatfmt='.3g', intfmt=',')}\n"
    )


def _figure(found: pd.DataFrame, path: Path) -> None:
    """Accuracy against parameters, and N/R against the mean equivariance error on digits."""
    matplotlib.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for i, row in enumerate(found.to_dict("records")):
        colour = f"C{i}"
        left.plot([row["parameters"]] * 2, [row["N/N"], row["N/R"]], color=colour, lw=0.8)
        left.plot(row["parameters"], row["N/N"], "o", color=colour, label=row["model"])
        left.plot(row["parameters"], row["N/R"], "o", color=colour, mfc="white")
        right.plot(row["digits: mean error"], row["N/R"], "o", color=colour, label=row["model"])
    left.set_xscale("log")
    left.set_xlabel("parameters")
    left.set_ylabel("accuracy in %: N/N (full), N/R (open)")
    right.set_xscale("log")
    right.set_xlabel("equivariance error of the invariants on digits")
    right.set_ylabel("N/R in %")
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90, format="png")
    plt.close(figure)
