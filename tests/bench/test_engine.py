"""The engine: resume is exact, bad input is refused, runs leave what they promise."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from bench import checkpoint, engine
from bench.engine import Interrupted, learning_rate, steps_per_epoch, train
from bench.errors import RunError
from bench.provenance import provenance
from bench.tasks import SphericalMNIST
from data_prep.files import sha256_of_file
from tests.conftest import N_TRAIN, tiny_run

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


def run_folder(results, run):
    return results / "runs" / run.key


def stop_after(monkeypatch, steps: int) -> None:
    """Send this process SIGTERM while the given training step is being prepared."""
    batch, seen = SphericalMNIST.batch, []

    def counting(self, name, positions):
        if name == "train":
            seen.append(name)
            if len(seen) == steps:
                os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, name, positions)

    monkeypatch.setattr(SphericalMNIST, "batch", counting)


@pytest.mark.parametrize("model", ["UGSCNN", "PDO-eS2CNN-small"])
@pytest.mark.parametrize("steps", [3, 6, 9])  # of 6 in an epoch
def test_stopped_and_resumed_equals_never_stopped(tmp_path, tiny_data, monkeypatch, model, steps):
    """Bitwise: weights, history and predictions; UGSCNN has dropout, so RNG states matter."""
    run = tiny_run(model, epochs=2)
    straight = train(run, tmp_path / "a", tiny_data, CPU, track=False)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Interrupted) as stopped:
            train(run, tmp_path / "b", tiny_data, CPU, track=False)
    assert stopped.value.code == 143
    folder = run_folder(tmp_path / "b", run)
    assert (folder / "checkpoint.pt").exists() and not (folder / "metrics.json").exists()
    torch.rand(5)  # the world goes on between the two
    resumed = train(run, tmp_path / "b", tiny_data, CPU, track=False)
    assert resumed == straight
    whole = run_folder(tmp_path / "a", run)
    assert (folder / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()
    a, b = (pd.read_csv(f / "history.csv").drop(columns="seconds") for f in (whole, folder))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    a, b = (np.load(f / "predictions.npz") for f in (whole, folder))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


CHANGES = {
    "git_dirty": {"git_dirty": True, "git_problem": "bench/engine.py differs"},
    "threads": {"threads": 2},
    "processor": {"processor": {"name": "AMD EPYC", "flags": ["avx2"]}},
}


@pytest.mark.parametrize("changed", [*CHANGES, None])
def test_provenance_tells_where_all_stretches_come_from(
    tmp_path, tiny_data, monkeypatch, caplog, changed
):
    """Local changes at the start are not forgotten when the rest comes from a clean commit; a
    processor of the same name may be another one."""
    run, before = tiny_run(epochs=2), {"git_commit": "a", "threads": 1}
    before |= {"git_dirty": False, "git_problem": None}
    before |= {"cpu": "AMD EPYC", "processor": {"name": "AMD EPYC", "flags": ["avx2", "amx_bf16"]}}
    after = dict(before)
    if changed:
        before |= CHANGES[changed]
    if changed == "git_dirty":
        after["git_commit"] = "b"
    real = engine.provenance
    for stretch, steps in ((before, 3), (before, 5), (after, None)):
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "provenance", lambda *a, s=stretch: real(*a) | s)
            if steps:
                stop_after(patch, steps)
                with pytest.raises(Interrupted):
                    train(run, tmp_path, tiny_data, CPU, track=False)
            else:
                train(run, tmp_path, tiny_data, CPU, track=False)
    facts = json.loads((run_folder(tmp_path, run) / "provenance.json").read_text())
    assert facts["git_commit"] == after["git_commit"]
    assert facts["git_dirty"] == (changed == "git_dirty")
    if changed:
        (first,) = facts["resumed_from"]
        assert first.items() >= before.items() and first["precision"] == facts["precision"]
    else:
        assert "resumed_from" not in facts
    problem = "its first epochs were trained otherwise: bench/engine.py differs"
    assert facts["git_problem"] == (problem if changed == "git_dirty" else None)
    assert ("cannot be recorded: its first epochs" in caplog.text) == (changed == "git_dirty")


@pytest.mark.parametrize("dirty", [True, False, None])
def test_a_run_says_at_its_start_that_it_cannot_be_recorded(
    tmp_path, tiny_data, monkeypatch, caplog, dirty
):
    """In one line, before the first epoch."""
    problem = None if dirty is False else "torch.py is not of commit abc1234"
    code = {"git_commit": None, "git_dirty": dirty, "git_problem": problem}
    monkeypatch.setattr(engine, "git_state", lambda: code)
    with caplog.at_level("INFO", "bench"):
        train(tiny_run(), tmp_path, tiny_data, CPU, track=False)
    lines = [f"this run cannot be recorded: {problem}"] if problem else []
    assert caplog.messages[:-2] == lines and " epoch 1/2 " in caplog.messages[-2]
    facts = json.loads((run_folder(tmp_path, tiny_run()) / "provenance.json").read_text())
    assert facts.items() >= code.items()


@pytest.mark.parametrize("model", ["UGSCNN", "PDO-eS2CNN-small", "IcosahedralCNN"])
def test_unfilled_memory_changes_no_bit(tmp_path, tiny_data, monkeypatch, model):
    """Filled, what nobody has written is NaN: a network that read it would lose its numbers."""
    run, weights, real = tiny_run(model, epochs=1), [], engine.seed_everything
    for fill in (False, True):

        def seeded(seed, fill=fill):
            real(seed)
            assert torch.utils.deterministic.fill_uninitialized_memory is False
            assert torch.are_deterministic_algorithms_enabled()
            torch.utils.deterministic.fill_uninitialized_memory = fill

        monkeypatch.setattr(engine, "seed_everything", seeded)
        train(run, tmp_path / str(fill), tiny_data, CPU, track=False)
        weights.append((run_folder(tmp_path / str(fill), run) / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_run_leaves_what_it_promises(tmp_path, tiny_data):
    run = tiny_run("UGSCNN")
    metrics = train(run, tmp_path, tiny_data, CPU, track=False)
    folder = run_folder(tmp_path, run)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "history.csv",
        "metrics.json",
        "predictions.npz",
        "provenance.json",
        "weights.safetensors",
    ]
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["status"] == "finished" and metrics["parameters"] == 61_658
    assert set(metrics["test"]) == {"N/N", "N/R"}
    predictions = np.load(folder / "predictions.npz")
    for column in metrics["test"]:
        key = column.replace("/", "_")
        accuracy = np.mean(predictions[f"{key}_predictions"] == predictions[f"{key}_targets"])
        assert metrics["test"][column]["accuracy_percent"] == pytest.approx(100 * accuracy)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == run.model_dump()
    history = pd.read_csv(folder / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    best = history["validation_accuracy_percent"].idxmax() + 1
    assert metrics["best_epoch"] == best
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["config_sha256"] == run.hash
    assert facts["data"]["card"]["source"] == "synthetic digits"
    assert facts["data"]["counts"]["train"] == N_TRAIN - N_TRAIN // 10
    assert facts["packages"]["torch"] and facts["cpu"] and facts["peak_memory_gb"] > 0


def test_same_seed_same_result_other_seed_other_result(tmp_path, tiny_data):
    results = [
        train(run, tmp_path / str(i), tiny_data, CPU, track=False)
        for i, run in enumerate([tiny_run(), tiny_run(), tiny_run(seed=1)])
    ]
    weights = [
        (run_folder(tmp_path / str(i), run) / "weights.safetensors").read_bytes()
        for i, run in enumerate([tiny_run(), tiny_run(), tiny_run(seed=1)])
    ]
    assert results[0] == results[1] and weights[0] == weights[1] != weights[2]


def test_training_learns(tmp_path, tiny_data):
    """Eight epochs on 108 stroke digits: far above chance on what was seen."""
    run = tiny_run("PDO-eS2CNN-small", epochs=8)
    train(run, tmp_path, tiny_data, CPU, track=False)
    loss = pd.read_csv(run_folder(tmp_path, run) / "history.csv")["train_loss"]
    assert loss.iloc[-1] < 0.6 * np.log(10) < loss.iloc[0]


def test_divergence_is_a_status(tmp_path, tiny_data):
    run = tiny_run("UGSCNN", learning_rate=1e30, optimizer="adam", schedule="constant")
    metrics = train(run, tmp_path, tiny_data, CPU, track=False)
    assert metrics["status"] == "diverged" and metrics["test"] == {}
    assert (run_folder(tmp_path, run) / "provenance.json").exists()


def test_a_run_that_diverges_keeps_nothing_of_the_one_before(tmp_path, tiny_data):
    train(tiny_run("UGSCNN"), tmp_path, tiny_data, CPU, track=False)
    folder = run_folder(tmp_path, tiny_run("UGSCNN"))
    assert (folder / "weights.safetensors").exists() and (folder / "predictions.npz").exists()
    run = tiny_run("UGSCNN", learning_rate=1e30, optimizer="adam", schedule="constant")
    assert train(run, tmp_path, tiny_data, CPU, track=False)["status"] == "diverged"
    assert not (folder / "weights.safetensors").exists()
    assert not (folder / "predictions.npz").exists()
    assert not (folder / "history.csv").exists()  # it diverged in its first epoch


def everything_in(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_finished_run_is_left_as_it_is(tmp_path, tiny_data):
    metrics = train(tiny_run(), tmp_path, tiny_data, CPU, track=False)
    folder = run_folder(tmp_path, tiny_run())
    before = everything_in(folder)
    assert train(tiny_run(), tmp_path, tmp_path / "gone", CPU, track=False) == metrics
    assert everything_in(folder) == before


def test_a_run_that_cannot_start_leaves_the_results_before_it(tmp_path, tiny_data):
    train(tiny_run(), tmp_path, tiny_data, CPU, track=False)
    folder = run_folder(tmp_path, tiny_run())
    before = everything_in(folder)
    with pytest.raises(RunError, match="no prepared data"):
        train(tiny_run(epochs=3), tmp_path, tmp_path / "gone", CPU, track=False)
    assert everything_in(folder) == before


def test_checkpoint_of_another_configuration(tmp_path, tiny_data, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(tiny_run(epochs=2), tmp_path, tiny_data, CPU, track=False)
    saved = run_folder(tmp_path, tiny_run()) / "checkpoint.pt"
    before = saved.read_bytes()
    with pytest.raises(RunError, match=r"another configuration \(train\.epochs: 2 -> 3\)"):
        train(tiny_run(epochs=3), tmp_path, tiny_data, CPU, track=False)
    assert saved.read_bytes() == before


def test_checkpoint_of_other_code(tmp_path, tiny_data, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        patch.setattr(engine, "provenance", lambda *a: provenance(*a) | {"git_commit": 40 * "c"})
        with pytest.raises(Interrupted):
            train(tiny_run(), tmp_path, tiny_data, CPU, track=False)
    saved = run_folder(tmp_path, tiny_run()) / "checkpoint.pt"
    before = saved.read_bytes()
    monkeypatch.setattr(engine, "build", lambda _: torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"is of other code \(commit c{40}\): go back") as error:
        train(tiny_run(), tmp_path, tiny_data, CPU, track=False)
    assert "\n" not in str(error.value) and saved.read_bytes() == before


def test_unreadable_checkpoint(tmp_path, tiny_data):
    saved = run_folder(tmp_path, tiny_run()) / "checkpoint.pt"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"PK not a checkpoint")
    with pytest.raises(RunError, match=r"checkpoint\.pt is not a readable checkpoint"):
        train(tiny_run(), tmp_path, tiny_data, CPU, track=False)


def test_interrupted_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    """A crash while writing leaves the previous checkpoint whole and no litter."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    progress = checkpoint.Progress("hash", "{}")
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, progress, {}, model, optimizer)
    before = path.read_bytes()

    def torn(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", torn)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, progress, {}, model, optimizer)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, tiny_data):
    """A file size limit stands for the disk: the checkpoint does not fit."""
    run = tiny_run("UGSCNN")
    command = [sys.executable, "-m", "bench", "train", "--run", run.canonical_json()]
    command += ["--no-tracking", "--data", str(tiny_data), "--results", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "checkpoint.pt" in last
    assert [p.name for p in run_folder(tmp_path, run).iterdir()] == ["config.yaml"]


def test_bad_option_of_a_model(tmp_path, tiny_data):
    run = tiny_run("PDO-eS2CNN-small").model_copy(update={"options": {"stencil": "papr"}})
    with pytest.raises(RunError, match=r"PDO-eS2CNN-small cannot be built .* unknown stencil"):
        train(run, tmp_path, tiny_data, CPU, track=False)


def test_missing_data(tmp_path):
    with pytest.raises(RunError, match=r"no prepared data in .*snakemake --cores 2 data/"):
        train(tiny_run(), tmp_path, tmp_path, CPU, track=False)


def test_non_finite_input(tmp_path, tiny_data):
    run = tiny_run()
    folder = tmp_path / run.data.folder("icosphere3-equator")
    folder.mkdir(parents=True)
    for file in (tiny_data / run.data.folder("icosphere3-equator")).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    signals = np.load(folder / "train_N.npy").astype(np.float32)
    signals[17, 3] = np.nan
    np.save(folder / "train_N.npy", signals)
    card = json.loads((folder / "card.json").read_text())
    card["sha256"]["train_N.npy"] = sha256_of_file(folder / "train_N.npy")
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(RunError, match=r"signal 17 of set \w+ is not finite"):
        train(run, tmp_path, tmp_path, CPU, track=False)
    assert not (run_folder(tmp_path, run) / "metrics.json").exists()


@pytest.mark.parametrize("schedule", ["constant", "step", "one_cycle"])
def test_schedules(schedule):
    run = tiny_run(epochs=20, schedule=schedule, learning_rate=1.0, step_epochs=10)
    rates = np.array([learning_rate(run, step, 5) for step in range(100)])
    if schedule == "constant":
        assert (rates == 1).all()
    elif schedule == "step":
        np.testing.assert_array_equal(rates, [1.0] * 50 + [0.5] * 50)
    else:
        assert rates[0] == pytest.approx(1 / 20) and rates.argmax() in (19, 20)
        assert rates.max() == 1 and 0 < rates[-1] < 1e-3
        assert (np.diff(rates[20:]) < 0).all()


def test_a_last_small_batch_is_left_out():
    assert steps_per_epoch(108, 16) == 6
    assert steps_per_epoch(5, 16) == 1


def test_signal_handlers_are_restored(tmp_path, tiny_data):
    before = signal.getsignal(signal.SIGTERM)
    with engine._signals() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before


def test_training_starts_without_the_libraries_of_tables():
    """Every job of a study pays for what this imports."""
    heavy = ("pandas", "scipy.stats", "matplotlib", "mlflow", "snakemake")
    code = f"import sys, bench.__main__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
