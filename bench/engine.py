"""Training one run, from its configuration to metrics.json; readable from top to bottom.

Killed and resumed equals never killed, bit for bit, on one processor model with the same number of
threads: the checkpoint carries everything that changes, and the rest is a function of the
configuration.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from bench import checkpoint, tracking
from bench.checkpoint import Progress
from bench.config import RunConfig
from bench.errors import RunError
from bench.hardware import peak_memory_gb
from bench.precision import autocast, precision
from bench.provenance import provenance
from bench.registry import MODELS
from bench.run_folder import RUN_FILES, read_metrics
from bench.seeds import derive
from bench.source_tree import git_state
from bench.tasks import TASK_CLASSES
from data_prep.files import atomic_path, write_bytes, write_json

log = logging.getLogger("bench")

ORIGIN = (
    *("git_commit", "git_dirty", "git_problem"),
    *("torch", "threads", "device", "cpu", "processor", "gpu", "precision"),
)
"""What may differ between the stretches of a run that was stopped, of its provenance."""


class Interrupted(SystemExit):
    """A signal stopped the run after its checkpoint was written; exit status 128 + signal."""

    def __init__(self, signum: int) -> None:
        self.status = 128 + signum
        super().__init__(self.status)
        self.signal = signal.Signals(signum).name


def train(
    run: RunConfig,
    results: Path,
    data: Path,
    device: torch.device,
    track: bool = True,
) -> dict[str, Any]:
    """Train, select on validation, test once, and write the run's folder; returns the metrics.
    Those of a run that has finished under this configuration are returned as they are.

    Raises:
        RunError: if the data are missing or the checkpoint is of another configuration.
        Interrupted: on SIGINT or SIGTERM, with everything saved.
    """
    folder = results / "runs" / run.key
    finished = read_metrics(results, run)
    if finished is not None:
        log.info("%s has finished: delete %s to train it again", run.key, folder)
        return finished
    code = git_state()  # at once: files may be edited while data are read
    folder.mkdir(parents=True, exist_ok=True)
    task = TASK_CLASSES[run.task](run, data)
    seed_everything(derive(run.base_seed, "initialisation", run.seed))
    model = build(run)
    task.fit(model)
    model = model.to(device)
    optimizer = _optimizer(run, model)
    saved = folder / "checkpoint.pt"
    progress = Progress(run.hash, run.canonical_json())
    best = _weights(model)
    if saved.exists():
        progress, best = checkpoint.load(saved, run, model, optimizer)
        log.info("%s goes on at epoch %d, step %d", run.key, progress.epoch + 1, progress.step)
    for name in ("metrics.json", "predictions.npz", "weights.safetensors", "history.csv"):
        (folder / name).unlink(missing_ok=True)  # of another configuration, should this one diverge
    if progress.history:
        _write_history(folder / "history.csv", progress.history)
    with atomic_path(folder / "config.yaml") as path:
        path.write_text(yaml.safe_dump(run.model_dump(), sort_keys=False))
    facts = provenance(run, device, task.facts, code)
    facts["precision"] = precision(device, run.train.amp)
    _add_origin(facts, progress.origins)
    if facts["git_dirty"] is not False:
        log.warning("this run cannot be recorded: %s", facts["git_problem"])

    with (
        tracking.track(results, run.key, run.model_dump(), facts, enabled=track) as tracked,
        _signals() as stop,
    ):
        for row in progress.history:
            tracked.log_epoch(row, int(row["epoch"]))

        def keep() -> None:
            checkpoint.save(saved, progress, best, model, optimizer)

        while progress.epoch < run.train.epochs and not progress.diverged:
            row = _train_epoch(run, task, model, optimizer, progress, stop, keep)
            if progress.diverged:
                break
            outputs = evaluate(task, model, "validation", device)
            row |= {"validation_loss": outputs.loss}
            row |= {f"validation_{name}": value for name, value in outputs.scores.items()}
            score = outputs.scores[task.metric] * (1 if task.higher_is_better else -1)
            if score > progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                best = _weights(model)
            progress.history.append(row)
            keep()
            _write_history(folder / "history.csv", progress.history)
            tracked.log_epoch(row, progress.epoch)
            _log_epoch(run, row)
        metrics = _finish(run, folder, task, model, progress, best, facts, device)
        tracked.finish(metrics, [p for name in RUN_FILES if (p := folder / name).exists()])
    saved.unlink(missing_ok=True)
    return metrics


def _train_epoch(
    run: RunConfig,
    task: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    stop: list[int],
    keep: Callable[[], None],
) -> dict[str, float]:
    """One pass over the training set (the rest of it, after a resume)."""
    device = next(model.parameters()).device
    seed = derive(run.base_seed, "shuffling", run.seed, progress.epoch)
    order = np.random.default_rng(seed).permutation(task.size("train"))
    steps = steps_per_epoch(task.size("train"), run.train.batch_size)
    since = time.monotonic()
    bar = tqdm(
        total=steps,
        initial=progress.step,
        desc=f"epoch {progress.epoch + 1}/{run.train.epochs}",
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    model.train()
    while progress.step < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run, progress.epoch * steps + progress.step, steps)
        start = progress.step * run.train.batch_size
        x, target = task.batch("train", np.sort(order[start : start + run.train.batch_size]))
        with autocast(device, run.train.amp):
            loss = task.loss(model(x.to(device)), target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        progress.loss_sum += value
        progress.step += 1
        bar.update()
        if not math.isfinite(value):
            progress.diverged = True
            log.warning(
                "%s diverged in epoch %d: the loss is %s", run.key, progress.epoch + 1, value
            )
            break
        if stop:
            progress.seconds += time.monotonic() - since
            keep()
            raise Interrupted(stop[0])
    bar.close()
    seconds = progress.seconds + time.monotonic() - since
    mean_loss = progress.loss_sum / progress.step
    rate = learning_rate(run, progress.epoch * steps + progress.step - 1, steps)
    progress.epoch, progress.step, progress.loss_sum, progress.seconds = progress.epoch + 1, 0, 0, 0
    return {
        "epoch": progress.epoch,
        "learning_rate": rate,
        "seconds": round(seconds, 3),
        "train_loss": mean_loss,
    }


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Full batches only (a last one of one sample would break batch statistics), at least one."""
    return max(1, samples // batch_size)


def learning_rate(run: RunConfig, step: int, steps: int) -> float:
    """The rate of a step, counted from the start of training; `steps` make an epoch."""
    config = run.train
    if config.schedule == "step":
        return config.learning_rate * config.step_factor ** (step // steps // config.step_epochs)
    if config.schedule == "one_cycle":
        total = steps * config.epochs
        warm = max(1, total // 5)
        if step < warm:
            return config.learning_rate * (step + 1) / warm
        return config.learning_rate * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
    return config.learning_rate


@dataclass
class Outputs:
    """What a network says of one set."""

    predictions: np.ndarray
    targets: np.ndarray
    loss: float
    scores: dict[str, float]


@torch.no_grad()
def evaluate(task: Any, model: nn.Module, name: str, device: torch.device) -> Outputs:
    """Predictions, loss and scores on a set, in evaluation mode."""
    model.eval()
    predictions, targets, loss, size = [], [], 0.0, task.size(name)
    for start in range(0, size, task.evaluation_batch):
        x, target = task.batch(name, np.arange(start, min(start + task.evaluation_batch, size)))
        output = model(x.to(device))
        loss += task.loss(output, target.to(device)).item() * len(x)
        predictions.append(task.predict(output).cpu().numpy())
        targets.append(target.numpy())
    predicted, true = np.concatenate(predictions), np.concatenate(targets)
    return Outputs(predicted, true, loss / size, task.score(predicted, true))


def _finish(
    run: RunConfig,
    folder: Path,
    task: Any,
    model: nn.Module,
    progress: Progress,
    best: dict[str, torch.Tensor],
    facts: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Test the selected weights once and write the run's files, metrics.json last."""
    metrics: dict[str, Any] = {
        "run": run.key,
        "status": "diverged" if progress.diverged else "finished",
        "config_hash": run.hash,
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "validation": {},
        "test": {},
    }
    if not progress.diverged:
        model.load_state_dict(best)
        predictions = {}
        for name in ("validation", *task.tests):
            outputs = evaluate(task, model, name, device)
            scores = {key: round(value, 6) for key, value in outputs.scores.items()}
            if name == "validation":
                metrics["validation"] = scores
            else:
                metrics["test"][name] = scores
                key = name.replace("/", "_")
                predictions[f"{key}_predictions"] = _compact(outputs.predictions)
                predictions[f"{key}_targets"] = _compact(outputs.targets)
        with atomic_path(folder / "predictions.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **predictions)  # type: ignore[arg-type]
        weights = save({name: value.contiguous().cpu() for name, value in best.items()})
        write_bytes(folder / "weights.safetensors", weights)
    facts |= peak_memory_gb(device) | {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(progress.started)),
        "training_seconds": round(sum(row["seconds"] for row in progress.history), 3),
    }
    write_json(folder / "provenance.json", facts)
    write_json(folder / "metrics.json", metrics)
    return metrics


def _compact(values: np.ndarray) -> np.ndarray:
    """Class labels as bytes; anything else as it is."""
    return values.astype(np.uint8) if values.dtype.kind == "i" else values


def _add_origin(facts: dict[str, Any], origins: list[dict[str, Any]]) -> None:
    """Note where this stretch of a run comes from, and in its provenance where those before it came
    from, if that differs: a run has local changes if any of its stretches had."""
    here = {key: facts[key] for key in ORIGIN}
    if here not in origins[-1:]:
        origins.append(here)
    if len(origins) > 1:
        facts["resumed_from"] = origins[:-1]
        dirty = {origin["git_dirty"] for origin in origins}
        facts["git_dirty"] = True if True in dirty else None if None in dirty else False
        for origin in origins[:-1]:
            if origin["git_dirty"] is not False and facts["git_problem"] is None:
                reason = origin.get("git_problem") or "local changes"
                facts["git_problem"] = f"its first epochs were trained otherwise: {reason}"


def seed_everything(seed: int) -> None:
    """Seed torch (CPU and CUDA) and ask for deterministic algorithms.

    With these torch would fill every new tensor before it is written, for code that reads what
    nobody wrote. None here does (a test holds the bits equal), and filling takes a tenth of a step.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def build(run: RunConfig) -> nn.Module:
    """Return the network of a run, with the weights of the present random state.

    Raises:
        RunError: its constructor does not take its options.
    """
    try:
        return MODELS[run.task, run.network].build(level=run.data.level, **run.options)
    except (TypeError, ValueError) as error:
        raise RunError(f"{run.model} cannot be built from its options: {error}") from error


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the network's state as it is now."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def _optimizer(run: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": partial(torch.optim.SGD, momentum=0.9),
    }
    return kinds[run.train.optimizer](
        model.parameters(), lr=run.train.learning_rate, weight_decay=run.train.weight_decay
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list; the step in hand is finished first."""
    noted: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda n, _: noted.append(n)) for kind in kinds}
    try:
        yield noted
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue())


def _log_epoch(run: RunConfig, row: dict[str, float]) -> None:
    log.info(
        "%s epoch %d/%d  rate %.2e  train loss %.4f  validation %s  %.1f s",
        run.key,
        row["epoch"],
        run.train.epochs,
        row["learning_rate"],
        row["train_loss"],
        "  ".join(f"{k[11:]} {v:.4g}" for k, v in row.items() if k.startswith("validation_")),
        row["seconds"],
    )
