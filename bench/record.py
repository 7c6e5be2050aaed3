"""Keep measured results in the repository: results/recorded/<protocol>/."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.config import ProtocolConfig, RunConfig, planned_runs, shipped
from bench.errors import RunError
from bench.frames import address
from bench.run_checks import checked_metrics
from bench.run_folder import RUN_FILES, read_json, read_metrics
from bench.tables import OWN_PROTOCOL
from bench.typesetting import write_tables

OURS = "PDO-eS2CNN"
"""Networks whose weights are all kept."""


def keeps_weights(run: RunConfig) -> bool:
    """Of other networks only those of the first seed, trained on upright digits, for
    `bench.robustness`, or the repository would grow large."""
    return run.network.startswith(OURS) or (run.setting, run.seed) == ("N", 0)


def record(protocol: ProtocolConfig, results: Path) -> list[Path]:
    """Copy the finished runs of a protocol to results/recorded, and make its tables anew.

    Runs that were recorded before stay. The tables of the protocol on the other edition, which show
    these runs too, are made anew as well. Returns the folders of the runs copied.

    Raises:
        RunError: a run contradicts itself or does not come from a clean commit, or none is finished
            or recorded.
    """
    target = results / "recorded" / protocol.protocol
    runs = [run for run in planned_runs(protocol) if read_metrics(results, run) is not None]
    if not runs and not (target / "runs").is_dir():
        raise RunError(f"no finished run of protocol {protocol.protocol}: run `snakemake` first")
    for run in runs:
        source = results / "runs" / run.key
        checked_metrics(source, run)
        facts = read_json(source / "provenance.json")
        if facts["git_dirty"] is not False:
            reason = facts.get("git_problem") or "the working tree had changes"
            raise RunError(
                f"{source} does not come from a clean commit ({reason}): commit, delete it, and "
                "run it again"
            )
    folders = []
    for run in runs:
        folder = recorded_folder(results, run.key)
        folder.mkdir(parents=True, exist_ok=True)
        weights = ["weights.safetensors"] if keeps_weights(run) else []
        sources = [results / "runs" / run.key / name for name in (*RUN_FILES, *weights)]
        copies = [shutil.copy2(path, folder / path.name) for path in sources if path.exists()]
        for stale in set(folder.iterdir()) - set(copies):  # of a run that was recorded before
            stale.unlink()
        folders.append(folder)
    write_recorded_tables(protocol, results, target)
    other = shipped(protocol.beside) if protocol.beside else None
    if other is not None and (results / "recorded" / other.protocol / "runs").is_dir():
        write_recorded_tables(other, results, results / "recorded" / other.protocol)
    return folders


def write_recorded_tables(
    protocol: ProtocolConfig,
    results: Path,
    out: Path,
    models: list[str] | None = None,
    settings: list[str] | None = None,
) -> list[Path]:
    """Write the tables of a protocol's recorded runs into `out`; return their paths.

    `models` and `settings` choose rows and columns, all unless given.

    Raises:
        RunError: no run of the protocol is recorded.
    """
    target = results / "recorded" / protocol.protocol
    tasks = [task for task in protocol.tasks if (target / "runs" / task).is_dir()]
    if not tasks:
        raise RunError(f"{target} holds no recorded run: see `python -m bench record --help`")
    with recorded_runs(results) as kept:
        return write_tables(
            protocol,
            kept,
            out=out,
            tasks=tasks,
            models=models,
            settings=settings,
            made_by=command(protocol),
            link=lambda run: address(recorded_folder(results, run.key), target),
        )


def command(protocol: ProtocolConfig) -> str:
    """Return the shell command that makes the tables of the recorded runs of a protocol."""
    name = protocol.protocol
    if shipped(name) != protocol:
        name = f"results/recorded/{name}/{OWN_PROTOCOL}"
    return f"python -m bench tables --recorded --protocol {name}"


def recorded_folder(results: Path, key: str) -> Path:
    """Return the folder of a recorded run, by its key."""
    protocol, rest = key.split("/", 1)
    return results / "recorded" / protocol / "runs" / rest


@contextmanager
def recorded_runs(results: Path) -> Iterator[Path]:
    """Yield a folder of results whose runs are the recorded ones."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        for source in (results / "recorded").resolve().glob("*/runs"):
            (Path(folder) / "runs" / source.parent.name).symlink_to(source)
        yield Path(folder)
