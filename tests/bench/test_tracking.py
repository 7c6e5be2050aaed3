"""The MLflow mirror against real MLflow stores (SQLite files in a temporary folder)."""

from __future__ import annotations

import csv
import json
import logging
import math
import multiprocessing
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.__main__ import main
from bench.tracking import sync, track, tracking_uri

MODEL = ("paper", "spherical_mnist", "pdo_spectral")
KEY = "paper/spherical_mnist/pdo_spectral/N_R/seed0"
CONFIG = {"model": {"name": "pdo_spectral", "widths": (8, 16)}, "epochs": 3, "note": "x" * 900}
TAGS = {"git_commit": "abc123", "git_dirty": False, "data": {"mnist": "ba89"}, "device": "cpu"}
TAGS |= {"packages": {f"package{i}": "1.0" for i in range(150)}}  # not wanted as tags


def row(epoch: int, seed: int = 0) -> dict[str, float]:
    return {
        "epoch": epoch,
        "lr": 0.01,
        "train_loss": 1 / epoch + seed / 7,
        "validation_loss": 2 / epoch,
        "validation_accuracy_percent": 90 + epoch / 3,
        "seconds": 1.5,
    }


def final(key: str, accuracy: float = 97.0, status: str = "finished") -> dict:
    return {
        "run": key,
        "status": status,
        "parameters": 49_000,
        "best_epoch": 3,
        "validation": {"accuracy_percent": 91.0},
        "test": {"N/N": {"accuracy_percent": 98.1}, "N/R": {"accuracy_percent": accuracy}},
    }


def write_run(
    results: Path,
    key: str = KEY,
    epochs: int = 3,
    accuracy: float = 97.0,
    status: str = "finished",
    config: dict = CONFIG,
    diverge: bool = False,
) -> list[Path]:
    """A finished run folder as the trainer leaves it."""
    folder, seed = results / "runs" / key, int(key[-1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))  # tuples become lists
    rows = [row(epoch, seed) for epoch in range(1, epochs + 1)]
    if diverge:
        rows[-1] |= {"train_loss": math.inf, "validation_loss": math.nan}
    with open(folder / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    dates = {"started": "2026-03-01T10:00:00+00:00", "finished": "2026-03-01T12:00:00+00:00"}
    (folder / "provenance.json").write_text(json.dumps(TAGS | dates))
    np.savez(folder / "predictions.npz", labels=np.arange(seed + 3))
    (folder / "metrics.json").write_text(json.dumps(final(key, accuracy, status)))
    return sorted(folder.iterdir())


def client_of(results: Path):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(results))


def content(results: Path) -> dict[str, dict]:
    """Everything a reader of MLflow sees, by run key; asserts that no key appears twice."""
    client, seen = client_of(results), {}
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    for run in client.search_runs(experiments):
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        key = tags["suite.run_key"]
        assert key not in seen
        points = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
        parent = run.data.tags.get("mlflow.parentRunId")
        seen[key] = {
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "tags": tags,
            # repr, so that nan is equal to nan
            "metrics": sorted((p.key, p.step, repr(p.value)) for row in points for p in row),
            "artifacts": sorted(f.path for f in client.list_artifacts(run.info.run_id)),
            "parent": parent and client.get_run(parent).data.tags["suite.run_key"],
        }
    return seen


def history(results: Path, name: str, key: str = KEY) -> list[tuple[int, float]]:
    """All points of a metric, also such as were logged twice."""
    points = content(results)[key]["metrics"]
    return [(step, float(value)) for metric, step, value in points if metric == name]


# --- live ------------------------------------------------------------------------------------


