"""Oracles: published parameter counts, the 60 rotations of the icosahedron, planar convolutions."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from baselines.charts import CORNERS, STEPS, Atlas
from baselines.icosahedral_cnn import FieldNorm, HexGroupConv, IcosahedralCNN
from pdo.frames import icosahedral_rotations
from pdo.mesh import Icosphere
from tests.baselines.helpers import (
    assert_every_parameter_learns,
    count,
    signals,
    trained_statistics,
)

FIELDS, BATCH = 3, 2


class Turn:
    """A rotation of the icosahedron acting on signals and fields: it carries the value at vertex v,
    direction m, to the vertex and the direction that it carries these to."""

    def __init__(self, rotation: np.ndarray, atlas: Atlas) -> None:
        vertices, neighbours = atlas.mesh.vertices, atlas.neighbours
        distance, self.image = cKDTree(vertices).query(vertices @ rotation.T)
        assert distance.max() < 1e-12
        inner = np.arange(CORNERS, len(vertices))
        came_from = self.image[neighbours[inner]]
        is_here = neighbours[self.image[inner]][:, None, :] == came_from[:, :, None]
        assert (is_here.sum(axis=2) == 1).all()
        self.direction = np.argmax(is_here, axis=2)  # of the image, for each direction

    def field(self, x: Tensor) -> Tensor:
        """(V, B, directions, C), corners left out."""
        vertex = self.image[CORNERS:, None] - CORNERS
        direction = self.direction if x.shape[2] == 6 else 0
        moved = torch.empty_like(x)
        moved.transpose(1, 2)[vertex, direction] = x.transpose(1, 2)
        return moved

    def signal(self, x: Tensor) -> Tensor:
        """(B, 1, V)."""
        moved = torch.empty_like(x)
        moved[:, :, self.image] = x
        return moved


def turns(level: int) -> list[Turn]:
    atlas = Atlas(level)
    return [Turn(rotation, atlas) for rotation in icosahedral_rotations()]


def random_field(level: int, directions: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (10 * 4**level + 2 - CORNERS, BATCH, directions, FIELDS)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("level", [1, 3, 4])
def test_parameter_counts_are_the_published_ones(level: int) -> None:
    model = IcosahedralCNN(level)
    convolutions = [m for m in model.features if isinstance(m, HexGroupConv)]
    weights = [m.weight.numel() for m in convolutions]
    assert weights == [56, 5_376, 10_752, 16_128, 24_192, 32_256, 86_016]
    assert sum(m.bias.numel() for m in convolutions) == 184
    assert sum(count(m) for m in model.features if isinstance(m, FieldNorm)) == 368
    assert count(model.head) == 6_570 + 320
    assert count(model) == 182_218


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("directions", [1, 6])
@pytest.mark.parametrize("level", [2, 3])
def test_convolutions_commute_with_all_60_rotations(
    float64: None, level: int, directions: int, stride: int
) -> None:
    torch.manual_seed(0)
    conv = HexGroupConv(Atlas(level), FIELDS, 4, directions, stride)
    x = random_field(level, directions)
    with torch.no_grad():
        out = conv(x)
        assert out.shape == (10 * 4 ** (level - stride + 1) + 2 - CORNERS, BATCH, 6, 4)
        for turn, out_turn in zip(turns(level), turns(level - stride + 1), strict=True):
            got, want = conv(turn.field(x)), out_turn.field(out)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    assert out.std() > 0.1


def test_every_layer_of_the_network_commutes_with_all_60_rotations(float64: None) -> None:
    """Each after all those before it, down to the 30 vertices of level 1."""
    model, level = trained_statistics(IcosahedralCNN, 4), 4
    field = signals(1, level)[:, :, CORNERS:].permute(2, 0, 1)[:, :, None]
    by_vertices = {len(t[0].image) - CORNERS: t for t in map(turns, range(1, 5))}
    turned = [turn.field(field) for turn in by_vertices[len(field)]]
    vertices = []
    with torch.no_grad():
        stacked = torch.cat(turned, dim=1)  # the 60 as one batch
        for layer in model.features:
            field, stacked = layer(field), layer(stacked)
            for k, turn in enumerate(by_vertices[len(field)]):
                torch.testing.assert_close(
                    stacked[:, k : k + 1], turn.field(field), rtol=0, atol=1e-9
                )
            vertices.append(len(field))
    assert vertices == [2550] * 3 + [630] * 6 + [150] * 6 + [30] * 6


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_network_is_invariant_to_all_60_rotations(float64: None, level: int) -> None:
    model, x = trained_statistics(IcosahedralCNN, level), signals(2, level)
    with torch.no_grad():
        out = model(x)
        turned = model(torch.cat([turn.signal(x) for turn in turns(level)]))
        torch.testing.assert_close(turned, out.repeat(60, 1), rtol=0, atol=1e-9)
    assert (out[0] - out[1]).abs().min() > 1e-3  # it does tell signals apart


def test_the_network_is_not_invariant_to_all_symmetries_of_the_mesh(float64: None) -> None:
    model, x = trained_statistics(IcosahedralCNN, 3), signals(3, 3)
    vertices = Icosphere(3).vertices
    mirrored = cKDTree(vertices).query(vertices * [1, -1, 1])[1]
    with torch.no_grad():
        assert (model(x[:, :, mirrored]) - model(x)).abs().max() > 1e-3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("directions", [1, 6])
def test_inside_a_chart_it_is_a_planar_hexagonal_convolution(
    float64: None, directions: int, stride: int
) -> None:
    """A 3 x 3 kernel with two opposite corners masked, turned once more for each output
    direction while its input directions are shifted."""
    torch.manual_seed(0)
    atlas = Atlas(3)
    conv = HexGroupConv(atlas, FIELDS, 4, directions, stride)
    arms = conv.weight.detach().view(7, directions, 4, FIELDS)
    kernel = torch.zeros(6, 4, directions, FIELDS, 3, 3)
    for k in range(6):
        for m in range(directions):
            kernel[k, :, m, :, 1, 1] = arms[0, (m - k) % directions]
            for d in range(6):
                down, right = STEPS[(d + k) % 6]
                kernel[k, :, m, :, 1 + down, 1 + right] = arms[1 + d, (m - k) % directions]
    x = random_field(3, directions)
    padded = torch.cat([torch.zeros(CORNERS, *x.shape[1:]), x])
    chart = padded[atlas.pixels[2]].permute(2, 3, 4, 0, 1).flatten(1, 2)  # (B, m C, rows, columns)
    plane = F.conv2d(chart, kernel.flatten(2, 3).flatten(0, 1))
    plane = (plane + conv.bias.repeat(6)[:, None, None]).unflatten(1, (6, 4)).permute(3, 4, 0, 1, 2)
    kept = atlas.pixels[2][1:-1, 1:-1]
    found = (kept >= CORNERS) & (kept < conv(x).shape[0] + CORNERS)
    assert found.sum() == (14 * 6 if stride == 1 else 7 * 3)
    torch.testing.assert_close(conv(x)[kept[found] - CORNERS], plane[found])


def test_what_stands_at_the_corners_does_not_matter() -> None:
    model, x = trained_statistics(IcosahedralCNN, 2), signals(2, 2)
    other = x.clone()
    other[:, :, :CORNERS] += 1
    assert torch.equal(model(other), model(x))


def test_norm_has_one_mean_and_variance_for_each_field() -> None:
    x = 3 * random_field(2, 6) + torch.arange(FIELDS)
    out = FieldNorm(FIELDS)(x)
    torch.testing.assert_close(out.mean(dim=(0, 1, 2)), torch.zeros(FIELDS), rtol=0, atol=1e-5)
    var = out.var(dim=(0, 1, 2), unbiased=False)
    torch.testing.assert_close(var, torch.ones(FIELDS), rtol=0, atol=1e-4)
    scale = out[0, 0, 1:] - out[0, 0, :1], x[0, 0, 1:] - x[0, 0, :1]
    ratio = scale[0] / scale[1]  # directions differ as before, up to a factor for each field
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


def test_initialisation_keeps_the_size_of_fields(float64: None) -> None:
    """He's: rectified fields of mean square 1 become fields of mean square 2, so that what ReLU
    leaves of them has mean square 1 again."""
    torch.manual_seed(0)
    conv = HexGroupConv(Atlas(3), 32, 64)
    x = torch.randn(630, 2, 6, 32).relu() * np.sqrt(2)
    away = (Atlas(3).neighbours[CORNERS:] >= CORNERS).all(axis=1)
    with torch.no_grad():
        assert conv(x)[away].square().mean().item() == pytest.approx(2, rel=0.1)
        assert not conv.bias.any()


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    assert_every_parameter_learns(IcosahedralCNN(2), 2)


def test_state_dict_holds_no_geometry_and_loads_at_another_level() -> None:
    file = io.BytesIO()
    torch.save(trained_statistics(IcosahedralCNN, 2).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    statistics = 2 * (184 + 64 + 64 + 32) + 10  # and 10 step counters
    assert sum(v.numel() for v in state.values()) == 182_218 + statistics
    IcosahedralCNN(3).load_state_dict(state)


@pytest.mark.parametrize("level", [-1, 0])
def test_too_coarse_a_level_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=rf"level must be at least 1, not {level}$"):
        IcosahedralCNN(level)


@pytest.mark.parametrize("shape", [(2, 1, 42), (2, 3, 162), (2, 162)])
def test_inputs_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 1, 162\)"):
        IcosahedralCNN(2)(torch.zeros(shape))
