"""Auditing results: every run, table and quoted number must follow from the files beside it."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from bench.audit_data import array_faults, target_faults
from bench.config import RunConfig, load_protocol, planned_runs, shipped
from bench.documents import document_faults
from bench.errors import ConfigError, RunError, unknown
from bench.provenance import stretches
from bench.record import command, keeps_weights, write_recorded_tables
from bench.registry import MODELS
from bench.run_checks import faults_of, misplaced
from bench.run_folder import RunFolder, read_run
from bench.source_tree import NoCommit, ancestors
from bench.tables import OWN_PROTOCOL


@dataclass
class Audit:
    """What an audit has found: faults make it fail, notes say what could not be checked."""

    runs: int = 0
    tables: int = 0
    quotes: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def audit(
    results: Path,
    protocols: list[str] | None = None,
    data: Path = Path("data"),
    root: Path | None = None,
) -> Audit:
    """Check every run below `results`, the recorded tables, and the documents that quote them.

    Args:
        protocols: names of those to check; all unless given.
        data: folder whose raw/ may hold the data sets; see `bench.audit_data`.
        root: the project whose README.md and docs/ are checked, the folder of `results` unless
            given.

    Raises:
        ConfigError: there is nothing of such a protocol.
    """
    found = Audit()
    trained = {path.name: path for path in sorted((results / "runs").glob("*")) if path.is_dir()}
    kept = {path.parent.name: path for path in sorted((results / "recorded").glob("*/runs"))}
    names = sorted(trained | kept)
    for name in protocols or []:
        if name not in names:
            raise unknown(f"protocol in {results}", name, names)
    chosen = names if protocols is None else protocols

    # Each run by itself.
    finished, recorded = (
        _runs([where[name] for name in chosen if name in where], found) for where in (trained, kept)
    )
    _commits(finished.readable, recorded.readable, found)
    _weights(finished.readable, recorded.readable, found)

    # Runs with each other, without those that contradict themselves.
    for runs in (finished, recorded):
        found.faults += array_faults(runs.sound)
    faults, notes = target_faults(finished.sound + recorded.sound, data)
    found.faults += faults
    found.notes += notes

    # What is made of them.
    for name in chosen:
        if name in kept:
            found.faults += _unfinished(kept[name])
            _tables(results, kept[name].parent, recorded.readable, found)
    found.quotes, faults = document_faults(root or results.absolute().parent)
    found.faults = list(dict.fromkeys(found.faults + faults))
    return found


class Runs(NamedTuple):
    """Runs whose files can be read, and those of them that do not contradict themselves."""

    readable: list[RunFolder]
    sound: list[RunFolder]


def _runs(folders: list[Path], found: Audit) -> Runs:
    """Check each run below some folders by itself."""
    runs = Runs([], [])
    for path in sorted(file.parent for where in folders for file in where.rglob("metrics.json")):
        found.runs += 1
        try:
            run = read_run(path)
        except RunError as error:
            found.faults.append(str(error))
            continue
        faults = [f"{path}/{fault}" for fault in misplaced(run) + faults_of(run)]
        found.faults += faults
        runs.readable.append(run)
        runs.sound.extend([] if faults else [run])
    return runs


def _unfinished(where: Path) -> list[str]:
    """Return a line for each recorded run without metrics.json."""
    folders = sorted({file.parent for file in where.rglob("*") if file.is_file()})
    files = [folder / "metrics.json" for folder in folders]
    return [f"{file}: it is missing" for file in files if not file.is_file()]


def _commits(finished: list[RunFolder], recorded: list[RunFolder], found: Audit) -> None:
    """Recorded runs come from clean commits in the history of the one that is checked out."""
    unclean = [run for run in finished if run.provenance.get("git_dirty") is not False]
    if unclean:
        found.notes.append(
            f"{len(unclean)} finished runs do not come from a clean commit and cannot be recorded, "
            f"the first is {unclean[0].path}"
        )
    origins = [
        (f"{run.path}/provenance.json", facts)
        for run in recorded
        for facts in stretches(run.provenance)
    ]
    for where, facts in origins:
        if facts.get("git_dirty") is not False:
            found.faults.append(f"{where}: the run does not come from a clean commit")
    commits = {str(facts["git_commit"]) for _, facts in origins}
    try:
        known = ancestors()
        if commits and not commits & known:
            raise NoCommit("the repository has none of them")
    except NoCommit as reason:
        found.notes.append(f"commits of recorded runs were not checked: {reason}")
        return
    for where, facts in origins:
        if facts["git_commit"] not in known:
            found.faults.append(f"{where}: commit {facts['git_commit']} is not in the history")


class Network(NamedTuple):
    """What the network of a configuration has."""

    parameters: int
    state: dict[str, tuple[torch.dtype, torch.Size]]
    """Type and shape of each tensor."""


def _weights(finished: list[RunFolder], recorded: list[RunFolder], found: Audit) -> None:
    """Weights are there, are numbers, and fit the network of the configuration, which has as many
    parameters as metrics.json says."""
    networks: dict[str, Network] = {}
    wanted = [(folder, True) for folder in finished]
    wanted += [(folder, keeps_weights(folder.run)) for folder in recorded]
    for folder, kept in wanted:
        run, path = folder.run, folder.path / "weights.safetensors"
        key = json.dumps([run.task, run.network, run.data.level, run.options], sort_keys=True)
        if key not in networks:
            try:
                networks[key] = _network(run)
            except (TypeError, ValueError) as error:
                found.faults.append(f"{folder.path}/config.yaml: no network is built ({error})")
                continue
        network = networks[key]
        if network.parameters != folder.metrics["parameters"]:
            found.faults.append(
                f"{folder.path}/metrics.json: {folder.metrics['parameters']} parameters, the "
                f"network has {network.parameters}"
            )
        if path.exists():
            found.faults += _misfits(path, network)
        elif kept and folder.metrics["status"] == "finished":
            found.faults.append(f"{path}: it is missing")


def _network(run: RunConfig) -> Network:
    model = MODELS[run.task, run.network].build(level=run.data.level, **run.options)
    return Network(sum(p.numel() for p in model.parameters()), _kinds(model.state_dict()))


def _kinds(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (value.dtype, value.shape) for name, value in state.items()}


def _misfits(path: Path, network: Network) -> list[str]:
    """Return a line if a file of weights does not fit a network, or holds what is no number."""
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors has errors of its own
        return [f"{path}: it cannot be read ({error})"]
    there = _kinds(weights)
    names = sorted(there.keys() | network.state)
    wrong = [name for name in names if there.get(name) != network.state.get(name)]
    if wrong:
        return [f"{path}: {', '.join(wrong[:3])} do not fit the network"]
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    return [f"{path}: {broken[0]} is not finite"] if broken else []


def _rows(folder: Path) -> list[str]:
    """Return the models of recorded tables and runs: one registered since makes no table wrong."""
    rows = [path.parts[-4] for path in (folder / "runs").glob("*/*/*/*/metrics.json")]
    for path in folder.glob("table*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [row["model"] for row in csv.DictReader(file)]
    return list(dict.fromkeys(rows))


def _tables(results: Path, folder: Path, runs: list[RunFolder], found: Audit) -> None:
    """Recorded tables are, byte for byte, what the recorded runs give, and there are no others."""
    own = folder / OWN_PROTOCOL
    try:
        protocol = load_protocol(own) if own.exists() else shipped(folder.name)
        if protocol is None or protocol.protocol != folder.name:
            raise ConfigError(f"neither config/ nor {own} has the protocol")
        planned = {run.key: run for run in planned_runs(protocol)}
        found.notes += [
            f"{run.path} is no run of the protocol as it is now: its table leaves it out"
            for run in runs
            if run.run.protocol == folder.name and planned.get(run.run.key) != run.run
        ]
        with TemporaryDirectory() as scratch:
            write_recorded_tables(protocol, results, Path(scratch), _rows(folder))
            made = {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    except (RunError, ConfigError, OSError) as error:
        if found.faults:  # of runs, which no table is made of
            found.notes.append(f"{folder}: its tables were not checked, for the faults of runs")
        else:
            found.faults.append(f"{folder}: its tables cannot be made ({error})")
        return
    found.tables += sum(name.startswith("table") for name in made)
    there = {path.name for path in (*folder.glob("table*"), *folder.glob(OWN_PROTOCOL))}
    for name in sorted(there | made.keys()):
        if name not in made:
            found.faults.append(f"{folder / name}: no recorded run makes it")
        elif name not in there:
            found.faults.append(f"{folder / name}: it is missing, `{command(protocol)}` makes it")
        elif line := _first_difference((folder / name).read_bytes(), made[name]):
            found.faults.append(f"{folder / name}: line {line} is not what its runs give")


def _first_difference(there: bytes, made: bytes) -> int:
    """Return the number of the first line in which two texts differ, 0 if they do not."""
    pairs = zip_longest(there.split(b"\n"), made.split(b"\n"))
    return next((number for number, (a, b) in enumerate(pairs, 1) if a != b), 0)
