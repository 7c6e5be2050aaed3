"""Auditing results: every run, table and quoted number must follow from the files beside it."""

from __future__ import annotations

import csv
import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from bench.config import RunConfig, load_protocol, shipped
from bench.data import DigitData, MoleculeData
from bench.documents import document_faults
from bench.errors import ConfigError, RunError
from bench.prepared import prepared_folder
from bench.provenance import stretches
from bench.registry import MODELS
from bench.run_checks import RunFolder, digest, faults_of, read_run, targets_of
from bench.source_tree import ROOT, NoCommit, ancestors
from data_prep import mnist, qm7

RAW_QM7 = ROOT / "data/raw/qm7"


@dataclass
class Audit:
    """What an audit has found: faults make it fail, notes say what could not be checked."""

    runs: int = 0
    tables: int = 0
    quotes: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def audit(results: Path, protocols: list[str] | None = None, root: Path = ROOT) -> Audit:
    """Check every run below `results`, the recorded tables, and the documents that quote them.

    Args:
        protocols: names of those to check; all unless given.
        root: the project, whose README.md and docs/ quote recorded tables.
    """
    found = Audit()
    recorded: list[RunFolder] = []
    for inner, where in (("", results / "runs"), ("runs", results / "recorded")):
        for protocol in sorted(path for path in where.glob("*") if path.is_dir()):
            if protocols is None or protocol.name in protocols:
                folders = _runs(protocol / inner, found)
                recorded += folders if inner else []
                _agreement(folders, found)
    _agreement(recorded, found)
    _commits(recorded, found)
    _weights(recorded, found)
    for folder in sorted(path.parent for path in (results / "recorded").glob("*/runs")):
        if protocols is None or folder.name in protocols:
            _tables(results, folder, found)
    quotes, faults = document_faults(root)
    found.quotes = quotes
    found.faults += faults
    found.faults = list(dict.fromkeys(found.faults))
    return found


def _runs(where: Path, found: Audit) -> list[RunFolder]:
    """Check each run folder by itself; return those that can be read."""
    folders = []
    for path in sorted(file.parent for file in where.rglob("metrics.json")):
        found.runs += 1
        try:
            folder = read_run(path)
        except RunError as error:
            found.faults.append(str(error))
            continue
        found.faults += [f"{path}/{fault}" for fault in faults_of(folder)]
        folders.append(folder)
    return folders


def _agreement(folders: Iterable[RunFolder], found: Audit) -> None:
    """Runs on one prepared folder must have read the same arrays, and the same targets."""
    arrays: dict[tuple[str, str], tuple[str, Path]] = {}
    targets: dict[tuple[Any, ...], tuple[str, Path]] = {}
    for folder in folders:
        run, card = folder.run, _card(folder)
        name = prepared_folder(run)
        # An approximation of an edition is said on the card; its arrays are others.
        kind = f"{name} {card.get('approximation', '')}"
        for file, sha256 in card.get("sha256", {}).items():
            first, path = arrays.setdefault((kind, file), (sha256, folder.path))
            if sha256 != first:
                found.faults.append(
                    f"{folder.path}/provenance.json: {file} of {name} is not what {path} read"
                )
        if folder.metrics.get("status") != "finished":
            continue
        try:
            for column, values in targets_of(folder):
                # Labels of points depend on the grid, those of digits and molecules do not.
                data = name if values.ndim > 1 else name.rsplit("/", 1)[0]
                key = (run.task, data, run.data.n_test, run.setting, column)
                first, path = targets.setdefault(key, (digest(values), folder.path))
                where = f"{folder.path}/predictions.npz: targets of {column}"
                if digest(values) != first:
                    found.faults.append(f"{where} are not those of {path}")
                elif not _known(run, values):
                    found.faults.append(f"{where} are not those of the data set")
        except (OSError, ValueError, KeyError):
            pass  # said by the checks of the folder itself


def _card(folder: RunFolder) -> dict[str, Any]:
    data = folder.provenance.get("data")
    card = data.get("card") if isinstance(data, dict) else None
    return card if isinstance(card, dict) else {}


