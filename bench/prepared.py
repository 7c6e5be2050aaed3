"""What the tasks have in common: prepared data are opened and described in one way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import RunConfig
from bench.errors import RunError
from bench.registry import MODELS


def open_prepared(run: RunConfig, data_root: Path, command: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a run's prepared data and its card; `command` of `data_prep` makes them.

    Raises:
        RunError: there are none.
    """
    folder = data_root / run.data.folder(MODELS[run.task, run.network].grid_name(run.data.level))
    card = folder / "card.json"
    if not card.is_file():
        raise RunError(
            f"no prepared data in {folder}: let Snakemake make them, or see "
            f"`python -m data_prep {command} --help`"
        )
    return folder, json.loads(card.read_text())


def describe(card: dict[str, Any], chosen: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """For provenance: the card, and of each set, whose samples have the indices `chosen`, the size;
    split_sha256 is the hash of all these indices, little-endian int64 in the order of the sets."""
    digest = hashlib.sha256()
    for indices in chosen.values():
        digest.update(np.ascontiguousarray(indices, dtype="<i8").tobytes())
    return {
        "card": card,
        "split_sha256": digest.hexdigest(),
        "counts": {name: len(indices) for name, indices in chosen.items()},
    }
