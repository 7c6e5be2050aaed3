"""The MLflow store below `bench.tracking`: opening it, finding and making runs, writing to them.

Only `MlflowClient` is used, with ids: no active run, no global tracking address, nothing that a
training script would notice. Writing is by difference: what a run has is not written twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing mlflow costs two seconds: paid only where a store is opened
    from mlflow import MlflowClient
    from mlflow.entities import Run

Metrics = dict[tuple[str, int], float]  # {(name, step): value}
LOCK_SECONDS = 300.0  # sixteen runs that start at once on half a core queue for 35 s

for _name, _default in {  # read by mlflow; what the user has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # else it draws from Python's global generator
}.items():
    os.environ.setdefault(_name, _default)


def tracking_uri(results: Path) -> str:
    """MLFLOW_TRACKING_URI if set, else the absolute SQLite address of `<results>/mlflow.db`."""
    default = f"sqlite:///{Path(results).resolve() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


@contextmanager
def _lock(results: Path) -> Iterator[None]:
    """One process at a time: MLflow guards neither its first start nor find-or-create."""
    results.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with open(results / ".mlflow.lock", "w") as file:  # closing it releases the lock
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {file.name}") from None
                time.sleep(0.02)
        yield


def open_store(results: Path) -> MlflowClient:
    """A client of the store at `tracking_uri(results)`, which is created where there is none."""
    from mlflow import MlflowClient

    for chatter in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(chatter).setLevel(logging.ERROR)
    uri = tracking_uri(results)
    with _lock(results):
        if uri.startswith("sqlite:///"):  # MLflow would retry a broken file for 100 seconds
            with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
                database.execute("SELECT count(*) FROM sqlite_master")
        return MlflowClient(tracking_uri=uri)


@dataclass
class StoredRun:
    """A run in MLflow; `tags` are those by which the suite knows it, and which none may replace."""

    client: MlflowClient
    run: Run
    tags: dict[str, str]

    @cached_property
    def logged(self) -> Metrics:
        """All points of all its metrics."""
        run_id, names = self.run.info.run_id, self.run.data.metrics
        histories = [self.client.get_metric_history(run_id, name) for name in names]
        return {(point.key, point.step): point.value for row in histories for point in row}

    def contradicts(self, params: Mapping[str, str], metrics: Metrics) -> bool:
        """Whether it has a param with another value, or a point that a metric should not have."""
        known, names = self.run.data.params, {name for name, _ in metrics}
        return any(params.get(name, value) != value for name, value in known.items()) or any(
            at[0] in names and not _same(metrics.get(at), value)
            for at, value in self.logged.items()
        )

    def write(
        self,
        metrics: Metrics | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        when: int | None = None,
    ) -> bool:
        """Log what the run does not have yet, in as few calls as MLflow takes; True if any."""
        from mlflow.entities import Metric, Param, RunTag

        known, when = self.run.data, when or int(time.time() * 1000)
        tags = dict(tags or {}) | self.tags
        points = {
            at: value
            for at, value in (metrics or {}).items()
            if not _same(self.logged.get(at), value)
        }
        m = [Metric(name, value, when, step) for (name, step), value in points.items()]
        p = [Param(*item) for item in (params or {}).items() if item[0] not in known.params]
        t = [RunTag(*item) for item in tags.items() if item not in known.tags.items()]
        for i in range(0, max(len(m), len(p), len(t)), 100):
            part = slice(i, i + 100)
            self.client.log_batch(self.run.info.run_id, m[part], p[part], t[part])
        self.logged |= points
        return bool(m or p or t)

    def upload(self, paths: list[Path]) -> bool:
        """Upload files unless it has just these (told by a digest in a tag); True if it had to."""
        digest = hashlib.sha256()
        for path in sorted(paths, key=lambda path: path.name):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        tag = {"suite.artifacts_sha256": digest.hexdigest()}
        if tag.items() <= self.run.data.tags.items():
            return False
        for path in paths:
            self.client.log_artifact(self.run.info.run_id, str(path))
        return self.write(tags=tag)

    def close(self, status: str, when: int | None = None) -> bool:
        """Set FINISHED, FAILED or KILLED; True if it was something else."""
        if self.run.info.status == status:
            return False
        self.client.set_terminated(self.run.info.run_id, status, when)
        return True


def _same(one: float | None, other: float) -> bool:
    if one is None or math.isnan(one) or math.isnan(other):
        return one is not None and math.isnan(one) and math.isnan(other)
    return math.isclose(one, other, rel_tol=1e-6)  # history.csv may hold fewer digits


def find_or_create(
    client: MlflowClient,
    results: Path,
    key: str,
    params: Mapping[str, str] | None = None,
    metrics: Metrics | None = None,
    start: int | None = None,
) -> StoredRun:
    """The run of `<protocol>/<task>/<model>[/<setting>/seed<k>]`, a seed's below its parent's; of
    `<protocol>/<task>/table_<k>`, that of a table.

    MLflow can neither change a param nor take back a metric, so a run that contradicts the given
    ones (it was trained anew in another way) goes to MLflow's bin and a new run takes its place.
    """
    parts = key.split("/")
    tags = dict(zip(("protocol", "task", "model", "setting", "seed"), parts, strict=False))
    tags |= {"suite.run_key": key, "kind": "table" if parts[2].startswith("table_") else "parent"}
    if is_seed := len(parts) == 5:
        parent = find_or_create(client, results, "/".join(parts[:3]))
        tags |= {"kind": "seed", "seed": parts[4].removeprefix("seed")}
        tags["mlflow.parentRunId"] = parent.run.info.run_id
    with _lock(results):
        experiment = _experiment(client, results, parts[1])
        for run in client.search_runs([experiment], f"tags.`suite.run_key` = '{key}'")[:1]:
            found = StoredRun(client, run, tags)
            if not found.contradicts(params or {}, metrics or {}):
                return found
            client.delete_run(run.info.run_id)
        name = "/".join(parts[3:]) or parts[2]
        run = client.create_run(experiment, start_time=start, tags=tags, run_name=name)
        if not is_seed:
            client.set_terminated(run.info.run_id)  # it only groups and never runs
        return StoredRun(client, run, tags)


def _experiment(client: MlflowClient, results: Path, task: str) -> str:
    if found := client.get_experiment_by_name(task):
        return found.experiment_id
    local = tracking_uri(results).startswith("sqlite:")  # a server has a place of its own
    place = (results.resolve() / "mlartifacts" / task).as_uri() if local else None
    return client.create_experiment(task, artifact_location=place)
