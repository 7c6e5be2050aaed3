"""Oracles: the published count, correlation evaluated point by point, rotated coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y
from torch import Tensor

from baselines.harmonics import (
    SO3Analysis,
    SO3Synthesis,
    quadrature_weights,
    real_wigner,
    soft_angles,
    soft_points,
    stack_degrees,
    wigner,
)
from baselines.s2cnn import S2CNN, S2Conv, SO3Conv, near_identity, near_identity_so3

pytestmark = pytest.mark.usefixtures("float64")


def euler(rotations: Rotation) -> np.ndarray:
    return rotations.as_euler("ZYZ").T


def from_euler(alpha: np.ndarray, beta: np.ndarray, gamma: np.ndarray) -> Rotation:
    return Rotation.from_euler("ZYZ", np.stack([alpha, beta, gamma], -1).reshape(-1, 3))


def sphere_coefficients(degrees: int, seed: int = 0) -> list[np.ndarray]:
    """a_lm of a real signal, for each l < degrees: a_l,-m = (-1)^m conj(a_lm)."""
    rng = np.random.default_rng(seed)
    coefficients = []
    for degree in range(degrees):
        m = np.arange(-degree, degree + 1)
        a = rng.standard_normal(len(m)) + 1j * rng.standard_normal(len(m))
        coefficients.append(a + (-1.0) ** m * a[::-1].conj())
    return coefficients


def turned(coefficients: list[np.ndarray], rotation: Rotation) -> list[np.ndarray]:
    return [wigner(k, *euler(rotation)) @ a for k, a in enumerate(coefficients)]


def sphere_signal(coefficients: list[np.ndarray], alpha: np.ndarray, beta: np.ndarray) -> Tensor:
    """sum of a_lm Y_lm at the directions, with scipy's harmonics: (P,)."""
    f = sum(
        a[degree + m] * sph_harm_y(degree, m, beta, alpha)
        for degree, a in enumerate(coefficients)
        for m in range(-degree, degree + 1)
    )
    assert abs(f.imag).max() < 1e-10
    return torch.from_numpy(f.real.copy())


def grid_rotations(bandwidth: int) -> Rotation:
    angle, beta = soft_angles(bandwidth)
    alpha, gamma, beta = np.meshgrid(angle, angle, beta, indexing="ij")
    return from_euler(alpha, beta, gamma)


def so3_coefficients(degrees: int, channels: int) -> Tensor:
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((k, k, channels)) for k in range(1, 2 * degrees, 2)]
    return torch.from_numpy(stack_degrees(blocks, 2))


def turned_so3(x: Tensor, rotation: Rotation) -> Tensor:
    """Coefficients of f(R^-1 S): R^l(R) X^l."""
    blocks = [real_wigner(degree, *euler(rotation)) for degree in range(x.shape[2])]
    return torch.einsum("mkl,knl...->mnl...", torch.from_numpy(stack_degrees(blocks, 2)), x)


def so3_signal(x: Tensor, rotations: Rotation) -> Tensor:
    """sum of (2 l + 1) X^l_mn R^l_mn at the rotations, (P, channels)."""
    middle, f = x.shape[0] // 2, 0
    for degree in range(x.shape[2]):
        part = slice(middle - degree, middle + degree + 1)
        r = torch.from_numpy(real_wigner(degree, *euler(rotations)))
        f = f + (2 * degree + 1) * torch.einsum("pmn,mnc->pc", r, x[part, part, degree])
    return f


@pytest.mark.parametrize("level", [2, 3, 4])
def test_the_published_number_of_parameters(level: int) -> None:
    model = S2CNN(level)
    assert sum(p.numel() for p in model.parameters()) == 58_550
    assert [tuple(p.shape) for p in model.parameters()] == [
        (24, 1, 20),
        (20,),
        (72, 20, 40),
        (40,),
        (10, 40),
        (10,),
    ]


def test_filters_are_small_and_even() -> None:
    _, beta, gamma = near_identity()
    np.testing.assert_allclose(np.unique(beta.round(12)), np.pi / 24 * np.arange(1, 4), atol=1e-11)
    assert not gamma.any()
    rotations = from_euler(*near_identity_so3())
    quaternions = rotations.as_quat()
    overlap = abs(quaternions @ quaternions.T) - 2 * np.eye(72)
    assert overlap.max() < 1 - 1e-4  # 72 different rotations
    # Tilt beta <= pi / 8 and twist alpha + gamma <= pi / 8: cos(angle / 2) = cos cos.
    angles = rotations.magnitude()
    assert angles.max() == pytest.approx(2 * np.arccos(np.cos(np.pi / 16) ** 2))
    assert angles.min() == pytest.approx(np.pi / 24)
    turn = Rotation.from_euler("z", 45, degrees=True)
    conjugate = (turn * rotations * turn.inv()).as_quat()
    np.testing.assert_allclose(abs(conjugate @ quaternions.T).max(axis=1), 1, atol=1e-12)


