"""Sixteen runs at once against `mlflow server` on loopback with a PostgreSQL of its own."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from bench.tracking import sync, track
from tests.bench.test_tracking import CONFIG, TAGS, content, final, row, write_run

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))  # Debian's
MISSING = [name for name in ("initdb", "postgres") if not shutil.which(name, path=BIN)]
if not importlib.util.find_spec("psycopg2"):
    MISSING.append("psycopg2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"no PostgreSQL ({', '.join(MISSING)} missing): as root, make postgres",
    ),
]
MODELS = ("UGSCNN", "PDO-eS2CNN-small")
KEYS = [
    f"paper/spherical_mnist/{model}/{setting}/seed{seed}"
    for model, setting, seed in product(MODELS, ("N", "R"), range(4))
]
COLUMNS = {
    "lr": "lr",
    "seconds": "seconds",
    "train_loss": "train/loss",
    "validation_loss": "validation/loss",
    "validation_accuracy_percent": "validation/accuracy_percent",
}
"""Of the history, and what MLflow calls them."""
FINAL = {
    "parameters": 49_000,
    "best_epoch": 3,
    "best_validation/accuracy_percent": 91.0,
    "test/N_N/accuracy_percent": 98.1,
    "test/N_R/accuracy_percent": 97.0,
}
"""What `final` says, under MLflow's names."""
EPOCHS = 20
PATIENCE = 300  # seconds: far fewer on a free machine


@contextmanager
def running(command: list, ready, **how) -> Iterator[None]:
    """A server that has answered, stopped by SIGINT at the end."""
    with tempfile.TemporaryFile("w+") as output:
        how |= {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, **how)
        try:
            deadline = time.monotonic() + PATIENCE
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    pytest.fail(output.read())
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)  # to PostgreSQL: do not wait for clients
            process.wait(timeout=60)


@pytest.fixture
def database() -> Iterator[str]:
    """Address of an empty PostgreSQL that nobody reaches but through a folder of its user."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    try:
        subprocess.run(
            [BIN / "initdb", "--pgdata", folder / "data", "--username=postgres", "--auth=trust"],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )
        settings = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off")
        command = [BIN / "postgres", "-D", folder / "data"]
        for setting in settings:
            command += ["-c", setting]
        asked = [BIN / "pg_isready", "--quiet", "--host", folder]
        with running(command, lambda: subprocess.run(asked).returncode == 0, cwd=folder, **user):
            yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def server(database, tmp_path, monkeypatch) -> Iterator[str]:
    """`mlflow server`, as docs/scaling.md starts it; MLFLOW_TRACKING_URI names it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", database]
    command += ["--artifacts-destination", tmp_path / "artifacts"]

    def ready() -> bool:
        try:
            return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
        except OSError:
            return False

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    with running(command, ready, cwd=tmp_path):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address


def train(results: Path, key: str, barrier, answers) -> None:
    """Body of one of the processes: a run of 20 epochs as the engine tracks it."""
    import mlflow  # noqa: F401 (all must be ready before any begins)

    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("bench.tracking").addHandler(handler)
    files = write_run(results, key, EPOCHS)
    barrier.wait(timeout=PATIENCE)
    with track(results, key, CONFIG, TAGS) as run:
        for epoch in range(1, EPOCHS + 1):
            run.log_epoch(row(epoch, seed=int(key[-1])), epoch)
        run.finish(final(key), artifacts=files)
    answers.put(warnings)


def test_sixteen_runs_at_once_lose_nothing(server, database, tmp_path):
    import psycopg2

    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(len(KEYS)), spawn.Queue()
    results = tmp_path / "results"
    processes = [spawn.Process(target=train, args=(results, key, barrier, answers)) for key in KEYS]
    for process in processes:
        process.start()
    told = [answers.get(timeout=3 * PATIENCE) for _ in processes]
    for process in processes:
        process.join(timeout=PATIENCE)
        assert process.exitcode == 0
    assert told == [[]] * len(KEYS)

    seen = content(results)  # and no key twice
    parents = {f"paper/spherical_mnist/{model}" for model in MODELS}
    assert seen.keys() == {*KEYS, *parents}
    for key in KEYS:
        run = seen[key]
        _, _, model, setting, seed = key.split("/")
        assert (run["status"], run["name"]) == ("FINISHED", f"{setting}/{seed}")
        assert run["parent"] == key.rsplit("/", 2)[0]
        expected = [(name, 0, value) for name, value in FINAL.items()]
        for epoch in range(1, EPOCHS + 1):
            values = row(epoch, seed=int(seed[-1]))
            expected += [(name, epoch, values[column]) for column, name in COLUMNS.items()]
        expected = [(name, step, repr(float(value))) for name, step, value in expected]
        assert run["metrics"] == sorted(expected)
        assert run["params"]["model.name"] == "pdo_spectral" and run["params"]["epochs"] == "3"
        assert run["tags"].items() >= {"model": model, "setting": setting, "kind": "seed"}.items()
        assert run["tags"].items() >= {"git_commit": "abc123", "data.mnist": "ba89"}.items()
        assert run["artifacts"] == sorted(path.name for path in (results / "runs" / key).iterdir())
    assert not (results / "mlartifacts").exists()  # the server keeps them
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM metrics")
        assert cursor.fetchone() == (sum(len(run["metrics"]) for run in seen.values()),)

    assert sync(results) == len(KEYS) + len(parents)  # dates of the provenance; means
    assert sync(results) == 0