def test_live_run_then_sync_is_a_no_op(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    with track(results, KEY, CONFIG, TAGS) as run:
        assert content(results)[KEY]["status"] == "RUNNING"
        for epoch in (1, 2, 3):
            values = {name: value for name, value in row(epoch).items() if name != "epoch"}
            run.log_epoch(values, epoch)
        run.finish(final(KEY), artifacts=write_run(results))
    before = content(results)
    live = before[KEY]
    assert live["status"] == "FINISHED"
    assert live["name"] == "N_R/seed0"
    assert live["parent"] == "paper/spherical_mnist/pdo_spectral"
    assert live["params"] == {
        "model.name": "pdo_spectral",
        "model.widths": "[8, 16]",
        "epochs": "3",
        "note": "x" * 500,
    }
    assert live["tags"].items() >= {"kind": "seed", "seed": "0", "setting": "N_R"}.items()
    assert live["tags"].items() >= {"git_dirty": "False", "data.mnist": "ba89"}.items()
    assert not any(name.startswith("packages") for name in live["tags"])
    assert history(results, "validation/accuracy_percent") == [(e, 90 + e / 3) for e in (1, 2, 3)]
    assert history(results, "test/N_R/accuracy_percent") == [(0, 97.0)]
    assert live["artifacts"] == [path.name for path in write_run(results)]

    assert sync(results) == 2  # the dates of the provenance on the run, the mean on the parent
    after = content(results)
    assert after.keys() == before.keys()
    for kept in ("name", "status", "params", "metrics", "artifacts", "parent"):
        assert after[KEY][kept] == live[kept]
    assert after[KEY]["tags"].items() >= live["tags"].items()
    assert sync(results) == 0
    assert content(results) == after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]  # no ./mlruns


def test_resume_takes_up_the_run_with_each_epoch_once(tmp_path):
    with pytest.raises(SystemExit), track(tmp_path, KEY, CONFIG, TAGS) as run:
        run.log_epoch(row(1), 1)
        run.log_epoch(row(2), 2)
        sys.exit(143)
    assert content(tmp_path)[KEY]["status"] == "KILLED"
    with track(tmp_path, KEY, CONFIG, TAGS | {"device": "cuda"}) as run:
        assert content(tmp_path)[KEY]["status"] == "RUNNING"
        for epoch in (2, 3):  # the checkpoint was older than the last epoch that was logged
            run.log_epoch(row(epoch), epoch)
    seen = content(tmp_path)
    assert len(seen) == 2  # the parent and one child
    assert seen[KEY]["status"] == "FINISHED"
    assert seen[KEY]["tags"]["device"] == "cuda"
    for name in ("train/loss", "seconds"):
        assert [step for step, _ in history(tmp_path, name)] == [1, 2, 3]
    # started anew with another configuration: params cannot change, so this is a new run
    with track(tmp_path, KEY, CONFIG | {"epochs": 5}, TAGS) as run:
        run.log_epoch(row(1), 1)
    assert content(tmp_path)[KEY]["params"]["epochs"] == "5"
    assert [step for step, _ in history(tmp_path, "train/loss")] == [1]


def test_status_tells_how_the_run_ended(tmp_path):
    ends = {"seed0": (RuntimeError, "FAILED"), "seed1": (KeyboardInterrupt, "KILLED")}
    for seed, (error, _) in ends.items():
        with pytest.raises(error), track(tmp_path, KEY.replace("seed0", seed), CONFIG, TAGS):
            raise error("stop")
    seen = content(tmp_path)
    for seed, (_, status) in ends.items():
        assert seen[KEY.replace("seed0", seed)]["status"] == status


# --- a tracker that does not work ------------------------------------------------------------


