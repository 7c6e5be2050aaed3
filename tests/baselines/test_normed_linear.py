"""Oracle: the map, then torch's batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.normed_linear import normed_linear

ROWS, INPUTS, OUTPUTS = 40, 3, 7


@pytest.fixture
def layers(float64: None) -> tuple[nn.Linear, nn.BatchNorm1d]:
    torch.manual_seed(0)
    linear, norm = nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS, momentum=0.3)
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return linear, norm


def inputs(mean: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return mean + torch.randn(ROWS, INPUTS, generator=generator, dtype=torch.get_default_dtype())


def test_values_statistics_and_gradients_are_those_of_the_two_layers_in_turn(
    layers: tuple[nn.Linear, nn.BatchNorm1d],
) -> None:
    plain, folded = layers, copy.deepcopy(layers)
    torch.manual_seed(2)
    goal = torch.randn(ROWS, OUTPUTS)
    found = []
    for (linear, norm), together in ((plain, False), (folded, True)):
        x = inputs().requires_grad_()
        for _ in range(2):  # the running statistics move twice
            y = F.linear(x, *normed_linear(x, linear, norm)) if together else norm(linear(x))
        (y * goal).sum().backward()
        grads = [x.grad, linear.weight.grad, norm.weight.grad, norm.bias.grad]
        state = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
        found.append([y, *grads, *state])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-11)
    # a bias before batch norm does nothing
    torch.testing.assert_close(folded[0].bias.grad, torch.zeros(OUTPUTS), rtol=0, atol=1e-12)


def test_evaluation_uses_the_running_statistics_and_leaves_them(
    layers: tuple[nn.Linear, nn.BatchNorm1d],
) -> None:
    linear, norm = layers
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    x = inputs()
    found = F.linear(x, *normed_linear(x, linear, norm))
    torch.testing.assert_close(found, norm(linear(x)), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_float32_loses_nothing_to_a_large_mean(mean: float) -> None:
    """E[x^2] - E[x]^2 would lose all digits of the variance here."""
    torch.manual_seed(0)
    linear, norm = nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)
    exact_linear, exact_norm = copy.deepcopy(linear).double(), copy.deepcopy(norm).double()
    x = inputs(mean)
    weight, _ = normed_linear(x, linear, norm)
    exact, _ = normed_linear(x.double(), exact_linear, exact_norm)
    torch.testing.assert_close(weight.double(), exact, rtol=1e-4, atol=0)


def test_a_channel_without_variation_stays_finite(float64: None) -> None:
    linear, norm = nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)
    x = torch.ones(ROWS, INPUTS, requires_grad=True)
    y = F.linear(x, *normed_linear(x, linear, norm))
    torch.testing.assert_close(y, norm(linear(x)), rtol=0, atol=1e-10)
    y.square().sum().backward()
    assert x.grad.isfinite().all() and linear.weight.grad.isfinite().all()


def test_a_variance_of_nothing_but_rounding_is_none() -> None:
    """Inputs along one direction, the map orthogonal to it: diag(W cov W^T) is 0 and comes out of
    either sign."""
    generator = torch.Generator().manual_seed(0)
    linear, norm = nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)
    direction = torch.randn(INPUTS, generator=generator)
    along = direction / direction.norm()
    for _ in range(50):
        rows = torch.randn(OUTPUTS, INPUTS, generator=generator)
        linear.weight.data = rows - (rows @ along)[:, None] * along
        x = 100 * torch.randn(ROWS, 1, generator=generator) * along
        assert all(values.isfinite().all() for values in normed_linear(x, linear, norm))


def test_autocast_takes_statistics_in_full_precision() -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)
    x = torch.randn(ROWS, INPUTS).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        folded = normed_linear(x, linear, norm)
    torch.testing.assert_close(folded, normed_linear(x.float(), linear, norm), rtol=0, atol=0)


def test_one_row_is_refused_as_by_batch_norm() -> None:
    linear, norm = nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)
    with pytest.raises(ValueError, match="two rows at least, not 1"):
        normed_linear(torch.zeros(1, INPUTS), linear, norm)
    assert norm.running_var.isfinite().all()
