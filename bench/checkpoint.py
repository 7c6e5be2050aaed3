"""Checkpoints: everything of a run that changes, so that resumed equals never stopped."""

from __future__ import annotations

import io
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from bench.config import RunConfig
from bench.errors import RunError
from data_prep.files import write_bytes


@dataclass
class Progress:
    """Everything but tensors that a checkpoint carries."""

    config_hash: str
    config: str
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_score: float = -math.inf
    diverged: bool = False
    started: float = field(default_factory=time.time)
    history: list[dict[str, float]] = field(default_factory=list)
    origins: list[dict[str, Any]] = field(default_factory=list)
    """Code and machine of each stretch of the training, where they changed."""


def save(
    path: Path,
    progress: Progress,
    best: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint atomically: progress, weights, the best weights, optimiser, RNG states."""
    device = next(model.parameters()).device
    state = {
        "progress": asdict(progress),
        "best": best,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }
    buffer = io.BytesIO()  # torch hides the reason when it cannot write a file itself
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load(
    path: Path, run: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]]:
    """Restore model, optimiser and RNG states; returns the progress and the best weights so far.

    Raises:
        RunError: if the file cannot be read, or is of another configuration or of other code.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        progress = Progress(**state["progress"])
    except Exception as error:
        raise RunError(f"{path} is not a readable checkpoint ({error}): delete it") from error
    if progress.config_hash != run.hash:
        raise RunError(
            f"{path} is a checkpoint of another configuration "
            f"({_difference(progress.config, run.canonical_json())}): restore that configuration, "
            "or delete the file to start anew"
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:  # other names, shapes, or numbers of parameters
        commit = progress.origins[-1]["git_commit"] or "unknown"
        raise RunError(
            f"{path} is of other code (commit {commit}): go back to it, or delete the file to "
            "start anew"
        ) from error
    torch.set_rng_state(state["rng"])
    device = next(model.parameters()).device
    if state["cuda_rng"] and device.type == "cuda":  # maybe another GPU than before
        torch.cuda.set_rng_state(state["cuda_rng"][0], device)
    return progress, {name: value.to(device) for name, value in state["best"].items()}


def _difference(old: str, new: str) -> str:
    """The first key in which two configurations differ: `train.epochs: 3 -> 5`."""

    def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {prefix[:-1]: tree}
        return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}{key}.").items()}

    a, b = flat(yaml.safe_load(old)), flat(yaml.safe_load(new))
    changed = [k for k in sorted(a | b) if a.get(k) != b.get(k)]
    return f"{changed[0]}: {a.get(changed[0])} -> {b.get(changed[0])}" if changed else "older form"
