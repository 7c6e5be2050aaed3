"""Recorded runs evaluated and trained again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.config import planned_runs
from bench.errors import RunError
from bench.record import recorded_folder
from bench.reproduce import _against, _compared, evaluate_recorded, reproduce
from bench.tasks import SphericalMNIST
from tests.bench.test_audit import protocol, results, trained  # noqa: F401 (fixtures)


@pytest.fixture
def key() -> str:
    return planned_runs(protocol())[0].key


def change_predictions(folder: Path, share: float) -> None:
    """Let a recorded run have other predictions, with the scores that they give."""
    with np.load(folder / "predictions.npz") as file:
        arrays = {name: file[name] for name in file.files}
    metrics = json.loads((folder / "metrics.json").read_text())
    for column, scores in metrics["test"].items():
        name = column.replace("/", "_")
        predictions, targets = arrays[f"{name}_predictions"], arrays[f"{name}_targets"]
        n = round(share * len(targets))
        wrong = targets if share == 1 else predictions
        predictions[:n] = (wrong[:n] + 1) % 10
        scores |= SphericalMNIST.score(predictions, targets)
    np.savez(folder / "predictions.npz", **arrays)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_recorded_weights_give_the_recorded_predictions(results, tiny_data, key, capsys):  # noqa: F811
    text, same = evaluate_recorded(key, results, tiny_data)
    assert same and text.count("the 40 recorded predictions") == 2
    options = ["--results", str(results), "--data", str(tiny_data)]
    assert main(["audit", "--evaluate", key, *options]) == 0
    change_predictions(recorded_folder(results, key), 0.5)
    text, same = evaluate_recorded(key, results, tiny_data)
    assert not same and "20 of 40 predictions differ" in text
    assert main(["audit", "--evaluate", key, *options]) == 1
    assert "20 of 40 predictions differ" in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_one_line(results, tiny_data, tmp_path, key):  # noqa: F811
    with pytest.raises(RunError, match="is no recorded run: name PROTOCOL/TASK"):
        evaluate_recorded("tiny/nothing", results, tiny_data)
    with pytest.raises(RunError, match=r"no prepared data in .* prepare them with"):
        evaluate_recorded(key, results, tmp_path / "nowhere")
    other = key.replace("seed0", "seed1")
    shutil.rmtree(recorded_folder(results, other))
    shutil.copytree(recorded_folder(results, key), recorded_folder(results, other))
    with pytest.raises(RunError, match=f"seed1 holds {key}"):
        evaluate_recorded(other, results, tiny_data)
    (recorded_folder(results, key) / "weights.safetensors").unlink()
    with pytest.raises(RunError, match=f"has no weights: `python -m bench reproduce {key}`"):
        evaluate_recorded(key, results, tiny_data)


def test_a_run_is_named_by_its_folder_too(results, tiny_data, key):  # noqa: F811
    text, same = evaluate_recorded(str(recorded_folder(results, key)), results, tiny_data)
    assert same and text.startswith(f"{key} N/N: the 40 recorded predictions; accuracy_percent")


def test_other_data_of_that_name_are_said(results, tiny_data, key):  # noqa: F811
    path = recorded_folder(results, key) / "provenance.json"
    facts = json.loads(path.read_text())
    facts["data"]["card"]["sha256"]["test_R.npy"] = "another"
    path.write_text(json.dumps(facts))
    first = evaluate_recorded(key, results, tiny_data)[0].splitlines()[0]
    assert first == "the data here are not those of the run: test_R.npy differ"


@pytest.mark.parametrize(("wrong", "same"), [(1, True), (4, True), (5, False)])
def test_few_classes_may_differ(wrong, same):
    """Of 4,000, one in a thousand."""
    there = np.zeros(4000, np.uint8)
    found = there.copy()
    found[:wrong] = 1
    assert _compared(found, there) == (same, f"{wrong} of 4,000 predictions differ")


@pytest.mark.parametrize(("off", "same"), [(0.009, True), (0.011, False)])
def test_energies_may_differ_in_the_last_digits(off, same):
    there = np.array([-1500.0, -1200.0])
    assert _compared(there + np.array([0, off]), there) == (
        same,
        f"predictions differ by {off:.3g} kcal/mol at most",
    )


def test_results_are_not_overwritten(results, tiny_data, key):  # noqa: F811
    with pytest.raises(RunError, match="holds the results themselves"):
        reproduce(key, results, tiny_data, results / ".")


def test_a_run_trained_again_is_the_same_bit_for_bit(results, tiny_data, tmp_path, key, capsys):  # noqa: F811
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    options = ["--results", str(results), "--data", str(tiny_data), "--out", str(tmp_path / "new")]
    assert main(["reproduce", key, *options]) == 0
    out = capsys.readouterr().out
    assert f"{key}: the same bit for bit" in out and "git_commit: aaaa" in out
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_another_result_is_said(results, tiny_data, tmp_path, key):  # noqa: F811
    change_predictions(recorded_folder(results, key), 1)
    text, same = reproduce(key, results, tiny_data, tmp_path / "new")
    assert not same and "2 recorded seeds give no interval" in text
    change_predictions(recorded_folder(results, key.replace("seed0", "seed1")), 1)
    metrics = recorded_folder(results, key.replace("seed0", "seed1")) / "metrics.json"
    metrics.write_text(metrics.read_text().replace("0.0", "99.99"))
    with pytest.raises(RunError, match=r"is 99\.99, its predictions give 0\.0"):
        reproduce(key, results, tiny_data, tmp_path / "new")


@pytest.mark.parametrize(
    ("value", "inside"), [(98.5, True), (96.02, True), (95.98, False), (101.02, False)]
)
def test_the_prediction_interval(value, inside):
    """Seeds 98, 98.5, 99: mean 98.5, s = 0.5, t = 4.3027: 98.5 ± 4.3027 0.5 sqrt(4/3) = ± 2.484."""
    text, within = _against(value, 98.0, [98.0, 98.5, 99.0])
    assert within == inside and "interval 96.02 to 100.98" in text
    assert ("inside" in text) == inside


@pytest.mark.parametrize(("value", "same"), [(98.004, True), (97.99, False)])
def test_two_seeds_give_no_interval(value, same):
    text, within = _against(value, 98.0, [98.0, 97.0])
    assert within == same and f"({value - 98:+.2g}); 2 recorded seeds give no interval" in text
