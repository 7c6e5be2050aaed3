"""The plan of a protocol, against files that exist and numbers worked out by hand."""

import json
from pathlib import Path

import pytest
import yaml

from bench.config import load_protocol, parse_protocol, planned_runs
from bench.plan import as_text, plan
from data_prep.files import write_json
from data_prep.room_signals import prepare
from data_prep.stanford import FOLDS, panoramas
from data_prep.synthetic_rooms import generate
from tests.conftest import N_TEST, N_TRAIN, tiny_protocol
from tests.workflow.conftest import ROOT


@pytest.fixture
def recorded(tmp_path):
    """One finished run of UGSCNN: 40 samples, 2 threads, 3 epochs of 4, 5 and 60 s."""
    folder = tmp_path / "tiny/runs/spherical_mnist/UGSCNN/N/seed0"
    folder.mkdir(parents=True)
    run = next(r for r in planned_runs(parse_protocol(tiny_protocol())) if r.model == "UGSCNN")
    (folder / "config.yaml").write_text(yaml.safe_dump(run.model_dump()))
    (folder / "history.csv").write_text("epoch,seconds\n1,4\n2,5\n3,60\n")
    facts = {"gpu": None, "cpu": "Abacus", "cores": 9, "threads": 2}
    write_json(folder / "provenance.json", facts | {"data": {"counts": {"train": 40}}})
    write_json(folder / "metrics.json", {"parameters": 1_000_000})
    (folder / "predictions.npz").write_bytes(b"x" * 10_000_000)
    return tmp_path


def row(found, model):
    return next(r for r in found["models"] if r["model"] == model)


def test_hours_are_the_median_measured_second_times_samples_epochs_threads_and_runs(recorded):
    found = row(plan(parse_protocol(tiny_protocol(seeds=3)), recorded), "UGSCNN")
    assert found["runs"] == 6  # N and R, three seeds
    samples = N_TRAIN * 0.9 * 2  # a tenth for validation, two epochs
    assert found["cpu_hours"] == pytest.approx(6 * samples * (5 / 40) * 2 / 3600)
    assert "Abacus" in found["cpu_measured"] and found["gpu_hours"] is None
    # a network's files: 4 bytes a parameter, and predictions as they are before compression
    predictions = 2 * N_TEST * (2 * 3 + 1 * 3)  # N is tested twice
    assert found["files_mb"] == pytest.approx(6 * 4 + predictions / 1e6, rel=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_resumed_with_other_threads_measures_nothing(recorded, threads):
    """Its epochs do not say which of them took how many."""
    (path,) = recorded.rglob("provenance.json")
    facts = json.loads(path.read_text())
    stretch = {"gpu": None, "cpu": "Abacus", "threads": threads}
    write_json(path, facts | {"resumed_from": [stretch]})
    hours = row(plan(parse_protocol(tiny_protocol()), recorded), "UGSCNN")["cpu_hours"]
    assert (hours is None) == (threads == 1)


def test_what_was_not_measured_is_said(recorded):
    tree = tiny_protocol()
    tree["tasks"]["spherical_mnist"]["data"]["level"] = 4
    found = plan(parse_protocol(tree), recorded)
    for model in ("UGSCNN", "S2CNN"):  # measured at another level; never
        assert row(found, model)["cpu_hours"] is None
    text = as_text(found)
    assert "CPU hours: not measured" in text and "GPU hours: not measured" in text


def test_steps_of_the_speed_benchmark_stand_in_for_histories(tmp_path):
    speed = {
        "networks": [{"network": "S2CNN", "ms a digit": 2.0}],
        "level": 3,
        "threads": 2,
        "gpu": None,
        "cpu": "Abacus",
        "cores": 9,
    }
    write_json(tmp_path / "speed/speed.json", speed)
    found = row(plan(parse_protocol(tiny_protocol()), tmp_path), "S2CNN")
    assert found["cpu_hours"] == pytest.approx(2 * N_TRAIN * 0.9 * 2 * 0.002 * 2 / 3600)
    assert found["cpu_measured"].startswith("steps alone")


def test_arrays_are_as_large_as_those_on_disk(tiny_data, tmp_path):
    found = plan(parse_protocol(tiny_protocol()), tmp_path)["data_mb"]
    assert {Path(folder).name for folder in found} == {"icosphere3-equator", "latlon15"}
    for folder, megabytes in found.items():
        files = (tiny_data / folder).glob("t*_[NRO]*.npy")
        assert megabytes == pytest.approx(sum(p.stat().st_size for p in files) / 1e6, rel=0.01)


def test_qm7_arrays_are_those_of_the_architecture_page(tmp_path):
    found = plan(load_protocol(ROOT / "config/paper.yaml"), tmp_path)
    arrays = {f: mb for f, mb in found["data_mb"].items() if f.startswith("qm7/")}
    assert arrays["qm7/qm7-power1-half-index/icosphere2"] == pytest.approx(179, abs=0.5)


def test_arrays_of_rooms_are_as_large_as_those_on_disk(tmp_path):
    data = {"level": 3, "n_panoramas": 14, "height": 32}
    task = {"data": data, "models": ["UGSCNN"], "settings": ["fold1"]}
    tree = {"protocol": "tiny", "seeds": 1, "tasks": {"synthetic_rooms": task}}
    found = plan(parse_protocol(tree), tmp_path)
    generate(tmp_path / "raw", 14, 32)
    prepare(tmp_path / "raw", "icosphere3", tmp_path / "out")
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.npy"))
    arrays = found["data_mb"]["synthetic_rooms/14-32-seed0/icosphere3"]
    assert arrays == pytest.approx(size / 1e6, rel=0.01)
    areas = [p.area for p in panoramas(tmp_path / "raw")]
    training = sum(area not in FOLDS["fold1"] for area in areas)
    assert row(found, "UGSCNN")["training_samples"] == training * 9 // 10


def test_the_recorded_measurements_can_be_read():
    """Of this repository itself: the paper's plan has hours for the runs recorded under it."""
    found = plan(load_protocol(ROOT / "config/paper.yaml"), ROOT / "results/recorded")
    assert found["runs"] == len(planned_runs(load_protocol(ROOT / "config/paper.yaml")))
    ours = row(found, "PDO-eS2CNN-small")
    assert " epochs, " in ours["cpu_measured"] and 1 < ours["cpu_hours"] < 100
    assert json.loads(json.dumps(found, allow_nan=False)) == found
