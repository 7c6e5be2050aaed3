"""Oracles: the vertices' positions on the sphere, and closed forms of what lies across a border."""

from __future__ import annotations

import numpy as np
import pytest

from baselines.charts import CORNERS, DOWN, DOWN_LEFT, LEFT, POLES, RIGHT, STEPS, UP, Atlas
from pdo.frames import east_north_frames, transport_angles
from pdo.mesh import Icosphere

LEVELS = (0, 1, 2, 3, 4)
levels = pytest.mark.parametrize("level", LEVELS)
K = np.arange(5)
PREVIOUS = (K - 1) % 5


def azimuths(atlas: Atlas, vertex: np.ndarray) -> np.ndarray:
    """Counter-clockwise from east, the angles at which the six neighbours are seen, (n, 6)."""
    frames = east_north_frames(atlas.mesh.vertices[vertex])
    to = atlas.mesh.vertices[atlas.neighbours[vertex]]
    return np.arctan2(
        np.einsum("nmd,nd->nm", to, frames[..., 1]), np.einsum("nmd,nd->nm", to, frames[..., 0])
    )


def wrapped(angle: np.ndarray) -> np.ndarray:
    """The angle in -pi..pi."""
    return np.angle(np.exp(1j * angle))


def inner(atlas: Atlas) -> np.ndarray:
    return np.arange(CORNERS, len(atlas.mesh))


@levels
def test_charts_cover_every_vertex_but_the_poles_once(level: int) -> None:
    atlas = Atlas(level)
    assert atlas.pixels.shape == (5, 2 * 2**level, 2**level)
    covered = np.sort(atlas.pixels.ravel())
    np.testing.assert_array_equal(covered, np.delete(np.arange(len(atlas.mesh)), POLES))
    np.testing.assert_allclose(atlas.mesh.vertices[list(POLES)], [[0, 0, 1], [0, 0, -1]])


@levels
def test_corners_of_the_charts_lie_where_the_drawing_has_them(level: int) -> None:
    """N, U_k at longitude 72 k degrees and latitude arctan 1/2, L_k 36 degrees east of it."""
    atlas, w = Atlas(level), 2**level

    def ring(k: np.ndarray, lower: bool) -> np.ndarray:
        longitude, z = np.radians(72 * k + 36 * lower), -1 if lower else 1
        points = [2 * np.cos(longitude), 2 * np.sin(longitude), np.full(5, z)]
        return np.column_stack(points) / np.sqrt(5)

    at = atlas.mesh.vertices[atlas.grid]
    np.testing.assert_allclose(at[:, 0, 0], np.tile([0, 0, 1], (5, 1)), atol=1e-15)
    np.testing.assert_allclose(at[:, 2 * w, w], np.tile([0, 0, -1], (5, 1)), atol=1e-15)
    np.testing.assert_allclose(at[:, w, 0], ring(K, False), atol=1e-15)
    np.testing.assert_allclose(at[:, 0, w], ring(K + 1, False), atol=1e-15)
    np.testing.assert_allclose(at[:, w, w], ring(K, True), atol=1e-15)
    np.testing.assert_allclose(at[:, 2 * w, 0], ring(K - 1, True), atol=1e-15)


@levels
def test_inside_a_chart_the_neighbours_are_those_of_the_grid(level: int) -> None:
    atlas, w = Atlas(level), 2**level
    seen = 0
    for row in range(1, 2 * w + 1):
        for column in range(w):
            for direction, (down, right) in enumerate(STEPS):
                r, c = row + down, column + right
                if 0 <= r <= 2 * w and 0 <= c <= w:
                    found = atlas.neighbours[atlas.grid[:, row, column], direction]
                    np.testing.assert_array_equal(found, atlas.grid[:, r, c])
                    seen += 1
    assert seen == 6 * 2 * w * w - (2 * 2 * w + 2 * w - 1)  # two cross the left and lower borders


@levels
def test_padding_in_closed_form(level: int) -> None:
    """What lies across the left and the lower border of chart k, in chart k - 1 (the paper's
    padding; the other two borders are rows of chart k - 1 itself, see the test below)."""
    atlas, w = Atlas(level), 2**level
    before = atlas.grid[PREVIOUS]
    for row in range(1, 2 * w + 1):
        left = before[:, 1, row - 1] if row <= w else before[:, row - w, w - 1]
        found = atlas.neighbours[atlas.grid[:, row, 0]]
        np.testing.assert_array_equal(found[:, LEFT], left)
        below = before[:, 1, row] if row < w else before[:, row + 1 - w, w - 1]
        if row < 2 * w:  # the last one is a corner, where down-left and left are the same
            np.testing.assert_array_equal(found[:, DOWN_LEFT], below)
    for column in range(w):
        found = atlas.neighbours[atlas.grid[:, 2 * w, column]]
        np.testing.assert_array_equal(found[:, DOWN], before[:, w + column + 1, w - 1])
        if column > 0:
            np.testing.assert_array_equal(found[:, DOWN_LEFT], before[:, w + column, w - 1])


@levels
def test_borders_are_shared(level: int) -> None:
    """The first row and the last column of chart k are the first column and last row of k + 1."""
    atlas, w = Atlas(level), 2**level
    after = atlas.grid[(K + 1) % 5]
    np.testing.assert_array_equal(atlas.grid[:, 0], after[:, : w + 1, 0])
    np.testing.assert_array_equal(atlas.grid[:, : w + 1, w], after[:, w:, 0])
    np.testing.assert_array_equal(atlas.grid[:, w:, w], after[:, 2 * w])