def test_s2_layer_is_the_correlation_with_point_masses() -> None:
    """out(R) = scale * sum over i of w_i f(R x_i) + bias, term by term, with scipy's harmonics."""
    torch.manual_seed(0)
    layer, coefficients = S2Conv(6, 3, 2, 4), [sphere_coefficients(3, s) for s in range(2)]
    layer.bias.data.normal_()
    alpha, beta = soft_points(6)
    x = torch.stack([sphere_signal(a, alpha, beta) for a in coefficients])[None]
    alpha, beta, _ = near_identity()
    points = np.stack([np.sin(beta) * np.cos(alpha), np.sin(beta) * np.sin(alpha), np.cos(beta)], 1)
    at = grid_rotations(3).as_matrix() @ points.T  # (rotation, xyz, i)
    x_i, y_i, z_i = at.swapaxes(0, 1)
    alpha, beta = np.arctan2(y_i, x_i), np.arctan2(np.hypot(x_i, y_i), z_i)
    f = torch.stack([sphere_signal(a, alpha, beta) for a in coefficients], -1)
    scale = 2 * 6 / (3 * np.sqrt(24 * 2))
    expected = scale * torch.einsum("ric,ico->ro", f, layer.weight) + layer.bias
    torch.testing.assert_close(layer(x).reshape(-1, 4), expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Gimbal lock")
def test_so3_layer_is_the_correlation_with_point_masses() -> None:
    """out(R) = scale * sum over i of w_i f(R Q_i) + bias, term by term."""
    torch.manual_seed(0)
    layer, x = SO3Conv(4, 2, 3, 2), so3_coefficients(2, 3)
    layer.bias.data.normal_()
    f = so3_signal(x, grid_rotations(4)).view(8, 8, 8, 1, 3)
    masses = from_euler(*near_identity_so3())
    around = torch.stack([so3_signal(x, grid_rotations(2) * q) for q in masses], 1)
    scale = (4 / 2) ** 1.5 / np.sqrt(72 * 3)
    expected = scale * torch.einsum("ric,ico->ro", around, layer.weight) + layer.bias
    torch.testing.assert_close(layer(f).reshape(-1, 2), expected, rtol=0, atol=1e-12)


def test_layers_cut_off_higher_degrees() -> None:
    """Exactly, if degree of the input + output bandwidth <= 2 b: then the quadrature is exact."""
    torch.manual_seed(0)
    coefficients = sphere_coefficients(9)
    low, both = (sphere_signal(a, *soft_points(6)) for a in (coefficients[:3], coefficients))
    layer = S2Conv(6, 3, 1, 2)
    torch.testing.assert_close(layer(both[None, None]), layer(low[None, None]))

    x = so3_coefficients(4, 1)
    low = torch.nn.functional.pad(x[2:-2, 2:-2, :2], (0, 0, 0, 2, 2, 2, 2, 2))
    layer, synthesis = SO3Conv(4, 2, 1, 2), SO3Synthesis(4)
    expected = layer(synthesis(low)[..., None])
    torch.testing.assert_close(layer(synthesis(x)[..., None]), expected)


@pytest.mark.parametrize("seed", range(3))
def test_s2_layer_is_equivariant(seed: int) -> None:
    """Input turned through its complex coefficients, output through its real ones."""
    torch.manual_seed(0)
    rotation, coefficients = Rotation.random(random_state=seed), sphere_coefficients(10)
    layer, analysis = S2Conv(15, 5, 1, 3), SO3Analysis(5, 5)
    layer.bias.data.normal_()
    at_rest, moved = (
        analysis(layer(sphere_signal(a, *soft_points(15))[None, None]).flatten(3))
        for a in (coefficients, turned(coefficients, rotation))
    )
    torch.testing.assert_close(moved, turned_so3(at_rest, rotation), rtol=0, atol=1e-11)
    assert (moved - at_rest).abs().max() > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_so3_layer_is_equivariant(seed: int) -> None:
    torch.manual_seed(0)
    rotation, x = Rotation.random(random_state=seed), so3_coefficients(5, 2)
    layer, synthesis, analysis = SO3Conv(5, 3, 2, 4), SO3Synthesis(5), SO3Analysis(3, 3)
    layer.bias.data.normal_()
    at_rest, moved = (
        analysis(layer(synthesis(c)[..., None, :]).flatten(3)) for c in (x, turned_so3(x, rotation))
    )
    torch.testing.assert_close(moved, turned_so3(at_rest, rotation), rtol=0, atol=1e-11)
    assert (moved - at_rest).abs().max() > 0.01


def test_network_on_a_constant_signal() -> None:
    """Every layer maps constants to constants, so the network is a small perceptron of the grey
    level v, here 80, which comes in as (v / 255 - 0.1307) / 0.3081."""
    torch.manual_seed(0)
    model = S2CNN(3)
    for layer in (model.conv1, model.conv2):
        layer.bias.data.normal_()
    y = 80 * 2 * 15 / (5 * np.sqrt(24)) * model.conv1.weight.sum(0) + model.conv1.bias
    y = F.relu(y) @ model.conv2.weight.sum(0) * (5 / 3) ** 1.5 / np.sqrt(72 * 20)
    expected = model.head(F.relu(y + model.conv2.bias))
    x = torch.full((1, 1, 900), (80 / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(model(x), expected)


def test_network_is_invariant_to_the_quarter_turns_its_grids_share() -> None:
    """About the axis, by 90 degrees: a shift of all three grids, so exact for any signal, ReLU and
    aliasing included. Turns that the inner grids do not share are not."""
    torch.manual_seed(0)
    model = S2CNN(4)
    x = torch.randn(1, 1, 60, 60)
    invariants = [model.invariants(x.roll(k, 3).flatten(2)) for k in (0, 15, 30, 1)]
    torch.testing.assert_close(invariants[1], invariants[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(invariants[2], invariants[0], rtol=0, atol=1e-12)
    assert (invariants[3] - invariants[0]).abs().max() > 1e-7


def test_network_is_nearly_invariant_to_rotations() -> None:
    """Only ReLU's overtones beyond the bandwidths are in the way."""
    torch.manual_seed(0)
    model, points = S2CNN(4), soft_points(30)
    coefficients = [sphere_coefficients(10, seed) for seed in range(8)]
    rotation = Rotation.random(random_state=0)
    at_rest, moved = (
        model.invariants(torch.stack([sphere_signal(a, *points) for a in signals])[:, None])
        for signals in (coefficients, [turned(a, rotation) for a in coefficients])
    )
    spread = (at_rest - at_rest.mean(dim=0)).norm(dim=1).square().mean().sqrt()
    error = (moved - at_rest).norm(dim=1) / spread
    assert 1e-6 < error.max() < 0.1


def test_mean_over_so3_weighs_the_rings() -> None:
    """The mean of a signal is its coefficient of degree 0."""
    model, x = S2CNN(4), so3_coefficients(6, 3)
    f = SO3Synthesis(6)(x)
    torch.testing.assert_close(model.means, torch.from_numpy(quadrature_weights(6)) / 144)
    mean = torch.einsum("j,jc->c", model.means, f.sum(dim=(0, 1)))
    torch.testing.assert_close(mean, x[5, 5, 0])


def test_initialisation() -> None:
    """Weights from U(-1, 1), whose variance is 1/3; biases 0."""
    torch.manual_seed(0)
    model = S2CNN(3)
    for layer in (model.conv1, model.conv2):
        assert 0.9 < layer.weight.abs().max() <= 1
        assert layer.weight.var().item() == pytest.approx(1 / 3, rel=0.2)
        assert not layer.bias.any()


def test_every_parameter_moves_the_loss() -> None:
    torch.manual_seed(0)
    model = S2CNN(3)
    F.cross_entropy(model(torch.randn(8, 1, 900)), torch.arange(8)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-7, name


def test_state_dict_holds_the_parameters_alone_and_fits_any_level() -> None:
    state = S2CNN(2).state_dict()
    assert sum(v.numel() for v in state.values()) == 58_550
    S2CNN(3).load_state_dict(state)


@pytest.mark.parametrize("level", [-1, 1])
def test_too_coarse_a_level_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=rf"level must be at least 2, not {level}$"):
        S2CNN(level)


@pytest.mark.parametrize("shape", [(2, 1, 642), (2, 3, 900), (2, 900)])
def test_inputs_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 1, 900\)"):
        S2CNN(3)(torch.zeros(shape))
