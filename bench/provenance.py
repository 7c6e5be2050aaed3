"""Where a number comes from: code, configuration, data, software and machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

import torch

from bench.config import RunConfig, planned_runs, shipped
from bench.hardware import hardware
from bench.source_tree import ROOT


def provenance(
    run: RunConfig, device: torch.device, data: dict[str, Any], code: dict[str, Any]
) -> dict[str, Any]:
    """Return the facts of a run that can be known before its end, plain values only.

    `data` describes the prepared data (`bench.prepared.describe`), `code` the source tree
    (`bench.source_tree.git_state`) as it was when the run started. The engine adds `precision`,
    dates, times and memory, and `resumed_from`: code and machine of earlier stretches, if they
    differ. A recorded run may have `caveats` besides, added by hand: a list of sentences on what
    cannot be known of it or is not as it should be. Tables print them as footnotes.
    """
    lock = ROOT / "requirements.lock"
    return {
        **code,
        "command": command(run),
        "argv": [os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]],
        "config": run.model_dump(),
        "config_sha256": run.hash,
        "data": data,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "packages": {d.name: d.version for d in sorted(metadata.distributions(), key=_name)},
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "hostname": platform.node(),
        **hardware(device),
    }


def command(run: RunConfig) -> str:
    """What makes a run: Snakemake, if it is one of a protocol in config/, else the run itself, once
    its data are prepared."""
    protocol = shipped(run.protocol)
    if protocol is not None and run in planned_runs(protocol):
        target = f"results/runs/{run.key}/metrics.json"
        return f"snakemake --cores 2 --config protocol={run.protocol} -- {target}"
    return shlex.join(["python", "-m", "bench", "train", "--run", run.canonical_json()])


def origin(command: str, facts: dict[str, Any]) -> str:
    """Command, commit and processor in words, of facts that `git_state` and `hardware` gave."""
    changed = " with local changes" if facts["git_dirty"] else ""
    return f"`{command}`, commit {facts['git_commit']}{changed}, {facts['cpu']}"


def stretches(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a run's provenance: each stretch of a run that was resumed, the last one is `facts`."""
    return [*facts.get("resumed_from", []), facts]


def _name(distribution: metadata.Distribution) -> str:
    return distribution.name.lower()
