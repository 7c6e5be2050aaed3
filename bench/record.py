"""Keep measured results in the repository: results/recorded/<protocol>/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import tracking
from bench.config import ProtocolConfig, RunConfig, planned_runs
from bench.errors import RunError
from bench.tables import read_metrics
from bench.typesetting import write_tables

OURS = "PDO-eS2CNN"
"""Networks whose weights are all kept."""


def keeps_weights(run: RunConfig) -> bool:
    """Of other networks only those of the first seed, trained on upright digits, for
    `bench.robustness`, or the repository would grow large."""
    return run.network.startswith(OURS) or (run.setting, run.seed) == ("N", 0)


def record(protocol: ProtocolConfig, results: Path) -> list[Path]:
    """Copy the finished runs of a protocol, as far as they have got, to those that are recorded
    already, and make the tables of all of them; returns the folders of the runs copied.

    Raises:
        RunError: if a run does not come from a clean commit, or none is finished or recorded.
    """
    target = results / "recorded" / protocol.protocol
    runs = [run for run in planned_runs(protocol) if read_metrics(results, run) is not None]
    if not runs and not (target / "runs").is_dir():
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
        sources = [results / "runs" / run.key / name for name in (*tracking.RUN_FILES, *weights)]
        copies = [shutil.copy2(path, folder / path.name) for path in sources if path.exists()]
        for stale in set(folder.iterdir()) - set(copies):  # of a run that was recorded before
            stale.unlink()
        folders.append(folder)
    tasks = [task for task in protocol.tasks if (target / "runs" / task).is_dir()]
    with recorded_runs(results, protocol.protocol) as kept:
        write_tables(protocol, kept, out=target, tasks=tasks)
    return folders


@contextmanager
def recorded_runs(results: Path, protocol: str) -> Iterator[Path]:
    """A folder of results that holds the recorded runs of a protocol."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        source = (results / "recorded" / protocol / "runs").resolve()
        (Path(folder) / "runs" / protocol).symlink_to(source)
        yield Path(folder)
