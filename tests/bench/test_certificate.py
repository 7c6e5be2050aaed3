"""Certificates of registered networks, trained and untrained, and the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.__main__ import main
from bench.certificate import as_text, certificate, warm_up
from bench.registry import MODELS, models_of
from bench.rotated_signals import band_limited_signals, digit_signals, in_batches
from data_prep.grids import grid_points
from data_prep.synthetic_digits import synthetic_digits
from pdo.activation import FieldNormReLU
from pdo.mesh import Icosphere

POINTS = Icosphere(3).vertices


def signals(n, size):
    """Band-limited, in batches of a size, as they are."""
    make = in_batches(band_limited_signals(n, POINTS, np.random.default_rng(3)), size)
    return make(np.eye(3))


def test_warm_up_gives_the_statistics_of_the_signals():
    """Means over two batches; those of before are forgotten."""
    norm, field_norm = nn.BatchNorm1d(len(POINTS)), FieldNormReLU(1, orders=0, samples=1)

    class Fibres(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = field_norm

        def forward(self, x):
            return self.norm(x.permute(2, 1, 0)[:, None].contiguous())

    batches = [10 + batch for batch in signals(32, 16)]
    before = torch.get_rng_state()
    warm_up(nn.Sequential(nn.Flatten(), norm), batches)
    warm_up(Fibres(), batches)
    assert torch.equal(before, torch.get_rng_state())
    every = torch.cat(batches)[:, 0]
    torch.testing.assert_close(norm.running_mean, every.mean(dim=0))
    torch.testing.assert_close(field_norm.mean, every.mean()[None])


def certified(capsys, *arguments):
    status = main(["equivariance", *arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_every_network_of_molecules_and_rooms_is_certified():
    found = {
        name: certificate(name, task, level, rotations=1, signals=signals, data=Path("nowhere"))
        for task, level, signals in (("qm7", 1, 7), ("synthetic_rooms", 3, 2))
        for name in models_of(task)
        if (task, name) not in (("qm7", "PDO-eS2CNN"), ("qm7", "MLP-random-CM"))
    }
    for name, one in found.items():
        kinds = ["molecules"] if one["task"] == "qm7" else ["rooms", "band-limited"]
        assert list(one["inputs"]) == kinds, name
        for result in one["inputs"].values():
            assert 0 <= result["output"]["mean"] <= result["output"]["max"] < 10, name
            assert (result["agreement"] is None) == (one["task"] == "qm7")
            assert result["invariants_are"] == (
                "features" if name in ("S2CNN", "FFS2CNN") else "output"
            )
    for kind in ("rooms", "band-limited"):
        ours, others = (
            found[name]["inputs"][kind]["output"]["mean"] for name in ("PDO-eS2CNN", "UNet")
        )
        assert ours < others / 2


SMALL = ("--level", "3", "--rotations", "2", "--signals", "10", "--data", "nowhere")


def test_command_line(capsys):
    found = json.loads(certified(capsys, "PDO-eS2CNN-small", *SMALL, "--json"))
    assert (found["model"], found["level"]) == ("PDO-eS2CNN-small", 3)
    assert found["grid"] == "icosphere3-equator"
    assert (found["signals"], found["rotations"], found["seed"]) == (10, 2, 0)
    assert found["source"] == "synthetic digits" and found["weights"] is found["unit"] is None
    assert "error_ik = |y_ik - y_i| / spread" in found["definitions"]
    for kind in ("digits", "band-limited"):
        result = found["inputs"][kind]
        assert [f["vertices"] for f in result["fields"][:2]] == [642, 162]
        assert 0 <= result["agreement"] <= 1
        for errors in (result["invariants"], result["output"], *result["fields"]):
            assert 0 < errors["mean"] <= errors["max"]
            assert errors["mean"] / errors["mean_of_norm"] == pytest.approx(
                errors["norm"] / errors["spread"]
            )
    again = certified(capsys, "PDO-eS2CNN-small", *SMALL)
    assert again == as_text(found) + "\n"  # seeded: the same numbers


def test_table(capsys):
    out = certified(capsys, "UGSCNN", *SMALL)
    assert "UGSCNN (spherical_mnist) at level 3 (icosphere3-equator), untrained\n" in out
    assert "10 signals x 2 rotations" in out
    assert "synthetic digits" in out and out.count("invariants") == 2
    assert all(len(line) <= 120 for line in out.splitlines())


def test_weights_of_a_run(tmp_path):
    """The numbers are those of the loaded network, with level and options from beside the file."""
    build = MODELS["spherical_mnist", "PDO-eS2CNN-small"].build
    torch.manual_seed(5)
    model = build(level=3, orders=1)
    warm_up(model, signals(8, 8))
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    (tmp_path / "config.yaml").write_text(
        "{model: PDO-eS2CNN-small, options: {orders: 1}, data: {level: 3}}"
    )
    keys = {"rotations": 1, "signals": 4, "data": Path("nowhere")}
    found = certificate("PDO-eS2CNN-small", weights=path, **keys)
    assert found["level"] == 3 and found["weights"] == str(path)
    turned = certificate("PDO-eS2CNN-small", weights=path, seed=1, **keys)
    images = synthetic_digits(1, 4, 0).test_images
    with torch.no_grad():
        points = grid_points(found["grid"])
        x = torch.tensor(digit_signals(images, points)(np.eye(3))).float()
        norm = float(model.eval()(x).square().sum(1).mean().sqrt())
    assert found["inputs"]["digits"]["output"]["norm"] == pytest.approx(norm, rel=1e-5)
    assert turned["inputs"] != found["inputs"]


@pytest.mark.parametrize("far", [False, True])
def test_rooms_lack_depth_as_those_of_the_run(tmp_path, far):
    path = tmp_path / "weights.safetensors"
    save_file(MODELS["stanford_2d3ds", "HexRUNet"].build(level=3).state_dict(), path)
    (tmp_path / "config.yaml").write_text(
        "{model: HexRUNet, task: stanford_2d3ds, "
        f"data: {{level: 3, missing_as_clutter: true, missing_depth_far: {str(far).lower()}}}}}"
    )
    found = certificate("HexRUNet", weights=path, rotations=1, signals=2)
    assert found["source"] == "SyntheticRooms" + ", missing depth far away" * far


def test_molecules_on_the_command_line(capsys):
    """A name of several tasks is that of the first."""
    out = certified(capsys, "PDO-eS2CNN", "--signals", "7", "--rotations", "1")
    assert "PDO-eS2CNN (qm7) at level 2 (icosphere2), untrained\n7 signals x 1 rotations" in out
    assert re.search(r"molecules: an error of 1 in the output is [0-9.]+ kcal/mol, the spread", out)
    assert "synthetic molecules" in out or "QM7" in out
    assert out.count("molecules") >= 2 and "agree" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["UGSCNN", "--task", "qm8"], "unknown task 'qm8': did you mean 'qm7'?"),
        (["UGSCNN", "--task", "qm7"], "unknown model of task qm7 'UGSCNN'"),
        (["MLP-random-CM"], "MLP-random-CM cannot take these synthetic molecules: 3468 feat"),
        (["PDO-eS2CNN-smal"], "unknown model 'PDO-eS2CNN-smal': did you mean 'PDO-eS2CNN-small'?"),
        (["UGSCNN", "--level", "1"], "UGSCNN at level 1: UGSCNN coarsens its mesh twice"),
        (["UGSCNN", "--level", "9"], "--level must be in 0..7, not 9"),
        (["UGSCNN", "--level", "-1"], "--level must be in 0..7, not -1"),
        (["UGSCNN", "--seed", "-1"], "--seed must be at least 0, not -1"),
        (["UGSCNN", "--weights", "."], ". is a folder: name the weights.safetensors in it"),
        (["UGSCNN", "--signals", "1"], "--signals must be at least 2"),
        (["MLP-random-CM", "--signals", "6"], "--signals must be at least 7 (errors are relative)"),
        (["UGSCNN", "--rotations", "0"], "--rotations must be at least 1"),
        (["UGSCNN", "--weights", "none.safetensors"], "none.safetensors is missing"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    assert main(["equivariance", *arguments, "--data", "nowhere"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]


def test_wrong_weights_are_one_line(capsys, tmp_path):
    path = tmp_path / "weights.safetensors"
    command = ["equivariance", "UGSCNN", "--level", "3", "--signals", "2", "--data", "nowhere"]
    command += ["--task", "spherical_mnist"]

    def configured(more):
        return lambda: (tmp_path / "config.yaml").write_text(f"{{model: UGSCNN, {more}}}")

    for write, message in (
        (lambda: path.write_bytes(b"{}"), "not a readable safetensors file"),
        (lambda: save_file({"a": torch.ones(1)}, path), "do not fit the network"),
        (
            lambda: (tmp_path / "config.yaml").write_text("model: PDO-eS2CNN-small"),
            "weights of PDO-eS2CNN-small, not of UGSCNN",
        ),
        (configured("task: qm7"), "are weights of task qm7, not of spherical_mnist"),
        (configured("task: spherical_mnist, setting: Omni"), "read Omni-MNIST"),
        (configured("data: {source: mnist}"), "nowhere/raw/mnist is missing: fetch it with"),
    ):
        write()
        assert main([*command, "--weights", str(path)]) == 1
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and message in error[0]
