"""Runs of earlier releases under their new names: the same runs."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from bench.config import RunConfig
from bench.errors import RunError
from bench.migrate import migrate, old_hash, renamed_config

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "results/recorded").glob("*/runs/**/provenance.json"))


def old_config(protocol: str, model: str, legacy: bool) -> dict:
    """The resolved configuration of a run as release 0.1 wrote it."""
    return {
        "protocol": protocol,
        "task": "spherical_mnist",
        "model": model,
        "network": "PDO-eS2CNN-small",
        "setting": "N",
        "seed": 0,
        "base_seed": 0,
        "data": {
            "source": "mnist",
            "level": 4,
            "n_train": None,
            "n_test": None,
            "rotation_chunk": 1,
            "legacy_bilinear": legacy,
            "seed": 0,
        },
        "train": {
            "epochs": 20,
            "batch_size": 32,
            "optimizer": "adamw",
            "learning_rate": 0.005,
            "weight_decay": 0.001,
            "schedule": "one_cycle",
            "step_epochs": 10,
            "step_factor": 0.5,
            "label_smoothing": 0.1,
            "amp": True,
        },
        "options": {},
    }


def put(root: Path, tree: dict, finished: bool = True, inner: str = "") -> Path:
    """Write a run folder as release 0.1 did; below `recorded` its runs stand in `inner`."""
    folder = root / tree["protocol"] / inner / tree["task"] / tree["model"] / "N/seed0"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (folder / "predictions.npz").write_bytes(b"predictions")
    card = {
        "dataset": "spherical MNIST",
        "source": "MNIST",
        "raw_sha256": {},
        "projection": {"epsilon": 0.001, "legacy_bilinear": tree["data"]["legacy_bilinear"]},
        "sha256": {"train_N.npy": "a"},
    }
    facts = {"git_dirty": False, "config": tree, "config_sha256": digest, "data": {"card": card}}
    (folder / "provenance.json").write_text(json.dumps(facts | {"argv": ["as", "typed"]}))
    if finished:
        metrics = {"config_hash": digest, "status": "finished", "test": {"N/N": {"accuracy": 98.3}}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    else:
        progress = {"config_hash": digest, "config": json.dumps(tree, sort_keys=True), "epoch": 3}
        torch.save({"progress": progress, "model": {"w": torch.ones(2)}}, folder / "checkpoint.pt")
    return folder


@pytest.mark.parametrize(
    ("protocol", "model", "legacy", "key"),
    [
        ("paper", "UGSCNN", False, "corrected/spherical_mnist/UGSCNN"),
        ("published_sampling", "UGSCNN", True, "paper/spherical_mnist/UGSCNN"),
        (
            "nearest_ring",
            "nearest-ring",
            False,
            "corrected/spherical_mnist/PDO-eS2CNN-small-nearest-ring",
        ),
        ("workstation", "UGSCNN", False, "workstation/spherical_mnist/UGSCNN"),
    ],
)
def test_nothing_but_names_changes(tmp_path, protocol, model, legacy, key):
    tree = old_config(protocol, model, legacy)
    folder = put(tmp_path / "runs", tree)
    digest = json.loads((folder / "metrics.json").read_text())["config_hash"]
    before = f"{protocol}/spherical_mnist/{model}/N/seed0"
    assert migrate(tmp_path) == [(before, f"{key}/N/seed0")]
    new = tmp_path / "runs" / key / "N/seed0"
    run = RunConfig.model_validate(yaml.safe_load((new / "config.yaml").read_text()))
    assert run.key == f"{key}/N/seed0"
    assert run.data.edition == ("published" if legacy else "corrected")
    rest = {k: v for k, v in tree.items() if k not in ("protocol", "model", "data")}
    assert {k: v for k, v in run.model_dump().items() if k in rest} == rest
    metrics = json.loads((new / "metrics.json").read_text())
    assert metrics["config_hash"] == run.hash and metrics["test"] == {"N/N": {"accuracy": 98.3}}
    facts = json.loads((new / "provenance.json").read_text())
    assert facts["config"] == run.model_dump() and facts["config_sha256"] == run.hash
    assert facts["data"]["card"]["edition"] == run.data.edition
    assert facts["argv"] == ["as", "typed"]
    assert facts["renamed"] == [{"run": before, "config_sha256": digest}]
    assert old_hash(run, before) == digest
    assert (new / "predictions.npz").read_bytes() == b"predictions"
    assert folder.exists() == (folder == new)
    assert migrate(tmp_path) == []  # once is enough


def test_recorded_runs_move_and_empty_protocols_go(tmp_path):
    put(tmp_path / "recorded", old_config("nearest_ring", "nearest-ring", False), inner="runs")
    (tmp_path / "recorded/nearest_ring/table1.md").write_text("a table")
    migrate(tmp_path)
    assert [path.name for path in (tmp_path / "recorded").iterdir()] == ["corrected"]
    model = "PDO-eS2CNN-small-nearest-ring"
    runs = tmp_path / "recorded/corrected/runs/spherical_mnist"
    assert (runs / model / "N/seed0/metrics.json").exists()


def test_a_run_in_progress_goes_on_under_its_new_name(tmp_path):
    tree = old_config("paper", "PDO-eS2CNN-small", False)
    put(tmp_path / "runs", tree, finished=False)
    migrate(tmp_path)
    new = tmp_path / "runs/corrected/spherical_mnist/PDO-eS2CNN-small/N/seed0"
    run = RunConfig.model_validate(yaml.safe_load((new / "config.yaml").read_text()))
    state = torch.load(new / "checkpoint.pt", weights_only=True)
    assert state["progress"] == {
        "config_hash": run.hash,
        "config": run.canonical_json(),
        "epoch": 3,
    }
    assert torch.equal(state["model"]["w"], torch.ones(2))


def test_a_stopped_migration_can_be_repeated(tmp_path, monkeypatch):
    folder = put(tmp_path / "runs", old_config("paper", "UGSCNN", False))
    with monkeypatch.context() as patch:
        patch.setattr("bench.migrate.shutil.rmtree", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            migrate(tmp_path)
    assert folder.exists()
    assert len(migrate(tmp_path)) == 1
    assert not folder.exists() and not (tmp_path / "runs/paper").exists()


def test_another_run_is_not_overwritten(tmp_path):
    put(tmp_path / "runs", old_config("paper", "UGSCNN", False))
    other = renamed_config(old_config("paper", "UGSCNN", False)) | {"base_seed": 5}
    target = tmp_path / "runs/corrected/spherical_mnist/UGSCNN/N/seed0"
    target.mkdir(parents=True)
    (target / "config.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(RunError, match="holds another run"):
        migrate(tmp_path)


def test_files_of_two_runs_are_not_mixed(tmp_path):
    folder = put(tmp_path / "runs", old_config("paper", "UGSCNN", False))
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"config_hash": "another"}))
    with pytest.raises(RunError, match=r"metrics\.json is not of the configuration"):
        migrate(tmp_path)
    assert (folder / "metrics.json").exists()


def test_recorded_runs_differ_from_the_old_ones_in_names_alone():
    """The hash of the old configuration, made again from the new one."""
    renamed = 0
    for path in RECORDED:
        facts = json.loads(path.read_text())
        run = RunConfig.model_validate(facts["config"])
        for former in facts.get("renamed", []):
            assert old_hash(run, former["run"]) == former["config_sha256"], path
            renamed += 1
    assert renamed > 100