def run_unharmed(results: Path, caplog, key: str = KEY) -> list[str]:
    """Go through a whole tracked run, assert that nothing is noticed, return the warnings."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global generator is what must be left alone)
    expected, expected_numpy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    epochs = 0
    caplog.clear()
    with caplog.at_level(logging.WARNING), track(results, key, CONFIG, TAGS) as run:
        for epoch in (1, 2, 3):
            run.log_epoch(row(epoch), epoch)
            epochs += 1
        run.finish(final(key), artifacts=write_run(results, key))
    assert epochs == 3
    assert random.getstate() == expected
    assert np.random.get_state()[1].tolist() == expected_numpy  # noqa: NPY002
    return [record.getMessage() for record in caplog.records]


def test_disabled_tracking_touches_nothing(tmp_path, caplog):
    with track(tmp_path, KEY, CONFIG, TAGS, enabled=False) as run:
        run.log_epoch(row(1), 1)
        run.finish(final(KEY))
    assert not list(tmp_path.iterdir())


def test_dead_server_costs_one_warning(tmp_path, caplog, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    (warning,) = run_unharmed(tmp_path, caplog)
    assert KEY in warning and len(warning.splitlines()) == 1


def test_corrupt_database_costs_one_warning(tmp_path, caplog):
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 1000)
    (warning,) = run_unharmed(tmp_path, caplog)
    assert "file is not a database" in warning


def test_tracker_that_breaks_on_the_way_costs_one_warning(tmp_path, caplog, monkeypatch):
    from mlflow import MlflowClient

    def broken(*args, **kwargs):
        raise OSError("disk full")

    calls = []
    real = MlflowClient.log_batch

    def breaks_at_the_third_call(*args, **kwargs):
        calls.append(args)
        return (real if len(calls) < 3 else broken)(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", breaks_at_the_third_call)
    (warning,) = run_unharmed(tmp_path, caplog)  # call 1: params, 2: epoch 1, 3: epoch 2
    assert "disk full" in warning
    assert len(calls) == 3  # and then quiet
    assert content(tmp_path)[KEY]["status"] == "RUNNING"
    monkeypatch.undo()
    sync(tmp_path)  # brings back what was missed and closes the run
    assert content(tmp_path)[KEY]["status"] == "FINISHED"
    assert history(tmp_path, "train/loss") == [(epoch, 1 / epoch) for epoch in (1, 2, 3)]
    assert sync(tmp_path) == 0


# --- sync ------------------------------------------------------------------------------------


def test_deleted_database_comes_back_from_the_files(tmp_path):
    model = "paper/spherical_mnist/pdo_spectral"
    accuracies = {f"{model}/N_R/seed{seed}": 96.0 + seed for seed in range(3)}
    for key, accuracy in accuracies.items():
        write_run(tmp_path, key, accuracy=accuracy)
    diverged, at_once = f"{model}/N_R/seed3", f"{model}/N_R/seed5"
    write_run(tmp_path, diverged, accuracy=1.0, status="diverged", diverge=True)
    for path in write_run(tmp_path, at_once, status="diverged"):
        if path.name in ("history.csv", "predictions.npz"):
            path.unlink()
    paper, other = (tmp_path / "tables" / name for name in ("paper", "other"))
    for folder, names in {
        paper: ("table1.md", "table1.csv", "table3.csv", "tracking.txt"),
        other: ("table1.csv",),
    }.items():
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text(f"this is {name} of {folder.name}")
    (tmp_path / "runs" / model / "N_R" / "seed4").mkdir()  # still training: no metrics.json

    assert sync(tmp_path) == 9  # five seeds, their parent, three tables
    first = content(tmp_path)
    tables = (
        *("paper/spherical_mnist/table_1", "paper/qm7/table_3"),
        "other/spherical_mnist/table_1",
    )
    assert first.keys() == {*accuracies, diverged, at_once, model, *tables}
    assert first[diverged]["status"] == "FAILED"
    assert first[diverged]["tags"]["status"] == "diverged"
    points = {(name, step): float(value) for name, step, value in first[diverged]["metrics"]}
    assert points["train/loss", 3] == sys.float_info.max  # what MLflow makes of infinity
    assert math.isnan(points["validation/loss", 3])
    assert history(tmp_path, "N_R/test/N_R/accuracy_percent/mean", model) == [(0, 97.0)]
    assert history(tmp_path, "N_R/test/N_R/accuracy_percent/std", model) == [(0, 1.0)]
    assert history(tmp_path, "N_R/seeds", model) == [(0, 3.0)]
    assert first[tables[0]]["artifacts"] == ["table1.csv", "table1.md"]
    assert first[tables[2]]["artifacts"] == ["table1.csv"]
    for key in tables:
        tags = first[key]["tags"]
        assert (tags["kind"], tags["protocol"]) == ("table", key.split("/")[0])
    run = client_of(tmp_path).search_runs(["1"], f"tags.`suite.run_key` = '{KEY}'")[0]
    assert run.info.end_time - run.info.start_time == 2 * 3600 * 1000
    assert sync(tmp_path) == 0
    assert content(tmp_path) == first

    # In a process of its own, because MLflow keeps the connection to the deleted file.
    (tmp_path / "mlflow.db").unlink()
    shutil.rmtree(tmp_path / "mlartifacts")
    code = (
        f"from pathlib import Path; from bench.tracking import sync; sync(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""  # none of MLflow's chatter
    reconnect(tmp_path)
    assert content(tmp_path) == first
    assert stored_table(tmp_path, "qm7", "table3.csv") == "this is table3.csv of paper"
    (paper / "table3.csv").write_text("a new table")
    assert sync(tmp_path) == 1
    assert stored_table(tmp_path, "qm7", "table3.csv") == "a new table"
    assert sync(tmp_path) == 0


def stored_table(results: Path, task: str, name: str) -> str:
    client = client_of(results)
    experiment = client.get_experiment_by_name(task).experiment_id
    (table,) = client.search_runs([experiment], "tags.kind = 'table'")
    return Path(client.download_artifacts(table.info.run_id, name)).read_text()


def reconnect(results: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore._engine_map[tracking_uri(results)].dispose()


def test_sync_follows_the_files_when_a_run_was_trained_anew(tmp_path):
    write_run(tmp_path, epochs=3)
    other = KEY.replace("seed0", "seed1")
    write_run(tmp_path, other)
    sync(tmp_path)
    before = content(tmp_path)
    write_run(tmp_path, epochs=2, accuracy=95.0, config=CONFIG | {"epochs": 2})
    assert sync(tmp_path) == 2  # the run and the mean of its model
    assert [step for step, _ in history(tmp_path, "train/loss")] == [1, 2]
    assert history(tmp_path, "test/N_R/accuracy_percent") == [(0, 95.0)]
    assert content(tmp_path)[KEY]["params"]["epochs"] == "2"
    assert content(tmp_path)[other] == before[other]
    model = client_of(tmp_path).search_runs(["1"], "tags.kind = 'parent'")[0]
    # the latest counts, and of its seeds those of the same configuration: not the other one's 97
    assert model.data.metrics["N_R/test/N_R/accuracy_percent/mean"] == 95.0
    assert model.data.metrics["N_R/seeds"] == 1
    assert sync(tmp_path) == 0


def test_sync_names_the_run_that_it_cannot_read(tmp_path):
    write_run(tmp_path)
    (tmp_path / "runs" / KEY / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"N_R/seed0 cannot be read .*config\.yaml"):
        sync(tmp_path)


def test_the_command_says_that_the_tracker_is_dead(tmp_path, capsys):
    """In one line; `--lenient`, which Snakemake calls after the tables, is no failure."""
    write_run(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 1000)
    outcome = tmp_path / "tracking.txt"
    for options, status in (([], 1), (["--lenient", str(outcome)], 0)):
        assert main(["sync", "--results", str(tmp_path), *options]) == status
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("MLflow could not be synced: ") and "not a database" in said
    assert outcome.read_text() == f"{said}\n"


# --- many at once ----------------------------------------------------------------------------


def start_together(folders: list[Path], barrier, answers) -> None:
    """Body of one of two processes: `track` on fresh databases at the same moment."""
    import mlflow  # noqa: F401 (both must be ready before either begins)

    key = "/".join([*MODEL, "N_R", multiprocessing.current_process().name])
    for results in folders:
        barrier.wait(timeout=60)
        with track(results, key, CONFIG, TAGS) as run:
            run.log_epoch(row(1), 1)
            answers.put(run.stored is not None)


def test_two_processes_start_on_a_fresh_database(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c", "d")]
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    processes = [
        spawn.Process(target=start_together, args=(folders, barrier, answers), name=name)
        for name in ("seed0", "seed1")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert all(answers.get(timeout=5) for _ in range(2 * len(folders)))

    parent = "/".join(MODEL)
    for results in folders:
        names = [experiment.name for experiment in client_of(results).search_experiments()]
        assert sorted(names) == ["Default", "spherical_mnist"]
        seen = content(results)
        assert seen.keys() == {parent, f"{parent}/N_R/seed0", f"{parent}/N_R/seed1"}
        assert all(run["status"] == "FINISHED" for run in seen.values())
