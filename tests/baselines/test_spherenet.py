"""Oracles: the textbook gnomonic projection, planar convolution on the equator, analytic functions
across the poles, symmetries of the grid, published parameter counts."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse
from scipy.spatial.transform import Rotation
from torch import Tensor

from baselines.spherenet import (
    SphereConv,
    SphereMaxPool,
    SphereNet,
    kernel_points,
    sampling_matrix,
)
from data_prep.grids import grid_points
from tests.baselines.helpers import count

LATITUDES = np.radians([-88.5, -45, -1.5, 0, 7.3, 60, 84, 88.5])


def directions(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=-1,
    )


def plane_points(side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's kernel on the tangent plane: x to the east, y to the north, (size^2,) each."""
    steps = np.arange(size) - size // 2
    i, j = (a.ravel() for a in np.meshgrid(steps, steps, indexing="ij"))
    x = np.tan(j * 2 * np.pi / side)
    y = np.tan(-i * np.pi / side) / np.cos(j * 2 * np.pi / side)
    return x, y


def field(image: np.ndarray) -> Tensor:
    """(B, C, side, side) as the network has it, (side^2, B, C)."""
    return torch.from_numpy(image).flatten(2).permute(2, 0, 1).contiguous()


def image(field: Tensor) -> np.ndarray:
    """The way back."""
    side = round(len(field) ** 0.5)
    return field.detach().permute(1, 2, 0).unflatten(2, (side, side)).numpy()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- where the kernels read ------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5])
def test_kernel_points_are_rays_through_the_turned_tangent_plane(size: int) -> None:
    """The plane with its kernel is turned in space and cut by rays from the centre."""
    x, y = plane_points(60, size)
    found = directions(*kernel_points(60, size, LATITUDES))
    for latitude, points in zip(LATITUDES, found, strict=True):
        turn = Rotation.from_euler("y", -latitude).as_matrix()
        rays = np.column_stack([np.ones_like(x), x, y]) @ turn.T
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        np.testing.assert_allclose(points, rays, atol=1e-14)


def test_kernel_points_are_the_textbook_inverse_gnomonic_projection() -> None:
    x, y = plane_points(60, 5)
    rho = np.hypot(x, y)
    nu = np.arctan(rho)
    rho[12] = 1  # the centre itself: sin(nu) = 0
    for k, phi in enumerate(LATITUDES):
        latitude = np.arcsin(np.cos(nu) * np.sin(phi) + y * np.sin(nu) * np.cos(phi) / rho)
        longitude = np.arctan2(
            x * np.sin(nu), rho * np.cos(phi) * np.cos(nu) - y * np.sin(phi) * np.sin(nu)
        )
        found = [a[k] for a in kernel_points(60, 5, LATITUDES)]
        np.testing.assert_allclose(found, [latitude, longitude], atol=1e-12)


def test_a_kernel_that_crosses_the_pole_reads_the_opposite_meridian() -> None:
    """From 88.5 degrees two steps of 3 degrees north are 85.5 degrees on the other side."""
    latitude, longitude = (a.reshape(5, 5) for a in kernel_points(60, 5, np.radians([88.5])))
    np.testing.assert_allclose(np.degrees(latitude[:, 2]), [85.5, 88.5, 88.5, 85.5, 82.5])
    np.testing.assert_allclose(np.degrees(longitude[:, 2]), [180, 180, 0, 0, 0], atol=1e-9)


@pytest.mark.parametrize("size", [3, 5])
def test_on_the_equator_a_kernel_reads_its_neighbours(size: int) -> None:
    """A grid of odd side has a row there."""
    side, half = 15, size // 2
    taps = sampling_matrix(side, side, size).toarray().reshape(side, side, size, size, side, side)
    for column in range(side):
        for i in range(size):
            for j in range(size):
                expected = np.zeros((side, side))
                expected[7 + i - half, (column + j - half) % side] = 1
                np.testing.assert_array_equal(taps[7, column, i, j], expected)


def test_centres_are_the_pixels_and_those_of_a_pool_the_points_of_the_coarser_grid() -> None:
    """Oracle: latitudes and columns, which interpolate linearly."""
    fine, coarse = grid_points("latlon30"), grid_points("latlon15")
    assert abs(sampling_matrix(60, 60, 5)[12::25] - sparse.eye_array(3600)).nnz == 0
    pooled = sampling_matrix(60, 30, 3)[4::9]
    latitude, expected = np.arcsin(fine[:, 2]), np.arcsin(coarse[:, 2])
    np.testing.assert_allclose(pooled @ latitude, expected, atol=1e-12)
    column, expected = np.tile(np.arange(60), 60), np.tile(2 * np.arange(30), 30)
    np.testing.assert_allclose(pooled @ column, expected, atol=1e-12)
    meridians = [grid[:n, :2] / np.hypot(*grid[0, :2]) for grid, n in ((fine, 60), (coarse, 30))]
    np.testing.assert_allclose(meridians[0][::2], meridians[1], atol=1e-12)


