"""Oracles: published parameter counts, a dense plain forward pass, a symmetry of the mesh."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.mesh_operators import cotangent_laplacian, east_north_derivatives
from baselines.ugscnn import UGSCNN, MeshConv
from pdo.mesh import Icosphere
from tests.baselines.helpers import (
    assert_every_parameter_learns,
    count,
    moved_by_symmetries,
    signals,
    trained_statistics,
)


def plain_forward(
    state: dict[str, Tensor], x: Tensor, level: int, training: bool = False
) -> Tensor:
    """Logits from the definition: dense matrices, fields as (batch, channel, vertex), restriction
    where the authors have it (in the shortcut after the 1x1), no dropout. In training batch norm
    has the statistics of x, else those of the state."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv1d(x, state[f"{name}.weight"][:, :, None], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        running = [None if training else state[f"{name}.running_{k}"] for k in ("mean", "var")]
        return F.batch_norm(x, *running, state[f"{name}.weight"], state[f"{name}.bias"], training)

    def mesh_conv(x: Tensor, name: str, level: int) -> Tensor:
        mesh = Icosphere(level)
        matrices = [np.eye(len(mesh)), cotangent_laplacian(mesh).toarray()]
        matrices += [m.toarray() for m in east_north_derivatives(mesh)]
        out_channels = state[f"{name}.mix.weight"].shape[0]
        coefficients = state[f"{name}.mix.weight"].view(out_channels, 4, -1)
        out = state[f"{name}.mix.bias"][:, None]
        for k, matrix in enumerate(matrices):
            term = torch.einsum("vw,bcw->bcv", torch.from_numpy(matrix), x)
            out = out + torch.einsum("oc,bcv->bov", coefficients[:, k], term)
        return out

    def block(x: Tensor, name: str, level: int) -> Tensor:
        keep = len(Icosphere(level))
        y = F.relu(norm(conv(x[:, :, :keep], f"{name}.main.0"), f"{name}.main.1"))
        y = F.relu(norm(mesh_conv(y, f"{name}.main.3", level), f"{name}.main.4"))
        y = norm(conv(y, f"{name}.main.6"), f"{name}.main.7")
        side = norm(conv(x, f"{name}.shortcut.0")[:, :, :keep], f"{name}.shortcut.1")
        return F.relu(y + side)

    y = F.relu(norm(mesh_conv(x, "stem.0", level), "stem.1"))
    y = block(block(y, "block1", level - 1), "block2", level - 2)
    return F.linear(y.mean(dim=2), state["head.1.weight"], state["head.1.bias"])


@pytest.mark.parametrize("level", [2, 3, 4])
def test_parameter_counts_are_the_published_ones(level: int) -> None:
    model = UGSCNN(level)
    counts = [count(part) for part in (model.stem, model.block1, model.block2, model.head)]
    assert counts == [80 + 32, 3_808, 55_168, 2_570]
    assert count(model) == 61_658


@pytest.mark.parametrize("level", [2, 3])
def test_forward_agrees_with_the_plain_definition(float64: None, level: int) -> None:
    model = trained_statistics(UGSCNN, level)
    x = signals(3, level)
    expected = plain_forward(model.state_dict(), x, level)
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_training_agrees_with_the_plain_definition(float64: None) -> None:
    """Outputs and gradients, with the statistics of the batch: of the stem over all vertices, of
    the rest over those of the block's mesh."""
    torch.manual_seed(0)
    model, x = UGSCNN(2, dropout=0).train(), signals(3, 2)
    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    goal = torch.randn(3, 10)
    found, expected = model(x), plain_forward(plain, x, 2, training=True)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    (found * goal).sum().backward()
    (expected * goal).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name].grad, rtol=1e-8, atol=1e-11)


def test_float32_agrees_with_float64(float64: None) -> None:
    model = trained_statistics(UGSCNN, 4)
    x = signals(3, 4)
    exact = model(x)
    rounded = model.float()(x.float())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-5)


def test_geometry_follows_the_module_to_double() -> None:
    model = UGSCNN(2).double().eval()
    assert model(signals(2, 2).double()).dtype == torch.float64


def test_mesh_conv_gradients_agree_with_finite_differences(float64: None) -> None:
    torch.manual_seed(0)
    conv = MeshConv(Icosphere(0), 2, 3)
    x = torch.randn(12 * 2, 2, requires_grad=True)
    weight, bias = conv.mix.weight, conv.mix.bias
    weight.requires_grad_(True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"mix.weight": weight, "mix.bias": bias}
        return torch.func.functional_call(conv, parameters, (x,))

    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_mesh_conv_initialisation_is_uniform_with_the_published_bound() -> None:
    torch.manual_seed(0)
    conv = MeshConv(Icosphere(0), 64, 256)
    bound = 1 / np.sqrt(4 * 64)
    for values in (conv.mix.weight, conv.mix.bias):
        assert 0.9 * bound < values.abs().max() <= bound
    assert conv.mix.weight.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.02)


def test_coarser_vertices_are_the_first_ones() -> None:
    """What the slices of the network stand on."""
    for level in range(4):
        coarse, fine = Icosphere(level).vertices, Icosphere(level + 1).vertices
        np.testing.assert_array_equal(fine[: len(coarse)], coarse)


def test_turning_the_signal_about_the_axis_by_72_degrees_changes_nothing(float64: None) -> None:
    """The upright mesh and the north-south, east-west operators share this symmetry; upside down
    these change their signs."""
    about_axis, upside_down = moved_by_symmetries(trained_statistics(UGSCNN, 3), 3)
    assert about_axis < 1e-11
    assert upside_down > 1e-4


def test_one_signal_alone_is_like_one_of_many() -> None:
    model = trained_statistics(UGSCNN, 2)
    x = signals(5, 2)
    torch.testing.assert_close(model(x[2:3]), model(x)[2:3])
    model.train()
    assert model(x[:1]).shape == (1, 10)


def test_eval_is_deterministic_and_dropout_is_only_for_training() -> None:
    model = trained_statistics(UGSCNN, 2)
    x = signals(4, 2)
    assert torch.equal(model(x), model(x))
    model.head.train()
    assert not torch.equal(model(x), model(x))


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    assert_every_parameter_learns(UGSCNN(2, dropout=0), 2)


def test_state_dict_holds_no_geometry_and_loads_as_weights_only() -> None:
    model = trained_statistics(UGSCNN, 2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    statistics = 2 * (16 + (16 + 16 + 64 + 64) + (64 + 64 + 256 + 256)) + 9  # and 9 step counters
    assert sum(v.numel() for v in state.values()) == 61_658 + statistics
    torch.manual_seed(5)
    other = UGSCNN(2).eval()
    x = signals(3, 2)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), model(x))


def test_weights_of_one_level_load_at_another() -> None:
    UGSCNN(2).load_state_dict(UGSCNN(3).state_dict())


def test_other_numbers_of_classes() -> None:
    assert UGSCNN(2, n_classes=3)(signals(2, 2)).shape == (2, 3)


@pytest.mark.parametrize("level", [-1, 0, 1])
def test_too_coarse_a_level_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=rf"level must be at least 2, not {level}$"):
        UGSCNN(level)


@pytest.mark.parametrize("shape", [(2, 1, 42), (2, 3, 162), (2, 162)])
def test_inputs_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 1, 162\)"):
        UGSCNN(2)(torch.zeros(shape))
