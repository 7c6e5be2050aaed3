"""What every registered model must do; a new entry of the registry is picked up by itself."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from bench.config import TrainConfig, validated
from bench.registry import MODELS, TASKS
from bench.tables import read_claims
from data_prep.grids import grid_points

CARDS = Path(__file__).parents[2] / "baselines" / "cards"
LEVEL = 3
CLASSES = 10


def all_models(test):
    return pytest.mark.parametrize(
        ("task", "name"), list(MODELS), ids=["-".join(key) for key in MODELS]
    )(test)


def build(task, name, level=LEVEL):
    torch.manual_seed(0)
    return MODELS[task, name].build(level=level)


def signals(task, name, batch=4):
    points = grid_points(MODELS[task, name].grid_name(LEVEL))
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, len(points), generator=generator)


@all_models
def test_logits_of_the_right_shape(task, name):
    out = build(task, name).eval()(signals(task, name))
    assert out.shape == (4, CLASSES) and out.dtype == torch.float32
    assert torch.isfinite(out).all()


@all_models
def test_every_parameter_gets_a_gradient(task, name):
    model = build(task, name).train()
    torch.nn.functional.cross_entropy(model(signals(task, name)), torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@all_models
def test_evaluation_is_deterministic_and_samples_are_independent(task, name):
    model, x = build(task, name).eval(), signals(task, name)
    with torch.no_grad():
        out = model(x)
        torch.testing.assert_close(model(x), out, rtol=0, atol=0)
        torch.testing.assert_close(model(x[2:3]), out[2:3], rtol=1e-3, atol=1e-4)


@all_models
def test_same_seed_same_network(task, name):
    a, b = build(task, name).state_dict(), build(task, name).state_dict()
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


@all_models
def test_state_dict_round_trip(task, name, tmp_path):
    model, x = build(task, name), signals(task, name)
    model.train()(x)  # move running statistics
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    twin = MODELS[task, name].build(level=LEVEL)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=0, atol=0)


@all_models
def test_double_precision_agrees(task, name):
    model, x = build(task, name).eval(), signals(task, name)
    with torch.no_grad():
        single, double = model(x), model.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@all_models
def test_mixed_precision_trains(task, name):
    """Whatever layers autocast turns to bfloat16, the others take it and gradients come through."""
    model, x = build(task, name).train(), signals(task, name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(x), torch.arange(4))
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@all_models
def test_the_input_matters(task, name):
    model, x = build(task, name).eval(), signals(task, name)
    with torch.no_grad():
        assert (model(x) - model(-x)).abs().max() > 1e-4


@all_models
def test_parameters_are_those_of_its_card_and_near_the_claim(task, name):
    card = yaml.safe_load((CARDS / f"{name}.yaml").read_text())
    counted = sum(p.numel() for p in build(task, name, level=4).parameters())
    assert counted == card["parameters"]["counted"]
    claims = read_claims()
    claimed = claims[(claims.task == task) & (claims.model == name)].params.iloc[0]
    assert card["parameters"]["claimed"] == claimed
    assert 0.8 * claimed <= counted <= 1.02 * claimed


@all_models
def test_card_says_what_is_claimed_and_by_whom(task, name):
    card = yaml.safe_load((CARDS / f"{name}.yaml").read_text())
    assert card["name"] == name
    assert {"paper", "code", "claims", "input", "recipe", "deviations", "open_points"} <= set(card)
    assert {"title", "authors", "venue", "year", "arxiv"} <= set(card["paper"])
    claims = read_claims().set_index(["task", "model", "metric", "setting"])["mean"].sort_index()
    for claim in card["claims"]:
        assert claims[task, name, claim["metric"], claim["setting"]] == claim["value"]
        assert claim["by"]
    listed = claims[task, name]
    assert len(card["claims"]) == len(listed)


@all_models
def test_recipe_is_valid(task, name):
    validated(TrainConfig, MODELS[task, name].recipe)
    assert task in TASKS


def test_every_claim_of_a_registered_model_is_a_column_of_its_table():
    claims = read_claims()
    for (task, name), _ in MODELS.items():
        mine = claims[(claims.task == task) & (claims.model == name)]
        assert isinstance(mine, pd.DataFrame) and len(mine)
        assert set(mine.setting) <= set(TASKS[task].columns)
        assert set(mine.metric) == {TASKS[task].metric}