@levels
def test_both_poles_are_reached_from_their_five_neighbours_only(level: int) -> None:
    atlas = Atlas(level)
    for pole, direction in zip(POLES, (UP, RIGHT), strict=True):
        vertex, leads = np.nonzero(atlas.neighbours == pole)
        np.testing.assert_array_equal(vertex, np.sort(atlas.mesh.adjacency[[pole]].indices))
        assert set(leads) == {direction}
        assert (atlas.neighbours[pole] == -1).all()


@levels
def test_neighbours_are_those_of_the_mesh_each_once(level: int) -> None:
    atlas = Atlas(level)
    for vertex in atlas.pixels.ravel():
        found, expected = atlas.neighbours[vertex], atlas.mesh.adjacency[[vertex]].indices
        assert set(found) == set(expected)
        if vertex < CORNERS:
            assert len(expected) == 5 and found[LEFT] == found[DOWN_LEFT]
        else:
            assert len(expected) == 6


@levels
def test_neighbours_go_counter_clockwise_once_round(level: int) -> None:
    atlas = Atlas(level)
    around = azimuths(atlas, atlas.pixels.ravel())
    steps = wrapped(np.roll(around, -1, axis=1) - around)
    corner = atlas.pixels.ravel() < CORNERS
    assert (steps[~corner] > np.radians(40)).all() and (steps[~corner] < np.radians(80)).all()
    np.testing.assert_allclose(steps[corner][:, LEFT], 0, atol=1e-12)  # left is also down-left
    np.testing.assert_allclose(np.delete(steps[corner], LEFT, axis=1), np.radians(72))
    np.testing.assert_allclose(steps.sum(axis=1), 2 * np.pi)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_opposite_directions_are_opposite_on_the_sphere(level: int) -> None:
    """Every direction of every vertex of six neighbours, so every border of every chart: it leads
    to that neighbour which lies most nearly opposite the neighbour in the opposite direction."""
    atlas = Atlas(level)
    around = azimuths(atlas, inner(atlas))
    for direction in range(6):
        opposite = around[:, [(direction + 3) % 6]] + np.pi
        nearest = np.argmin(np.abs(wrapped(around - opposite)), axis=1)
        assert (nearest == direction).all()


@pytest.mark.parametrize("level", LEVELS[1:])
def test_ahead_and_back(level: int) -> None:
    """One step in direction d and one in direction d + 3, turned, leads back."""
    atlas = Atlas(level)
    for vertex in inner(atlas):
        for direction in range(6):
            ahead, turn = atlas.neighbours[vertex, direction], atlas.turns[vertex, direction]
            if ahead < CORNERS:
                assert turn == 0
                assert ahead in POLES or vertex in atlas.neighbours[ahead]
            else:
                back = (direction + 3 + turn) % 6
                assert atlas.neighbours[ahead, back] == vertex
                assert (atlas.turns[ahead, back] + turn) % 6 == 0


@pytest.mark.parametrize("level", LEVELS[1:])
def test_turns_are_parallel_transport(level: int) -> None:
    """Direction m, carried along the geodesic to a neighbour, lies within 30 degrees of direction
    m + turn there: nearer to it than to any other."""
    atlas = Atlas(level)
    frames = east_north_frames(atlas.mesh.vertices)
    for direction in range(6):
        vertex = inner(atlas)
        ahead = atlas.neighbours[vertex, direction]
        vertex, ahead = vertex[ahead >= CORNERS], ahead[ahead >= CORNERS]
        carried = azimuths(atlas, vertex) + transport_angles(frames[ahead], frames[vertex])[:, None]
        same = (np.arange(6) + atlas.turns[vertex, direction][:, None]) % 6
        found = np.take_along_axis(azimuths(atlas, ahead), same, axis=1)
        assert np.abs(wrapped(found - carried)).max() < np.radians(30)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_directions_turn_only_where_charts_meet_at_an_angle(level: int) -> None:
    """These are the ten borders from a pole to the nearest ring, of W - 1 inner vertices each, with
    two edges across from each; the other borders and the insides are flat."""
    counts = np.bincount(Atlas(level).turns.ravel(), minlength=6)
    crossings = 20 * (2**level - 1)
    np.testing.assert_array_equal(counts[1:], [crossings, 0, 0, 0, crossings])


@levels
def test_the_atlas_of_a_coarser_mesh_is_every_second_pixel(level: int) -> None:
    """With the same directions: two steps on the fine mesh are one on the coarse."""
    coarse, fine = Atlas(level), Atlas(level + 1)
    np.testing.assert_array_equal(coarse.pixels, fine.pixels[:, 1::2, ::2])
    for vertex in range(CORNERS, len(coarse.mesh)):
        middle = fine.neighbours[vertex]
        onwards = (np.arange(6) + fine.turns[vertex]) % 6
        np.testing.assert_array_equal(fine.neighbours[middle, onwards], coarse.neighbours[vertex])


def test_turning_the_sphere_by_72_degrees_moves_each_chart_to_the_next() -> None:
    atlas = Atlas(3)
    c, s = np.cos(2 * np.pi / 5), np.sin(2 * np.pi / 5)
    turned = atlas.mesh.vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        atlas.mesh.vertices[np.roll(atlas.grid, -1, axis=0)], turned[atlas.grid], atol=1e-14
    )


@pytest.mark.parametrize("level", [-1, 8, 2.0])
def test_levels_out_of_range_are_refused(level: object) -> None:
    with pytest.raises(ValueError, match="icosphere level must be an integer"):
        Atlas(level)


def test_corners_come_first() -> None:
    np.testing.assert_array_equal(Icosphere(3).vertices[:CORNERS], Icosphere(0).vertices)
