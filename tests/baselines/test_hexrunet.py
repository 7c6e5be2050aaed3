"""Oracles: published parameter counts, spherical trigonometry, the graph Laplacian, the paper's
alpha-blend of two planar convolutions, a symmetry of the mesh."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.charts import CORNERS, DOWN_LEFT, LEFT, POLES, RIGHT, UP, UP_RIGHT, Atlas
from baselines.hexrunet import (
    ChartMaxPool,
    HexConv,
    HexRUNetC,
    north_aligned_neighbours,
    north_alpha,
)
from pdo.frames import east_north_frames
from tests.baselines.helpers import (
    assert_every_parameter_learns,
    count,
    moved_by_symmetries,
    signals,
    trained_statistics,
)


def away_from_poles(atlas: Atlas) -> np.ndarray:
    """Whether neither a pixel (in their order) nor its neighbours are a pole or a corner."""
    vertex = atlas.pixels.ravel()
    return (vertex >= CORNERS) & (atlas.neighbours[vertex] >= CORNERS).all(axis=1)


def at_vertices(x: Tensor, atlas: Atlas) -> Tensor:
    """(..., P) -> (..., V): the poles get the mean of their five neighbours."""
    full = x.new_zeros(*x.shape[:-1], len(atlas.mesh))
    full[..., atlas.pixels.ravel()] = x
    for pole in POLES:
        full[..., pole] = full[..., atlas.mesh.adjacency[[pole]].indices].mean(dim=-1)
    return full


def planar_conv(x: Tensor, weight: Tensor, atlas: Atlas, turn: int) -> Tensor:
    """Without north alignment: weight (C_out, 7, C_in), arm m on the neighbour m + turn."""
    full, vertex = at_vertices(x, atlas), atlas.pixels.ravel()
    out = torch.einsum("oc,bcp->bop", weight[:, 0], x)
    for arm in range(6):
        neighbour = full[..., atlas.neighbours[vertex, (arm + turn) % 6]]
        out = out + torch.einsum("oc,bcp->bop", weight[:, 1 + arm], neighbour)
    return out


def plain_forward(state: dict[str, Tensor], x: Tensor, level: int) -> Tensor:
    """Eval-mode logits from the definition, fields as (batch, channel, pixel)."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv1d(x, state[f"{name}.weight"][..., None], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    def hex_conv(x: Tensor, name: str, level: int) -> Tensor:
        atlas = Atlas(level)
        weight = state[f"{name}.mix.weight"]
        weight = weight.view(len(weight), 7, -1)
        alpha = torch.from_numpy(north_alpha(atlas).ravel())
        blend = alpha * planar_conv(x, weight, atlas, 0)
        blend = blend + (1 - alpha) * planar_conv(x, weight, atlas, 1)
        return blend + state[f"{name}.mix.bias"][:, None]

    def pool(x: Tensor, level: int) -> Tensor:
        fine, coarse = Atlas(level + 1), Atlas(level).pixels.ravel()
        members = np.column_stack([coarse, fine.neighbours[coarse][:, [UP, UP_RIGHT, RIGHT]]])
        return at_vertices(x, fine)[..., members].amax(dim=-1)

    def block(x: Tensor, name: str, level: int) -> Tensor:
        y = F.relu(norm(pool(conv(x, f"{name}.main.0"), level), f"{name}.main.2"))
        y = F.relu(norm(hex_conv(y, f"{name}.main.4", level), f"{name}.main.5"))
        y = norm(conv(y, f"{name}.main.7"), f"{name}.main.8")
        side = norm(pool(conv(x, f"{name}.shortcut.0"), level), f"{name}.shortcut.2")
        return F.relu(y + side)

    y = F.relu(hex_conv(x[..., Atlas(level).pixels.ravel()], "stem.0", level))
    y = block(block(y, "block1", level - 1), "block2", level - 2)
    return F.linear(y.amax(dim=2), state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("level", [2, 3, 4])
def test_parameter_counts_are_the_published_ones(level: int) -> None:
    model = HexRUNetC(level)
    counts = [count(part) for part in (model.stem, model.block1, model.block2, model.head)]
    assert counts == [128, 4_576, 67_456, 2_570]
    assert count(model) == 74_730


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_alpha_from_latitudes_and_longitudes(level: int) -> None:
    """The bearing of a great circle, by the navigators' formula; west of north is positive."""
    atlas = Atlas(level)
    x, y, z = atlas.mesh.vertices.T
    latitude, longitude = np.arcsin(z), np.arctan2(y, x)
    here = atlas.pixels

    def west_of_north(direction: int) -> np.ndarray:
        there = atlas.neighbours[here, direction]
        east = longitude[there] - longitude[here]
        sine = np.sin(east) * np.cos(latitude[there])
        cosine = np.cos(latitude[here]) * np.sin(latitude[there])
        cosine -= np.sin(latitude[here]) * np.cos(latitude[there]) * np.cos(east)
        return -np.arctan2(sine, cosine)

    up, left = west_of_north(UP), west_of_north(LEFT)
    assert (up < 1e-7).all() and (left > -1e-7).all()  # they have north between them
    np.testing.assert_allclose(north_alpha(atlas), left / (left - up), atol=1e-6)


@pytest.mark.parametrize("level", [0, 2, 4])
def test_alpha_on_the_meridians_of_the_icosahedron(level: int) -> None:
    """1 from the north pole down to U_k, where up is north; 0 from L_k down to the south pole,
    where left is; 1/2 on the meridians that halve a chart, by reflection."""
    alpha, w = north_alpha(Atlas(level)), 2**level
    t = np.arange(w)
    np.testing.assert_allclose(alpha[:, :w, 0], 1, atol=1e-12)
    np.testing.assert_allclose(alpha[:, -1, 1:], 0, atol=1e-12)
    np.testing.assert_allclose(alpha[:, t[:-1], t[1:]], 0.5, atol=1e-12)  # N to L_k, row t + 1
    np.testing.assert_allclose(alpha[:, w + t[1:] - 1, t[1:]], 0.5, atol=1e-12)  # U_k to S
    np.testing.assert_allclose(alpha[:, -1, 0], 0.5, atol=1e-12)  # L_k-1
    assert (alpha > -1e-12).all() and (alpha < 1 + 1e-12).all()


def test_alpha_is_the_same_in_all_charts() -> None:
    alpha = north_alpha(Atlas(4))
    np.testing.assert_allclose(alpha, np.broadcast_to(alpha[0], alpha.shape), atol=1e-12)


@pytest.mark.parametrize("level", [3, 4])
def test_arms_of_the_kernel_point_to_north_and_sixths_of_a_turn_from_it(level: int) -> None:
    """Applied to the positions of the pixels: the arm to the north is blended to point there up to
    the unequal lengths of its two parts; the others follow hexagons that are not regular, but are
    nearer to their multiple of 60 degrees than to any other."""
    atlas = Atlas(level)
    points = atlas.mesh.vertices[atlas.pixels.ravel()]
    around = np.stack([arm @ points for arm in north_aligned_neighbours(atlas)], axis=1)
    np.testing.assert_allclose(around[:, 0], points)
    frames = east_north_frames(points)[away_from_poles(atlas)]
    arms = np.einsum("pmd,pde->pme", around[away_from_poles(atlas), 1:], frames)
    west_of_north = np.arctan2(-arms[..., 0], arms[..., 1])
    off = np.degrees(np.angle(np.exp(1j * (west_of_north - np.pi / 3 * np.arange(6)))))
    assert np.abs(off).max() < 30
    assert np.abs(off[:, 0]).max() < 3


@pytest.mark.parametrize("level", [1, 3, 4])
def test_laplacian_weights_give_the_graph_laplacian(float64: None, level: int) -> None:
    """Of the mesh, with -6 in the middle and 1 on the arms: exactly, whatever alpha. At a pole the
    signal is the mean of its neighbours; at a corner one neighbour counts twice."""
    atlas = Atlas(level)
    conv = HexConv(atlas, 1, 1)
    with torch.no_grad():
        conv.mix.weight.copy_(torch.tensor([[-6.0, 1, 1, 1, 1, 1, 1]]))
        conv.mix.bias.zero_()
    x = torch.randn(2, atlas.pixels.size)
    out = conv(x.T.reshape(-1, 1)).view(-1, 2).detach().numpy()
    full = at_vertices(x, atlas).T.numpy()
    adjacency = atlas.mesh.adjacency.astype(float)
    laplacian = adjacency @ full - adjacency.sum(axis=1)[:, None] * full
    corners = np.setdiff1d(np.arange(CORNERS), POLES)
    laplacian[corners] += full[atlas.neighbours[corners, DOWN_LEFT]] - full[corners]
    np.testing.assert_allclose(out, laplacian[atlas.pixels.ravel()], atol=1e-12)


def test_constants_stay_constant(float64: None) -> None:
    """Every arm has weights that sum to one, at the poles' neighbours too."""
    for level in range(4):
        for arm in north_aligned_neighbours(Atlas(level)):
            np.testing.assert_allclose(arm.sum(axis=1), 1, rtol=1e-14)


def test_pooling_keeps_the_largest_of_two_by_two_pixels() -> None:
    x = torch.arange(5 * 8 * 4.0).view(5, 8, 4)
    pool = ChartMaxPool(Atlas(1))
    assert torch.equal(pool(x.view(-1, 1)).view(5, 4, 2), x[:, 1::2, 1::2])
    assert torch.equal(pool(-x.view(-1, 1)).view(5, 4, 2), -x[:, ::2, ::2])


@pytest.mark.parametrize("level", [2, 3])
def test_forward_agrees_with_the_plain_definition(float64: None, level: int) -> None:
    model = trained_statistics(HexRUNetC, level)
    x = signals(3, level)
    expected = plain_forward(model.state_dict(), x, level)
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_turning_the_signal_about_the_axis_by_72_degrees_changes_nothing(float64: None) -> None:
    """Charts change places."""
    about_axis, upside_down = moved_by_symmetries(trained_statistics(HexRUNetC, 3), 3)
    assert about_axis < 1e-11
    assert upside_down > 1e-4


def test_the_poles_are_dropped() -> None:
    model, x = trained_statistics(HexRUNetC, 2), signals(2, 2)
    other = x.clone()
    other[:, :, list(POLES)] += 1
    assert torch.equal(model(other), model(x))


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    assert_every_parameter_learns(HexRUNetC(2), 2)


def test_state_dict_holds_no_geometry_and_loads_at_another_level() -> None:
    file = io.BytesIO()
    torch.save(trained_statistics(HexRUNetC, 2).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    statistics = 2 * (16 + 16 + 64 + 64 + 64 + 64 + 256 + 256) + 8  # and 8 step counters
    assert sum(v.numel() for v in state.values()) == 74_730 + statistics
    HexRUNetC(3).load_state_dict(state)


@pytest.mark.parametrize("level", [-1, 0, 1])
def test_too_coarse_a_level_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=rf"level must be at least 2, not {level}$"):
        HexRUNetC(level)


@pytest.mark.parametrize("shape", [(2, 1, 42), (2, 3, 162), (2, 162)])
def test_inputs_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 1, 162\)"):
        HexRUNetC(2)(torch.zeros(shape))
