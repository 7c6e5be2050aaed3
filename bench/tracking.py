"""MLflow as a mirror of `results/runs`: live while training, completed and repaired by `sync`.

The files are the truth. Tables are built from them and never from MLflow, so a dead, slow or
broken tracker costs a run one warning line and nothing else; what it missed, `sync` brings back.

    experiment = task, parent run = (protocol, task, model), child run = (setting, seed);
    beside the parents, one run with the files of each protocol's table

Every run is found again by its tag `suite.run_key`: `<protocol>/<task>/<model>` for a parent,
`<protocol>/<task>/<model>/<setting>/seed<k>` for a child, `<protocol>/<task>/table_<k>` for a table
(no model has an underscore in its name). The
metrics of an epoch stand at step = epoch (from 1), those of the finished run at step 0.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from bench.registry import TASKS
from bench.run_folder import RUN_FILES
from bench.tracking_store import Metrics, StoredRun, find_or_create, open_store, tracking_uri

__all__ = ["TrackedRun", "sync", "track", "tracking_uri"]
logger = logging.getLogger(__name__)


@contextmanager
def track(
    results: Path,
    run_key: str,
    config: Mapping[str, Any],
    tags: Mapping[str, Any],
    enabled: bool = True,
) -> Iterator[TrackedRun]:
    """Mirror a run while it trains; whatever happens to the tracker, the body does not notice.

    The child run of `run_key` is made, or taken up again with the epochs it has. It ends FINISHED,
    after an exception FAILED, after KeyboardInterrupt or SystemExit KILLED. The nested `config`
    becomes params and the nested `tags` (commit, device, data ...) tags, with dotted names.
    """
    tracked = TrackedRun(run_key)
    if enabled:
        tracked._start(Path(results), config, tags)
    try:
        yield tracked
    except BaseException as error:
        tracked._end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracked._end(tracked.status)


class TrackedRun:
    """What `track` hands out. Without a working tracker its methods do nothing."""

    def __init__(self, key: str) -> None:
        self.key, self.status = key, "FINISHED"
        self.stored: StoredRun | None = None

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """The first error is one warning, and the last that this run has to do with MLflow."""
        try:
            yield
        except Exception as error:
            self.stored = None
            _warn(self.key, error)

    def _start(self, results: Path, config: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        with self._harmless():
            client, params = open_store(results), _strings(config)
            stored = find_or_create(client, results, self.key, params)
            stored.write(params=params, tags=_tags(tags))
            client.update_run(stored.run.info.run_id, status="RUNNING")
            self.stored, self.epochs = stored, {epoch for _, epoch in stored.logged}

    def log_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
        """Log a row of the history (epoch from 1) in one call, unless that epoch is there."""
        if self.stored and epoch not in self.epochs:
            with self._harmless():
                self.stored.write(_metrics(metrics, step=epoch))
                self.epochs.add(epoch)

    def finish(self, metrics: Mapping[str, Any], artifacts: Iterable[Path] = ()) -> None:
        """Log the content of metrics.json and upload the files of the run."""
        if self.stored:
            with self._harmless():
                self.status = _status(metrics)
                self.stored.write(_final_metrics(metrics), tags={"status": metrics["status"]})
                self.stored.upload([Path(path) for path in artifacts])

    def _end(self, status: str) -> None:
        if self.stored:
            with self._harmless():
                self.stored.client.set_terminated(self.stored.run.info.run_id, status)


def sync(results: Path) -> int:
    """Bring MLflow to agree with the files of all finished runs; returns how many runs changed.

    Missing experiments, runs, epochs, tags and artifacts are added, runs left RUNNING are closed,
    and mean, sample std and number of seeds stand on the parents; of seeds that differ in more
    than their number, those configured as the newest. A second call changes nothing.
    Runs without metrics.json (still training) and runs whose files are gone are left alone.
    Raises: ValueError naming a run that cannot be read; MLflow's own errors.
    """
    results, changed = Path(results), 0
    client = open_store(results)
    seeds: dict[str, list[tuple[float, str, dict, dict]]] = defaultdict(list)
    for folder in sorted(path.parent for path in results.glob("runs/*/*/*/*/seed*/metrics.json")):
        key = folder.relative_to(results / "runs").as_posix()
        try:
            final = json.loads((folder / "metrics.json").read_text())
            params = _strings(yaml.safe_load((folder / "config.yaml").read_text()))
            provenance = json.loads((folder / "provenance.json").read_text())
            tags, metrics = _tags(provenance) | {"status": final["status"]}, _final_metrics(final)
            if (folder / "history.csv").exists():  # not if it diverged in the first epoch
                with open(folder / "history.csv", newline="") as file:
                    for row in csv.DictReader(file):
                        metrics |= _metrics(row, step=int(row["epoch"]))
        except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
            message = f"{folder} cannot be read ({_line(error)}): remove it and run it again"
            raise ValueError(message) from error
        written = (folder / "metrics.json").stat().st_mtime
        start, end = (_millis(provenance.get(at), written) for at in ("started", "finished"))
        stored = find_or_create(client, results, key, params, metrics, start)
        logged = stored.write(metrics, params, tags, end)
        uploaded = stored.upload([path for name in RUN_FILES if (path := folder / name).exists()])
        changed += stored.close(_status(final), end) or logged or uploaded
        parent, setting, _ = key.rsplit("/", 2)
        but_seed = {name: value for name, value in params.items() if name != "seed"}
        seeds[parent].append((written, setting, but_seed, final))
    for parent, runs in seeds.items():
        by_date = sorted(runs, key=lambda run: run[0])
        newest = {setting: config for _, setting, config, _ in by_date}
        finals = [(at, final) for _, at, config, final in runs if config == newest[at]]
        changed += find_or_create(client, results, parent).write(_over_seeds(finals))
    for folder in sorted(path for path in results.glob("tables/*") if path.is_dir()):
        for task, entry in TASKS.items():
            if files := list(folder.glob(f"table{entry.table}.*")):
                key = f"{folder.name}/{task}/table_{entry.table}"
                changed += find_or_create(client, results, key).upload(files)
    return changed


def _flat(nested: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """{"a": {"N/R": 1}} -> {"a.N_R": 1}: MLflow admits only some characters in names."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        name = re.sub(r"[^\w\-. :]", "_", str(name))
        if isinstance(value, Mapping):
            below = _flat(value, separator)
            flat |= {f"{name}{separator}{rest}": leaf for rest, leaf in below.items()}
        else:
            flat[name] = value
    return flat


