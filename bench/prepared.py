"""Opening prepared data: a run gets the data that its configuration names, or none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import RunConfig
from bench.errors import RunError
from bench.registry import MODELS
from data_prep.files import sha256_of_file


def prepared_folder(run: RunConfig) -> str:
    """Return the folder of a run's prepared data, below the data folder."""
    return run.data.folder(grid_of(run))


def grid_of(run: RunConfig) -> str:
    """Return the name of the grid on which a run's network takes its signals."""
    return MODELS[run.task, run.network].grid_name(run.data.level)


def open_prepared(run: RunConfig, data_root: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run's prepared data and its card, after both have been checked.

    The card must agree with the run's configuration in every entry of `run.data.card`, and each
    file must have the SHA-256 that the card gives.

    Raises:
        RunError: there are no such data, their card contradicts the configuration, or a file has
            changed since it was written.
    """
    folder = data_root / prepared_folder(run)
    path = folder / "card.json"
    again = f"prepare them with `snakemake --cores 2 data/{prepared_folder(run)}/card.json`"
    if not path.is_file():
        raise RunError(f"no prepared data in {folder}: {again}")
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): delete {folder} and {again}") from error
    faults = disagreements(run, card) or changed_files(folder, card)
    if faults:
        raise RunError(f"{folder}: {faults[0]}; delete the folder and {again}")
    return folder, card


def disagreements(run: RunConfig, card: Any) -> list[str]:
    """Return one line for each entry of a card that contradicts the configuration of a run."""
    if not isinstance(card, dict):
        return ["the card holds no entries"]
    return [
        f"the card says {name} = {card_value!r}, the run's configuration {value!r}"
        for name, value, card_value in _differences(run.data.card(grid_of(run)), card)
    ]


def changed_files(folder: Path, card: dict[str, Any]) -> list[str]:
    """Return one line for each file of prepared data that is not the one its card describes."""
    hashes = card.get("sha256")
    if not isinstance(hashes, dict) or not hashes:
        return ["the card has no SHA-256 of any file"]
    faults = []
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of_file(path) != expected:
            faults.append(f"{name} is not the file that the card describes (another SHA-256)")
    return faults


def describe(card: dict[str, Any], chosen: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the data's part of a run's provenance: the card, and the size of each set.

    `chosen` holds the indices of the samples of each set. `split_sha256` is the SHA-256 of all of
    them, little-endian int64, in the order of the sets.
    """
    digest = hashlib.sha256()
    for indices in chosen.values():
        digest.update(np.ascontiguousarray(indices, dtype="<i8").tobytes())
    return {
        "card": card,
        "split_sha256": digest.hexdigest(),
        "counts": {name: len(indices) for name, indices in chosen.items()},
    }


def _differences(
    expected: Mapping[str, Any], card: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, expected value and the card's value of each entry in which they differ."""
    for key, value in expected.items():
        there = card.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            yield from _differences(value, there, f"{prefix}{key}.")
        elif there != value or isinstance(there, bool) != isinstance(value, bool):
            yield f"{prefix}{key}", value, there
