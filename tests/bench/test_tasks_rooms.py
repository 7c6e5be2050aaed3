"""Segmentation as the engine and the tables see it, on SyntheticRooms."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from bench.__main__ import main
from bench.config import parse_protocol, planned_runs
from bench.engine import train
from bench.errors import RunError
from bench.frames import wide
from bench.registry import AREA_FOLDS, MODELS, ModelEntry
from bench.rooms import class_table, confusions
from bench.tables import build_table
from bench.tasks_rooms import IGNORED, Rooms
from bench.typesetting import write_tables
from data_prep.room_signals import prepare
from data_prep.stanford import FOLDS, LABELS, RGBD_MEAN, RGBD_STD
from data_prep.synthetic_rooms import generate

N = 28


class Pointwise(nn.Module):
    """Looks at every point alone."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(4, 15, 1)

    def forward(self, x):
        return self.mix(x)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for key in [key for key in MODELS if key[0] in ("synthetic_rooms", "stanford_2d3ds")]:
        monkeypatch.delitem(MODELS, key)
    for task in ("synthetic_rooms", "stanford_2d3ds"):
        monkeypatch.setitem(MODELS, (task, "UNet"), ModelEntry(Pointwise))


def protocol(**data):
    data = {"level": 3, "n_panoramas": N, "height": 32} | data
    task = {"data": data, "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2}}
    tree = {"protocol": "tiny", "seeds": 1, "tracking": False, "tasks": {"synthetic_rooms": task}}
    return parse_protocol(tree)


def run_of(setting="fold1", **data):
    return next(r for r in planned_runs(protocol(**data)) if r.setting == setting)


def smoothed(run, smoothing):
    train = run.train.model_copy(update={"label_smoothing": smoothing})
    return run.model_copy(update={"train": train})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    generate(root / "raw", N, 32)
    prepare(root / "raw", "icosphere3", root / f"synthetic_rooms/{N}-32-seed0/icosphere3")
    return root


def areas_of(data, chosen):
    with (data / f"synthetic_rooms/{N}-32-seed0/icosphere3/panoramas.csv").open() as file:
        areas = [row["area"] for row in csv.DictReader(file)]
    return {areas[k] for k in chosen}


def test_folds_go_by_area(data):
    tests = []
    for fold in AREA_FOLDS:
        task = Rooms(run_of(fold), data)
        assert task.tests == ("3-fold", "3-fold rotated")
        train_set, held_out, test = (task.sets[n][2] for n in ("train", "validation", "3-fold"))
        assert areas_of(data, test) == set(FOLDS[fold])
        assert not areas_of(data, np.concatenate([train_set, held_out])) & set(FOLDS[fold])
        np.testing.assert_array_equal(test, task.sets["3-fold rotated"][2])
        everything = np.sort(np.concatenate([train_set, held_out, test]))
        np.testing.assert_array_equal(everything, np.arange(N))
        tests.append(test)
    np.testing.assert_array_equal(np.sort(np.concatenate(tests)), np.arange(N))


def test_samples_are_normalised_and_the_turned_ones_are_others(data):
    task = Rooms(run_of(), data)
    x, labels = task.batch("3-fold", np.array([0, 2]))
    raw = np.load(data / f"synthetic_rooms/{N}-32-seed0/icosphere3/rgbd.npy")
    chosen = raw[task.sets["3-fold"][2][[0, 2]]].astype(np.float32)
    back = x.numpy() * np.array(RGBD_STD)[:, None] + np.array(RGBD_MEAN)[:, None]
    np.testing.assert_allclose(back, chosen, atol=1e-5)
    assert labels.shape == (2, 642) and labels.dtype == torch.int64
    turned, moved = task.batch("3-fold rotated", np.array([0, 2]))
    assert (turned - x).abs().max() > 0.5 and (labels != moved).float().mean() > 0.2


def test_weights_are_those_of_the_training_panoramas(data):
    task = Rooms(run_of("fold2"), data)
    _, labels, chosen = task.sets["train"]
    share = np.array([(labels[chosen] == k).mean() for k in range(15)])
    want = 1 / np.log(1.02 + share)
    want[list(IGNORED)] = 0
    np.testing.assert_allclose(task.weights, want, rtol=1e-5)
    assert IGNORED == (0, 14) and share[14] > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unlabelled_points_count_in_no_loss_and_are_never_predicted(data, smoothing):
    task = Rooms(smoothed(run_of(), smoothing), data)
    torch.manual_seed(0)
    output, target = torch.randn(2, 15, 642), torch.randint(1, 14, (2, 642))
    target[:, ::2] = 14
    target[0, 1] = 0
    before = task.loss(output, target)
    changed = output.clone()
    changed[:, :, ::2] = torch.randn(2, 15, 321)
    changed[0, :, 1] = 7.0
    torch.testing.assert_close(task.loss(changed, target), before)
    output[:, 0] = output[:, 14] = 100
    assert set(task.predict(output).unique().tolist()) <= set(range(1, 14))


def test_label_smoothing_shares_out_a_part_among_the_classes(data):
    """The loss of one point: (1 - s) of its class and s / 15 of each, weighted, by its weight."""
    s, label = 0.3, 5
    task = Rooms(smoothed(run_of(), s), data)
    logits = torch.linspace(-1, 2, 15)
    losses = -task.weights * logits.log_softmax(0)
    expected = ((1 - s) * losses[label] + s / 15 * losses.sum()) / task.weights[label]
    found = task.loss(logits[None, :, None], torch.tensor([[label]]))
    torch.testing.assert_close(found, expected)


def test_from_runs_to_table(data, tmp_path):
    plan = protocol()
    for run in planned_runs(plan):
        metrics = train(run, tmp_path, data, torch.device("cpu"), track=False)
        assert set(metrics["test"]) == {"3-fold", "3-fold rotated"}
        with np.load(tmp_path / "runs" / run.key / "predictions.npz") as file:
            assert file["3-fold_predictions"].dtype == np.uint8
            assert file["3-fold_predictions"].shape == file["3-fold rotated_targets"].shape
    table = build_table(plan, "synthetic_rooms", tmp_path)
    assert len(table) == 4 and (table.n_seeds == 3).all()
    shown = wide(table)
    assert list(shown.columns) == [
        "model",
        "parameters (reported)",
        "parameters (reproduced)",
        "3-fold mIoU reproduced",
        "3-fold mAcc reproduced",
        "3-fold rotated mIoU reproduced",
        "3-fold rotated mAcc reproduced",
    ]
    # Every point alone, the same class however the room is turned.
    upright, turned = table.set_index(["metric", "setting"]).reproduced_mean["mean_iou_percent"]
    assert abs(upright - turned) < 3
    paths = write_tables(plan, tmp_path)
    assert [p.name for p in paths] == [f"table2s.{s}" for s in ("csv", "md", "tex", "html")]
    assert "masked_mean_iou_percent" in paths[1].read_text()


def test_classes_confusions_and_pictures(data, tmp_path):
    plan = protocol()
    for run in planned_runs(plan)[:2]:
        train(run, tmp_path, data, torch.device("cpu"), track=False)
    found = confusions(plan, "synthetic_rooms", tmp_path)
    assert set(found) == {("UNet", "3-fold"), ("UNet", "3-fold rotated")}
    points = sum(Rooms(run, data).size("3-fold") for run in planned_runs(plan)[:2]) * 642
    assert all(matrix.sum() == points for matrix in found.values())
    table = class_table(found)
    assert list(table.columns[2:]) == [LABELS[k] for k in range(1, 14)]
    given = ["--protocol", plan.model_dump_json(), "--results", str(tmp_path)]
    out = tmp_path / "out"
    assert main(["rooms", *given, "--data", str(data), "--out", str(out)]) == 0
    kinds = sorted(path.name for path in out.iterdir())
    assert kinds == [
        f"synthetic_rooms_{name}"
        for name in ("classes.csv", "classes.md", "confusion.png", "panoramas.png")
    ]
    assert main(["rooms", *given, "--task", "stanford_2d3ds", "--out", str(out)]) == 1


def test_claims_of_2d3ds_stand_beside_its_table_alone(tmp_path):
    tasks = {"stanford_2d3ds": {}, "synthetic_rooms": {}}
    plan = parse_protocol({"protocol": "tiny", "seeds": 1, "tasks": tasks})
    table = build_table(plan, "stanford_2d3ds", tmp_path, "data not available")
    claims = table.set_index(["setting", "metric"]).reported_mean
    assert claims["3-fold", "mean_iou_percent"] == 35.9
    assert claims["3-fold", "mean_accuracy_percent"] == 50.8
    assert np.isnan(claims["3-fold rotated", "mean_iou_percent"])
    assert build_table(plan, "synthetic_rooms", tmp_path).reported_mean.isna().all()


def test_no_data_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"no prepared data in .*snakemake --cores 2 data/"):
        Rooms(run_of(), tmp_path)