def _strings(nested: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names, values of at most 500 characters; tuples as the lists that YAML makes them."""
    return {
        name: str(list(value) if isinstance(value, tuple) else value)[:500]
        for name, value in _flat(nested, ".").items()
    }


def _tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Provenance without what has a place elsewhere: params, or provenance.json among the files."""
    return _strings({name: facts[name] for name in facts if name not in ("config", "packages")})


def _metrics(nested: Mapping[str, Any], step: int) -> Metrics:
    """All its numbers; the column `train_loss` of history.csv and a live "train/loss" are one."""
    metrics: Metrics = {}
    for name, value in _flat(nested, "/").items():
        name = re.sub("^(train|validation)_", r"\1/", name)
        if name != "epoch":
            with suppress(TypeError, ValueError):  # an empty cell, a word
                finite = max(min(float(value), sys.float_info.max), -sys.float_info.max)
                metrics[name, step] = finite  # as MLflow stores infinity; nan stays nan
    return metrics


def _final_metrics(final: Mapping[str, Any]) -> Metrics:
    """test["N/R"] becomes test/N_R/..., validation (of the best epoch) best_validation/..."""
    names = {"validation": "best_validation"}
    return _metrics({names.get(name, name): value for name, value in final.items()}, step=0)


def _over_seeds(finals: list[tuple[str, dict]]) -> Metrics:
    """<setting>/<metric>/{mean,std} over the finished seeds of a model, and <setting>/seeds."""
    over: Metrics = {(f"{setting}/seeds", 0): 0.0 for setting, _ in finals}
    values: dict[str, list[float]] = defaultdict(list)
    for setting, final in finals:
        if _status(final) == "FINISHED":
            over[f"{setting}/seeds", 0] += 1
            for (name, _), value in _final_metrics(final).items():
                if name.startswith(("test/", "best_validation/")):
                    values[f"{setting}/{name}"].append(value)
    for name, sample in values.items():
        over[f"{name}/mean", 0] = statistics.fmean(sample)
        over[f"{name}/std", 0] = statistics.stdev(sample) if len(sample) > 1 else math.nan
    return over


def _status(final: Mapping[str, Any]) -> str:
    return "FINISHED" if final["status"] == "finished" else "FAILED"  # diverged: no result


def _millis(stamp: Any, otherwise: float) -> int:
    """An ISO date (or else a time in seconds) in milliseconds."""
    with suppress(TypeError, ValueError):
        otherwise = datetime.fromisoformat(stamp).timestamp()
    return int(otherwise * 1000)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _warn(what: str, error: Exception) -> None:
    logger.warning("MLflow is off for %s (%s); sync later", what, _line(error))
