"""Where a number comes from: code, configuration, data, software and machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.config import RunConfig, planned_runs, shipped
from bench.hardware import hardware

ROOT = Path(__file__).resolve().parent.parent


def provenance(run: RunConfig, device: torch.device, data: dict[str, Any]) -> dict[str, Any]:
    """Facts of a run that can be known before its end, plain values only."""
    lock = ROOT / "requirements.lock"
    return {
        **git_state(),
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


def git_state() -> dict[str, Any]:
    """Commit of the source tree, and whether tracked files differ from it; None outside git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
        except FileNotFoundError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }


def origin(command: str, facts: dict[str, Any]) -> str:
    """Command, commit and processor in words, of facts that `git_state` and `hardware` gave."""
    changed = " with local changes" if facts["git_dirty"] else ""
    return f"`{command}`, commit {facts['git_commit']}{changed}, {facts['cpu']}"


def stretches(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a run's provenance: each stretch of a run that was resumed, the last one is `facts`."""
    return [*facts.get("resumed_from", []), facts]


def _name(distribution: metadata.Distribution) -> str:
    return distribution.name.lower()
