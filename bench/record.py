"""Keep measured results in the repository: results/recorded/<protocol>/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.config import ProtocolConfig, planned_runs
from bench.errors import RunError
from bench.tables import read_metrics, write_tables

RUN_FILES = (
    "config.yaml",
    "history.csv",
    "provenance.json",
    "predictions.npz",
    "weights.safetensors",
    "metrics.json",
)


def record(protocol: ProtocolConfig, results: Path) -> list[Path]:
    """Copy the finished runs of a protocol, as far as they have got, and its tables.

    Raises:
        RunError: if a run does not come from a clean commit, or none has finished.
    """
    target = results / "recorded" / protocol.protocol
    copied = []
    for run in planned_runs(protocol):
        if read_metrics(results, run) is None:
            continue
        source = results / "runs" / run.key
        facts = json.loads((source / "provenance.json").read_text())
        if facts["git_dirty"] is not False:
            raise RunError(
                f"{source} does not come from a clean commit: commit, delete it, and run it again"
            )
        folder = target / "runs" / Path(run.key).relative_to(protocol.protocol)
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            if (source / name).exists():
                shutil.copy2(source / name, folder / name)
        copied.append(folder)
    if not copied:
        raise RunError(f"no finished run of protocol {protocol.protocol}: run `snakemake` first")
    for path in write_tables(protocol, results):
        shutil.copy2(path, target / path.name)
    return copied
