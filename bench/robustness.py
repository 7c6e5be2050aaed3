"""What rotations do to the trained networks of a protocol, beside what they score: one table of
equivariance certificates, and two figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from bench import figures
from bench.certificate import certificate
from bench.config import ProtocolConfig
from bench.errors import RunError
from bench.frames import over_runs
from bench.hardware import hardware
from bench.provenance import origin
from bench.run_checks import finished_runs
from bench.source_tree import git_state
from bench.tables import command
from data_prep.files import atomic_path, write_bytes

TASK = "spherical_mnist"


def certificates(
    protocol: ProtocolConfig, results: Path, data: Path, digits: int, rotations: int
) -> tuple[pd.DataFrame, str]:
    """One row for each finished run of the protocol on upright digits (N) whose weights are there:
    its accuracies and, by `bench.equivariance`, the errors of its invariants under random rotations
    in units of their spread between signals, and the share of rotated digits that it classifies as
    the upright ones. All see the same signals and rotations. And where the digits come from.

    Raises:
        RunError: if there is no such run, or a model has runs but no weights, or the digits are
            gone.
    """
    finished = finished_runs(protocol, TASK, results)
    upright = [(run, metrics) for run, metrics in finished if run.setting == "N"]
    if not upright:
        raise RunError(
            f"no finished run of protocol {protocol.protocol} on upright digits: run "
            f"`{command(protocol)}` first"
        )
    models = list(dict.fromkeys(run.model for run, _ in upright))
    upright.sort(key=lambda pair: models.index(pair[0].model))
    weights = {run.key: results / "runs" / run.key / "weights.safetensors" for run, _ in upright}
    kept = [(run, metrics) for run, metrics in upright if weights[run.key].exists()]
    certified = {run.model for run, _ in kept}
    for run, _ in upright:
        if run.model not in certified:
            path = weights[run.key]
            raise RunError(
                f"{path} is missing: train it again with `snakemake --cores 2 --config "
                f"protocol={protocol.protocol} --force {path.with_name('metrics.json')}`"
            )
    rows, source = [], ""
    for run, metrics in kept:
        path = weights[run.key]
        found = certificate(
            run.network, TASK, weights=path, signals=digits, rotations=rotations, data=data
        )
        drawn, smooth = found["inputs"]["digits"], found["inputs"]["band-limited"]
        source = found["source"]  # the same for all: that of the protocol's data
        rows.append(
            {
                "model": run.model,
                "parameters": found["parameters"],
                "seed": run.seed,
                "N/N": metrics["test"]["N/N"]["accuracy_percent"],
                "N/R": metrics["test"]["N/R"]["accuracy_percent"],
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
    write_bytes(paths[2], figures.rotations(found).png)
    return paths


def _markdown(protocol: ProtocolConfig, found: pd.DataFrame, made: str) -> str:
    notice = f"**{protocol.notice}**\n\n" if protocol.notice else ""
    return (
        f"# What rotations do to the trained networks, protocol {protocol.protocol}\n\n{notice}"
        f"Made by {made}; networks trained on upright digits, mean ± sample standard deviation "
        f"over `seeds`, those of the {protocol.seeds} planned whose weights are at "
        "hand. Error: how far the invariants move under a rotation, over their standard deviation "
        "between signals (0: invariant; 1.4: as far as to another signal); definitions in "
        "`bench/equivariance.py`.\n\n"
        f"{over_seeds(found).to_markdown(index=False, intfmt=',')}\n"
    )


def over_seeds(found: pd.DataFrame) -> pd.DataFrame:
    """Mean ± sample standard deviation over the seeds of each model, as text."""
    measured = found.drop(columns="seed")
    places = {name: (".3g", ".1g") if "error" in name else (".1f", ".1f") for name in measured}
    groups = measured.groupby(["model", "parameters", "errors of"], sort=False)
    table = over_runs(groups, places)
    table.insert(0, "seeds", groups.size())
    return table.reset_index()
