"""Keep measured results in the repository: results/recorded/<protocol>/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench import tracking
from bench.config import ProtocolConfig, RunConfig, planned_runs
from bench.errors import RunError
from bench.tables import read_metrics, write_tables

OURS = "PDO-eS2CNN"
"""Networks whose weights are all kept."""


def keeps_weights(run: RunConfig) -> bool:
    """Of other networks those alone that `bench.robustness` looks at, or the repository would grow
    large: of the first seed, trained on upright digits."""
    return run.network.startswith(OURS) or (run.setting, run.seed) == ("N", 0)


def record(protocol: ProtocolConfig, results: Path) -> list[Path]:
    """Copy the finished runs of a protocol, as far as they have got, and its tables.

    Raises:
        RunError: if a run does not come from a clean commit, or none has finished.
    """
    target = results / "recorded" / protocol.protocol
    runs = [run for run in planned_runs(protocol) if read_metrics(results, run) is not None]
    if not runs:
        raise RunError(f"no finished run of protocol {protocol.protocol}: run `snakemake` first")
    for run in runs:
        source = results / "runs" / run.key
        if json.loads((source / "provenance.json").read_text())["git_dirty"] is not False:
            raise RunError(
                f"{source} does not come from a clean commit: commit, delete it, and run it again"
            )
    folders = []
    for run in runs:
        folder = target / "runs" / Path(run.key).relative_to(protocol.protocol)
        folder.mkdir(parents=True, exist_ok=True)
        weights = ["weights.safetensors"] if keeps_weights(run) else []
        for name in (*tracking.RUN_FILES, *weights):
            source = results / "runs" / run.key / name
            if source.exists():
                shutil.copy2(source, folder / name)
        folders.append(folder)
    for path in write_tables(protocol, results):
        shutil.copy2(path, target / path.name)
    return folders
