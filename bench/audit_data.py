"""Comparing the data of runs: one name of prepared data stands for one set of arrays, and targets
are those of the data set.

Raw data are read where they are at hand, in `data`/raw or the mirror folder. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import RunConfig
from bench.data import DigitData, MoleculeData
from bench.prepared import prepared_folder
from bench.run_checks import digest, targets_of
from bench.run_folder import RunFolder
from bench.tasks import chosen_test_digits
from bench.tasks_qm7 import split
from data_prep import mnist, qm7
from data_prep.fetch import SourceError, gunzip, mirror

LABELS = "t10k-labels-idx1-ubyte"


def array_faults(folders: Iterable[RunFolder]) -> Iterator[str]:
    """Yield a line for each array of a run that is not the one of another run on data of that name.

    An approximation of an edition, which its card declares, has arrays of its own.
    """
    first: dict[tuple[str, str, str], tuple[str, Path]] = {}
    for folder in folders:
        card, name = folder.provenance["data"]["card"], prepared_folder(folder.run)
        for file, sha256 in card["sha256"].items():
            key = (name, str(card.get("approximation", "")), file)
            expected, path = first.setdefault(key, (sha256, folder.path))
            if sha256 != expected:
                yield f"{folder.path}/provenance.json: {file} of {name} is not what {path} read"


def target_faults(folders: list[RunFolder], data: Path) -> tuple[list[str], list[str]]:
    """Return a line for each run whose targets are not those of its data set, and notes.

    Targets of generated data, and those whose raw data are not at hand, are compared with those of
    the other runs on the same test set.
    """
    faults: list[str] = []
    found = [
        (folder, column, values)
        for folder in folders
        if folder.metrics["status"] == "finished"
        for column, values in targets_of(folder)
    ]
    labels = _mnist_labels(data / "raw/mnist", (values for _, _, values in found))
    molecules = _qm7_molecules(data / "raw/qm7")
    unknown: set[str] = set()
    first: dict[tuple[Any, ...], tuple[str, Path]] = {}
    for folder, column, values in found:
        run, where = folder.run, f"{folder.path}/predictions.npz: targets of {column}"
        if isinstance(run.data, DigitData) and run.data.source == "mnist" and labels is not None:
            expected = labels[chosen_test_digits(run.data, labels)]
        elif isinstance(run.data, MoleculeData) and run.data.source == "qm7" and molecules:
            energies, fold_of = molecules
            expected = energies[split(run, fold_of)[2]]
        else:
            if getattr(run.data, "source", "") in ("mnist", "qm7"):
                unknown.add(run.task)
            one, path = first.setdefault(_test_set(run, column), (digest(values), folder.path))
            if digest(values) != one:
                faults.append(f"{where} are not those of {path}")
            continue
        if not np.array_equal(values, expected):
            faults.append(f"{where} are not those of the data set")
    notes = [
        f"targets of {task} were compared among runs alone: no raw data at hand"
        for task in sorted(unknown)
    ]
    return faults, notes


def _test_set(run: RunConfig, column: str) -> tuple[Any, ...]:
    """Return what decides the targets: labels of points depend on the grid, others do not."""
    name = prepared_folder(run)
    if isinstance(run.data, DigitData | MoleculeData):
        name = name.rsplit("/", 1)[0]
    return run.task, name, run.data.n_test, run.data.seed, run.setting, column


def _mnist_labels(folder: Path, candidates: Iterable[np.ndarray]) -> np.ndarray | None:
    """Return the labels (10,000,) uint8 of MNIST's test digits, None where they are not at hand.

    They may also be among `candidates`, targets of runs: the SHA-256 of the right ones is known.
    """
    raw = (_unpacked(content) for content in _at_hand(folder, "mnist", LABELS))
    written = (mnist.to_idx(values) for values in candidates if values.ndim == 1)
    for contents in (raw, written):
        for content in contents:
            if hashlib.sha256(content).hexdigest() == mnist.SHA256[LABELS]:
                return np.frombuffer(content, np.uint8, offset=8)  # behind the header
    return None


def _qm7_molecules(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return energies (7165,) float32 in kcal/mol and folds (7165,) of QM7, None where they are not
    at hand."""
    for name in (qm7.FILE, "qm7.mat"):
        for content in _at_hand(folder, "", name):
            try:
                arrays = qm7.decode(gunzip(content))
            except SourceError:
                continue  # as if it were not there
            fold_of = np.empty(len(arrays["T"]), np.int64)
            for fold, members in enumerate(arrays["P"]):
                fold_of[members] = fold
            return arrays["T"], fold_of
    return None


def _at_hand(folder: Path, subfolder: str, name: str) -> Iterator[bytes]:
    """Yield the contents of a raw file: that in its folder, that in the mirror."""
    if (folder / name).is_file():
        yield (folder / name).read_bytes()
    for source in mirror(subfolder):
        try:
            yield source.read(name)
        except SourceError:
            continue


def _unpacked(content: bytes) -> bytes:
    """Return a file without its gzip container, nothing where that is damaged."""
    try:
        return gunzip(content)
    except SourceError:
        return b""
