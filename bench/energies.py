"""What a protocol's networks of atomization energies learned: error against the size of the
training set, and predictions against energies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from bench import figures
from bench.config import ProtocolConfig
from bench.registry import TASKS
from bench.run_checks import finished_runs
from data_prep.files import atomic_path, write_bytes

TASK = "qm7"


def errors(protocol: ProtocolConfig, results: Path) -> pd.DataFrame:
    """One row a run: protocol, row of the table, network, fold, seed, molecules trained on, and the
    errors on the test fold in kcal/mol."""
    rows = []
    for run, metrics in finished_runs(protocol, TASK, results):
        facts = json.loads((results / "runs" / run.key / "provenance.json").read_text())
        rows.append(
            {
                "protocol": run.protocol,
                "model": run.model,
                "network": run.network,
                "setting": run.setting,
                "seed": run.seed,
                "trained_on": facts["data"]["counts"]["train"],
                **metrics["test"]["5-fold"],
            }
        )
    return pd.DataFrame(rows)


def write_energies(protocols: list[ProtocolConfig], results: Path, out: Path) -> list[Path]:
    """Write energies.csv and learning_curve.png, of all protocols, and parity.png, of the first,
    into `out`; the paths."""
    found = pd.concat([errors(protocol, results) for protocol in protocols])
    paths = [out / name for name in ("energies.csv", "learning_curve.png", "parity.png")]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(paths[0]) as path:
        found.to_csv(path, index=False, lineterminator="\n")
    write_bytes(paths[1], figures.learning_curve(learning_curve(found)).png)
    write_bytes(paths[2], figures.parity(predictions(protocols[0], results)).png)
    return paths


def predictions(protocol: ProtocolConfig, results: Path) -> dict[str, np.ndarray]:
    """By row of the table: energies of the test molecules and what was predicted, of all its runs,
    (n, 2) in kcal/mol."""
    found: dict[str, list[np.ndarray]] = {}
    for run, _ in finished_runs(protocol, TASK, results):
        with np.load(results / "runs" / run.key / "predictions.npz") as file:
            pair = (file["5-fold_targets"], file["5-fold_predictions"])
        found.setdefault(run.model, []).append(np.stack(pair, axis=1).astype(float))
    return {model: np.concatenate(pairs) for model, pairs in found.items()}


def learning_curve(found: pd.DataFrame) -> pd.DataFrame:
    """Of each network and number of molecules trained on: mean, least and largest error over seeds
    and those folds that were measured at every number, since folds differ more than seeds."""
    parts = []
    for _, rows in found.groupby("network", sort=False):
        sizes = rows.groupby("setting")["trained_on"].nunique()
        parts.append(rows[rows["setting"].isin(sizes[sizes == sizes.max()].index)])
    groups = pd.concat(parts).groupby(["network", "trained_on"], sort=False)
    return groups[TASKS[TASK].metric].agg(["mean", "min", "max"]).reset_index()
