"""Telling files of the present configuration from those of another; the Snakefile asks.

Snakemake compares dates of files and, where it has made them itself, parameters. Neither tells that
a file was copied here, or made by hand, under another configuration: the files themselves do.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bench.config import ProtocolConfig, RunConfig, planned_runs, shipped
from bench.run_folder import read_json

MADE_OF = "made_of.json"
"""Beside the tables: what they were made of."""


def is_outdated(results: Path, run: RunConfig) -> bool:
    """Return whether a run has ended under another configuration than its present one.

    Raises:
        RunError: its metrics.json cannot be read.
    """
    path = results / "runs" / run.key / "metrics.json"
    return path.exists() and read_json(path).get("config_hash") != run.hash


def made_of(
    protocol: ProtocolConfig, results: Path, unavailable: dict[str, list[str]] | None
) -> dict[str, Any]:
    """Return what the tables of a protocol show: the protocol, the data that could not be had, and
    by run that has ended the SHA-256 of its metrics.json and provenance.json, in this order."""
    protocols = [protocol, shipped(protocol.beside) if protocol.beside else None]
    runs = [run for one in protocols if one is not None for run in planned_runs(one)]
    files = {}
    for run in runs:
        folder = results / "runs" / run.key
        paths = [folder / "metrics.json", folder / "provenance.json"]
        if paths[0].exists():
            content = b"".join(path.read_bytes() for path in paths if path.exists())
            files[run.key] = hashlib.sha256(content).hexdigest()
    return {
        "protocol": protocol.model_dump(mode="json"),
        "unavailable": unavailable or {},
        "runs": files,
    }


def is_made_of(folder: Path, facts: dict[str, Any]) -> bool:
    """Return whether the tables in a folder were made of just that."""
    try:
        return bool(json.loads((folder / MADE_OF).read_text()) == facts)
    except (OSError, ValueError):
        return False