# --- bilinear sampling, seam and poles -------------------------------------------------------


@pytest.mark.parametrize(("out_side", "size"), [(20, 5), (10, 3)])
def test_sampling_agrees_with_scipy_on_a_continued_image(out_side: int, size: int) -> None:
    """The image continued by hand, over the poles and round the seam."""
    side = 20
    values = noise(side, side)
    above, below = (np.roll(v, side // 2, axis=1) for v in (values[::-1], values[::-1]))
    continued = np.tile(np.concatenate([above, values, below]), (1, 3))
    latitudes = np.pi / 2 - (np.arange(out_side) + 0.5) * np.pi / out_side
    latitude, longitude = kernel_points(side, size, latitudes)
    row = (np.pi / 2 - latitude) / (np.pi / side) - 0.5
    found = (sampling_matrix(side, out_side, size) @ values.ravel()).reshape(
        out_side, out_side, size**2
    )
    for k in range(out_side):
        column = longitude / (2 * np.pi / side) + k * side / out_side
        where = np.array([row + side, column + side])
        expected = ndimage.map_coordinates(continued, where, order=1)
        np.testing.assert_allclose(found[:, k], expected, atol=1e-7)


@pytest.mark.parametrize(("side", "out_side", "size"), [(60, 60, 5), (60, 30, 3), (15, 8, 3)])
def test_weights_are_those_of_an_average(side: int, out_side: int, size: int) -> None:
    matrix = sampling_matrix(side, out_side, size)
    assert matrix.shape == (out_side**2 * size**2, side**2)
    assert matrix.data.min() > 0 and np.diff(matrix.indptr).max() <= 4
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


def test_smooth_functions_are_sampled_to_second_order_poles_included() -> None:
    """Functions that are analytic on the sphere know no seam and no pole."""
    turn = Rotation.random(rng=np.random.default_rng(0)).as_matrix()

    def smooth(points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(points @ turn.T, -1, 0)
        return x * y + z + 0.3 * x**2 * z

    errors = []
    for bandwidth in (15, 30, 60):
        side = 2 * bandwidth
        grid = grid_points(f"latlon{bandwidth}")
        found = sampling_matrix(side, side, 3) @ smooth(grid)
        latitudes = np.arcsin(grid[::side, 2])
        latitude, longitude = kernel_points(side, 3, latitudes)
        centre = 2 * np.pi * np.arange(side) / side
        points = directions(
            np.broadcast_to(latitude[:, None], (side, side, 9)),
            longitude[:, None] + centre[:, None],
        )
        errors.append(np.abs(found - smooth(points).ravel()).max())
    assert errors[0] < 0.1
    assert errors[0] / errors[1] > 3.4 and errors[1] / errors[2] > 3.4


def test_the_seam_is_like_any_other_meridian(float64: None) -> None:
    """Whole columns: the convolution turns with the image, the pool by half as many."""
    torch.manual_seed(0)
    conv, pool = SphereConv(12, 2, 3), SphereMaxPool(12, 6)
    x = noise(2, 2, 12, 12)
    for shift in (1, 5, 11):
        moved = image(conv(field(np.roll(x, shift, axis=3))))
        np.testing.assert_allclose(moved, np.roll(image(conv(field(x))), shift, 3), atol=1e-13)
    for shift in (2, 6, 10):
        moved = image(pool(field(np.roll(x, shift, axis=3))))
        np.testing.assert_allclose(moved, np.roll(image(pool(field(x))), shift // 2, 3), atol=1e-13)


def test_north_and_south_east_and_west_are_alike(float64: None) -> None:
    """Mirrored image, mirrored kernel: mirrored output. (The columns' mirror keeps column 0.)"""
    torch.manual_seed(0)
    conv, pool = SphereConv(12, 2, 3), SphereMaxPool(12, 6)
    x = noise(1, 2, 12, 12)
    kernel = conv.mix.weight.detach().unflatten(1, (5, 5, 2))
    plain, pooled = image(conv(field(x))), image(pool(field(x)))

    def east_west(values: np.ndarray) -> np.ndarray:
        return np.roll(values[..., ::-1], 1, axis=-1)

    for mirror, axis in ((lambda v: v[:, :, ::-1], 1), (east_west, 2)):
        mirrored = field(np.ascontiguousarray(mirror(x)))
        conv.mix.weight.data = kernel.flip(axis).flatten(1)
        np.testing.assert_allclose(image(conv(mirrored)), mirror(plain), atol=1e-13)
        np.testing.assert_allclose(image(pool(mirrored)), mirror(pooled), atol=1e-13)


# --- layers ----------------------------------------------------------------------------------


def test_on_the_equator_it_is_a_planar_convolution(float64: None) -> None:
    torch.manual_seed(0)
    conv, x = SphereConv(15, 2, 3), torch.from_numpy(noise(4, 2, 15, 15))
    kernel = conv.mix.weight.unflatten(1, (5, 5, 2)).permute(0, 3, 1, 2)
    planar = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="circular"), kernel, conv.mix.bias)
    found = image(conv(field(x.numpy())))
    np.testing.assert_allclose(found[:, :, 7], planar[:, :, 5].detach(), atol=1e-13)
    assert np.abs(found[:, :, 5] - planar[:, :, 3].detach().numpy()).max() > 0.01  # but elsewhere


def test_on_the_equator_the_pool_is_planar(float64: None) -> None:
    """A pool that keeps the size."""
    x = torch.from_numpy(noise(4, 2, 15, 15))
    planar = F.max_pool2d(F.pad(x, (1, 1, 0, 0), mode="circular"), 3, stride=1)
    found = image(SphereMaxPool(15, 15)(field(x.numpy())))
    np.testing.assert_array_equal(found[:, :, 7], planar[:, :, 6])


def test_a_constant_stays_constant(float64: None) -> None:
    torch.manual_seed(0)
    conv, x = SphereConv(12, 2, 3), torch.full((144, 2, 2), 3.0)
    expected = conv.mix.bias + 3 * conv.mix.weight.sum(1)
    torch.testing.assert_close(conv(x), expected.expand(144, 2, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(SphereMaxPool(12, 6)(x), x[:36], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [SphereConv(10, 2, 3, size=3), SphereMaxPool(10, 5)])
def test_gradients_agree_with_finite_differences(layer: torch.nn.Module) -> None:
    layer = layer.double()
    x = torch.from_numpy(noise(100, 1, 2)).requires_grad_(True)
    names, parameters = zip(*layer.named_parameters(), strict=True) if count(layer) else ((), ())

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_initialisation_is_that_of_a_planar_convolution() -> None:
    torch.manual_seed(0)
    ours, planar = SphereConv(12, 32, 64).mix, torch.nn.Conv2d(32, 64, 5)
    for a, b in ((ours.weight, planar.weight), (ours.bias, planar.bias)):
        assert a.abs().max() <= 1 / np.sqrt(25 * 32)
        assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=0.05)
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.2)


# --- the network -----------------------------------------------------------------------------


def plain_forward(state: dict[str, Tensor], x: Tensor, sides: tuple[int, int, int]) -> Tensor:
    """Logits from the definition: dense samplers, fields as (batch, channel, point)."""

    def taps(x: Tensor, side: int, out_side: int, size: int) -> Tensor:
        matrix = torch.from_numpy(sampling_matrix(side, out_side, size).toarray())
        return torch.einsum("ptq,bcq->btcp", matrix.view(out_side**2, size**2, -1), x)

    def conv(x: Tensor, name: str, side: int) -> Tensor:
        sampled = taps(x, side, side, 5)
        kernel = state[f"{name}.mix.weight"].view(-1, *sampled.shape[1:3])
        return torch.einsum("otc,btcp->bop", kernel, sampled) + state[f"{name}.mix.bias"][:, None]

    fine, middle, coarse = sides
    y = taps(conv(x, "features.0", fine), fine, middle, 3).amax(1).relu()
    y = taps(conv(y, "features.3", middle), middle, coarse, 3).amax(1).relu()
    return F.linear(y.transpose(1, 2).flatten(1), state["head.weight"], state["head.bias"])


def test_forward_agrees_with_the_plain_definition(float64: None) -> None:
    torch.manual_seed(0)
    model, x = SphereNet(3), torch.randn(2, 1, 900)
    expected = plain_forward(model.state_dict(), x, (30, 15, 8))
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_parameter_counts_are_the_published_ones() -> None:
    model = SphereNet(4)
    assert [count(layer) for layer in model.features] == [832, 0, 0, 51_264, 0, 0]
    assert count(model.head) == 144_010
    assert count(model) == 196_106


def test_input_is_the_grid_of_the_level() -> None:
    for level, bandwidth in ((3, 15), (4, 30), (5, 60)):
        assert SphereNet(level).points == len(grid_points(f"latlon{bandwidth}"))


def test_state_dict_holds_no_geometry_and_loads_as_weights_only() -> None:
    torch.manual_seed(0)
    model, x = SphereNet(3), torch.randn(2, 1, 900)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert sum(v.numel() for v in state.values()) == count(model)
    other = SphereNet(3)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), model(x))


def test_other_numbers_of_classes() -> None:
    assert SphereNet(3, n_classes=3)(torch.zeros(2, 1, 900)).shape == (2, 3)


@pytest.mark.parametrize("level", [-1, 2])
def test_too_coarse_a_level_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=rf"level of at least 3, not {level}$"):
        SphereNet(level)


@pytest.mark.parametrize("shape", [(2, 1, 642), (2, 3, 900), (2, 900)])
def test_inputs_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 1, 900\)"):
        SphereNet(3)(torch.zeros(shape))
