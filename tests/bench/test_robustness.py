"""The robustness table holds what certificates and runs say, and only runs that are there."""

import shutil

import pandas as pd
import pytest
import torch

from bench.__main__ import main
from bench.certificate import certificate
from bench.config import parse_protocol, planned_runs
from bench.engine import train
from bench.errors import RunError
from bench.robustness import certificates, over_seeds
from tests.conftest import tiny_protocol

MODELS = ["UGSCNN", "PDO-eS2CNN-small"]


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_data):
    folder = tmp_path_factory.mktemp("results")
    for run in planned_runs(protocol()):
        train(run, folder, tiny_data, torch.device("cpu"), track=False)
    return folder


def protocol():
    tree = tiny_protocol()
    tree["tasks"]["spherical_mnist"] |= {"models": MODELS, "settings": ["N"]}
    tree["tasks"]["spherical_mnist"]["train"]["epochs"] = 1
    return parse_protocol(tree)


def test_rows_are_the_certificates_of_the_trained_networks(results, tmp_path):
    found, source = certificates(protocol(), results, tmp_path, digits=10, rotations=2)
    assert source == "synthetic digits"
    found = found.set_index("model")
    assert list(found.index) == MODELS and set(found["seed"]) == {0}
    for name in MODELS:
        run = results / "runs/tiny/spherical_mnist" / name / "N/seed0"
        alone = certificate(
            name,
            rotations=2,
            signals=10,
            weights=run / "weights.safetensors",
            data=tmp_path,
        )
        invariants = alone["inputs"]["digits"]["invariants"]
        assert found.loc[name, "digits: mean error"] == invariants["mean"]
        assert found.loc[name, "digits: max error"] == invariants["max"]
        assert found.loc[name, "parameters"] == alone["parameters"]
        metrics = pd.read_json(run / "metrics.json", typ="series")
        assert found.loc[name, "N/R"] == pytest.approx(metrics["test"]["N/R"]["accuracy_percent"])
    errors = found["digits: mean error"]
    assert errors["PDO-eS2CNN-small"] < 0.5 * errors["UGSCNN"]


def test_command_writes_table_and_figure(results, tmp_path, monkeypatch, capsys):
    plain = protocol().model_dump_json()
    options = ["--protocol", plain, "--results", str(results), "--out", str(tmp_path / "out")]
    small = ["--digits", "5", "--rotations", "1", "--data", str(tmp_path)]
    assert main(["robustness", *options, *small]) == 0
    text = (tmp_path / "out/robustness.md").read_text()
    assert all(name in text for name in MODELS) and "1 random rotations" in text
    assert "5 test digits (synthetic digits)" in text and "--digits 5 --rotations 1`" in text
    assert len(pd.read_csv(tmp_path / "out/robustness.csv")) == 2
    assert (tmp_path / "out/robustness.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_finished_is_one_line(tmp_path):
    with pytest.raises(RunError, match="no finished run of spherical_mnist in protocol tiny: run"):
        certificates(protocol(), tmp_path, tmp_path, 5, 1)


def test_a_row_for_each_seed_whose_weights_are_there(results, tiny_data, tmp_path):
    """And of several their mean and sample standard deviation; none at all is one line."""
    two = protocol().model_copy(update={"seeds": 2})
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    run = next(r for r in planned_runs(two) if r.key.endswith("UGSCNN/N/seed1"))
    train(run, copy, tiny_data, torch.device("cpu"), track=False)
    found, _ = certificates(two, copy, tmp_path, 5, 1)
    seeds = {(row.model, row.seed) for row in found.itertuples()}
    assert seeds == {("UGSCNN", 0), ("UGSCNN", 1), ("PDO-eS2CNN-small", 0)}
    first, second = found[found["model"] == "UGSCNN"]["digits: mean error"]
    assert first != second
    table = over_seeds(found).set_index("model")
    mean, std = (first + second) / 2, abs(first - second) / 2**0.5
    assert table.loc["UGSCNN", "digits: mean error"] == f"{mean:.3g} ± {std:.1g}"
    assert "±" not in table.loc["PDO-eS2CNN-small", "digits: mean error"]
    assert list(table["seeds"]) == [2, 1]

    weights = [
        copy / f"runs/tiny/spherical_mnist/UGSCNN/N/seed{k}/weights.safetensors" for k in (0, 1)
    ]
    weights[0].unlink()
    found, _ = certificates(two, copy, tmp_path, 5, 1)
    assert list(found["seed"]) == [1, 0] and found["digits: mean error"][0] == second
    weights[1].unlink()
    with pytest.raises(RunError, match=r"UGSCNN/N/seed0/weights\.safetensors is missing: train it"):
        certificates(two, copy, tmp_path, 5, 1)