def _known(run: RunConfig, targets: np.ndarray) -> bool:
    """Return whether targets are those of the data set, where that can be told without a download.

    The labels of all test digits have a known SHA-256 as an IDX file. Energies are compared with
    raw data, if those are at hand.
    """
    data = run.data
    if data.n_test is not None:
        return True
    if isinstance(data, DigitData) and data.source == "mnist":
        idx = struct.pack(">II", 2049, len(targets)) + targets.astype(np.uint8).tobytes()
        return hashlib.sha256(idx).hexdigest() == mnist.SHA256["t10k-labels-idx1-ubyte"]
    if isinstance(data, MoleculeData) and data.source == "qm7" and (RAW_QM7 / qm7.FILE).exists():
        raw = qm7.load_qm7(RAW_QM7)
        fold = raw.folds[int(run.setting.removeprefix("fold"))]
        return np.array_equal(targets, raw.energies[np.sort(fold)])
    return True


def _commits(folders: list[RunFolder], found: Audit) -> None:
    """Recorded runs must come from clean commits in the history of the one that is checked out."""
    try:
        known = ancestors()
    except NoCommit as reason:
        found.notes.append(f"commits of recorded runs were not checked: {reason}")
        return
    every = [facts.get("git_commit") for f in folders for facts in stretches(f.provenance)]
    commits = {commit for commit in every if isinstance(commit, str)}
    if commits and not commits & known:
        found.notes.append(
            "commits of recorded runs were not checked: the repository has none of them"
        )
        known |= commits
    for folder in folders:
        for facts in stretches(folder.provenance):
            where, commit = f"{folder.path}/provenance.json", facts.get("git_commit")
            if facts.get("git_dirty") is not False:
                found.faults.append(f"{where}: the run does not come from a clean commit")
            if commit not in known:
                found.faults.append(f"{where}: commit {commit} is not in the history")


def _weights(folders: list[RunFolder], found: Audit) -> None:
    """Recorded weights must fit the network of the configuration, with its parameters."""
    shapes: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {}
    for folder in folders:
        path = folder.path / "weights.safetensors"
        if not path.exists():
            continue
        run = folder.run
        build = MODELS[run.task, run.network].build
        key = json.dumps([run.task, run.network, run.data.level, run.options], sort_keys=True)
        if key not in shapes:
            model = build(level=run.data.level, **run.options)
            count = sum(p.numel() for p in model.parameters())
            shapes[key] = count, {n: tuple(v.shape) for n, v in model.state_dict().items()}
        count, expected = shapes[key]
        if count != folder.metrics.get("parameters"):
            found.faults.append(
                f"{folder.path}/metrics.json: {folder.metrics.get('parameters')} parameters, the "
                f"network has {count}"
            )
        try:
            there = {name: value.shape for name, value in load_file(path).items()}
        except Exception as error:  # safetensors has errors of its own
            found.faults.append(f"{path}: it cannot be read ({error})")
            continue
        if there != expected:
            names = sorted(k for k in there.keys() | expected if there.get(k) != expected.get(k))
            found.faults.append(f"{path}: {', '.join(names[:3])} do not fit the network")


def _rows(folder: Path) -> list[str]:
    """Return the models of recorded tables and runs: one registered since makes no table wrong."""
    rows = [path.parts[-4] for path in (folder / "runs").glob("*/*/*/*/metrics.json")]
    for path in folder.glob("table*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [row["model"] for row in csv.DictReader(file)]
    return list(dict.fromkeys(rows))


def _tables(results: Path, folder: Path, found: Audit) -> None:
    """Recorded tables must be, byte for byte, what their runs give."""
    from bench.record import write_recorded_tables

    try:
        protocol = shipped(folder.name) or load_protocol(folder / "protocol.yaml")
        with TemporaryDirectory() as scratch:
            paths = write_recorded_tables(protocol, results, Path(scratch), _rows(folder))
            found.tables += len(paths)
            for path in paths:
                there = folder / path.name
                if not there.exists() or there.read_bytes() != path.read_bytes():
                    found.faults.append(f"{there}: it is not the table that its runs give")
    except (RunError, ConfigError, OSError) as error:
        found.faults.append(f"{folder}: its tables cannot be made ({error})")
