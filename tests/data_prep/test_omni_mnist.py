"""Oracles: rays cut by the tangent plane, single pixels, scipy's interpolation, symmetries of the
lat-lon grid, moments of the random frames."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats

from data_prep.grids import grid_points
from data_prep.mnist import SIZE
from data_prep.omni_mnist import EDGE, gnomonic, tangent_frames
from data_prep.spherical_mnist import (
    haar_rotations,
    prepare,
    sample_omni,
    sample_rotated,
    to_bytes,
)
from data_prep.synthetic_digits import synthetic_digits

DIGITS = synthetic_digits(60, 30, seed=3)
NOISE = np.random.default_rng(1).integers(0, 256, (4, 28, 28), dtype=np.uint8)
GRID = grid_points("latlon30")


def frame(latitude: float, longitude: float, mirrored: bool = False) -> np.ndarray:
    """Rows: the tangent point, the image's right, its upward direction; from degrees."""
    p, a = np.radians([latitude, longitude])
    point = np.array([np.cos(p) * np.cos(a), np.cos(p) * np.sin(a), np.sin(p)])
    up = np.array([-np.sin(p) * np.cos(a), -np.sin(p) * np.sin(a), np.cos(p)])
    right = np.cross(up, point)  # east: point, east, north are right-handed
    return np.stack([point, -right if mirrored else right, up])


def random_frames(n: int, seed: int = 0) -> np.ndarray:
    return tangent_frames(n, 60, np.random.default_rng(seed))


def on_grid(images: np.ndarray, frames: np.ndarray) -> np.ndarray:
    return sample_omni(images, frames, GRID).reshape(-1, 60, 60)


@pytest.mark.parametrize(
    ("east", "north", "pixel"),
    [
        (0, 0, (14, 14)),
        (60, 0, (14, 28)),
        (-60, 0, (14, 0)),
        (0, 60, (0, 14)),
        (0, -60, (28, 14)),
        (45, 0, (14, 14 + 14 / np.sqrt(3))),
        (0, 30, (14 - 14 / 3, 14)),
    ],
)
def test_field_of_view_is_120_degrees(east, north, pixel):
    e, n = np.radians([east, north])
    found = gnomonic(np.cos(e) * np.cos(n), np.sin(e), np.sin(n))
    np.testing.assert_allclose(found, pixel, atol=1e-12)


def test_projection_is_the_ray_through_the_point():
    """Independent form: where the line from the centre cuts the plane x = 1."""
    points = np.random.default_rng(2).standard_normal((50, 3))
    points[:, 0] = np.abs(points[:, 0])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for point in points:
        # y e2 + z e3 - s point = -e1
        y, z, _ = np.linalg.solve(np.column_stack([[0, 1, 0], [0, 0, 1], -point]), [-1, 0, 0])
        expected = (14 - 14 * z / np.sqrt(3), 14 + 14 * y / np.sqrt(3))
        np.testing.assert_allclose(gnomonic(*point), expected, atol=1e-8)


def test_nothing_is_seen_behind_the_plane():
    images, frames = np.full((1, 28, 28), 255, np.uint8), frame(10, 20)[None]
    ahead = GRID @ frames[0, 0]
    assert (sample_omni(images, frames, GRID)[0, ahead <= 0] == 0).all()
    horizon = np.array([[0.0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, 0, -1]]) @ frames[0]
    np.testing.assert_array_equal(sample_omni(images, frames, horizon), 0)


def test_a_pixel_is_seen_where_its_ray_meets_the_sphere():
    for given in (frame(0, 0), frame(70, 250), frame(-90, 12), frame(-35, 90, mirrored=True)):
        for row, column in ((14, 14), (3, 20), (27, 0), (9, 9)):
            image = np.zeros((1, 28, 28))
            image[0, row, column] = 255
            right, up = (column - 14) * np.sqrt(3) / 14, (14 - row) * np.sqrt(3) / 14
            ray = given[0] + right * given[1] + up * given[2]
            for step_right, step_up, value in ((0, 0, 255), (1, 0, 0), (0, -1, 0), (0.25, 0, 191)):
                moved = ray + np.sqrt(3) / 14 * (step_right * given[1] + step_up * given[2])
                moved /= np.linalg.norm(moved)
                found = sample_omni(image, given[None], moved[None])[0, 0]
                assert found == pytest.approx(value, abs=0.3)


def test_sampling_agrees_with_scipy():
    frames = random_frames(4)
    padded = np.pad(NOISE.astype(float), ((0, 0), (2, 2), (2, 2)))
    found = sample_omni(NOISE, frames, GRID)
    single = sample_omni(NOISE, frames, GRID.astype(np.float32))
    assert single.dtype == np.float32
    for k in range(4):
        coordinates = np.array(gnomonic(*(frames[k] @ GRID.T))) + 2
        expected = ndimage.map_coordinates(padded[k], coordinates, order=1, mode="constant")
        np.testing.assert_allclose(found[k], expected, atol=1e-9)
        assert np.abs(np.rint(single[k]) - np.rint(expected)).max() <= 1
        assert 0.1 < np.mean(expected > 0) < 0.5


def test_the_digit_reads_from_west_to_east_and_from_north_to_south():
    """On the equator the middle row and column of the grid's image are those of the digit."""
    images = np.zeros((1, 28, 28))
    images[0, 14, 20:] = images[0, :8, 14] = 255  # a bar to the right, a bar above
    seen = on_grid(images, frame(0, 180)[None])[0]
    assert seen[29:31, 36:38].min() > 80 and seen[29:31, 22:24].max() == 0
    assert seen[13:17, 30].min() > 80 and seen[43:47, 30].max() == 0


def test_a_roll_is_a_shift_of_the_columns():
    frames = np.stack([frame(20, 0), frame(20, 6), frame(20, 42), frame(20, 354)])
    images = np.broadcast_to(NOISE[0], (4, 28, 28))
    first, *others = on_grid(images, frames)
    for shift, other in zip((1, 7, 59), others, strict=True):
        np.testing.assert_allclose(other, np.roll(first, shift, axis=1), atol=1e-8)


def test_a_flip_is_a_mirror_image():
    frames = np.stack([frame(20, 0), frame(20, 0, mirrored=True)])
    plain, mirrored = on_grid(np.broadcast_to(NOISE[0], (2, 28, 28)), frames)
    np.testing.assert_allclose(mirrored, np.roll(plain[:, ::-1], 1, axis=1), atol=1e-9)
    assert np.abs(mirrored - plain).max() > 50


def test_frames_are_upright_in_whole_columns_and_mirrored_by_half():
    n = 20_000
    frames = random_frames(n)
    np.testing.assert_allclose(
        frames @ frames.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (n, 3, 3)), atol=1e-12
    )
    point, right, up = frames.transpose(1, 0, 2)
    latitude = np.arcsin(point[:, 2])
    longitude = np.arctan2(point[:, 1], point[:, 0])
    east = np.stack([-np.sin(longitude), np.cos(longitude), 0 * longitude], axis=1)
    mirror = np.sum(east * right, axis=1)
    np.testing.assert_allclose(np.abs(mirror), 1, atol=1e-9)
    assert abs(np.mean(mirror)) < 5 / np.sqrt(n)
    np.testing.assert_allclose(np.cross(point, east), up, atol=1e-9)
    assert (up[:, 2] > 0).all()
    # Uniform in degrees, not on the sphere.
    assert stats.kstest(latitude, stats.uniform(-np.pi / 2, np.pi).cdf).pvalue > 1e-3
    columns = longitude / (2 * np.pi / 60)
    np.testing.assert_allclose(columns, np.rint(columns), atol=1e-8)
    drawn = np.bincount(np.rint(columns).astype(int) % 60, minlength=60)
    assert stats.chisquare(drawn).pvalue > 1e-3


def test_edge_is_the_tangent_of_half_the_field_of_view():
    assert pytest.approx(np.sqrt(3)) == EDGE
    assert SIZE == 28


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(DIGITS, "latlon10", folder, seed=4)
    return folder


def test_lat_lon_grids_have_the_signals_of_omni_mnist(prepared, tmp_path):
    card = json.loads((prepared / "card.json").read_text())
    assert card["omni"]["field_of_view_degrees"] == 120
    names = {"train_Omni.npy": 60, "test_Omni.npy": 30}
    for name, n in names.items():
        array = np.load(prepared / name)
        assert array.shape == (n, 400) and array.dtype == np.uint8 and array.max() > 150
        assert name in card["sha256"]
    for grid in ("icosphere1", "latlon4-dh"):
        other = prepare(DIGITS, grid, tmp_path / grid, seed=4)
        assert "omni" not in other
        assert not [name for name in os.listdir(tmp_path / grid) if "Omni" in name]


def test_prepared_values_are_image_of_gnomonic(prepared):
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(4).spawn(5)]
    points = grid_points("latlon10")
    for part, images, stream in (
        ("train", DIGITS.train_images, streams[3]),
        ("test", DIGITS.test_images, streams[4]),
    ):
        expected = sample_omni(images, tangent_frames(len(images), 20, stream), points)
        found = np.load(prepared / f"{part}_Omni.npy").astype(int)
        assert np.abs(found - np.rint(expected)).max() <= 1


def test_the_rotated_signals_know_nothing_of_omni(prepared):
    """Rotations are drawn from the streams they had before there was Omni-MNIST."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(4).spawn(3)]
    rotations = haar_rotations(60, streams[0])
    expected = to_bytes(sample_rotated(DIGITS.train_images, rotations, grid_points("latlon10")))
    found = np.load(prepared / "train_R.npy").astype(int)
    assert np.abs(found - expected).max() <= 1


def test_same_seed_same_bytes_and_another_seed_other_planes(prepared, tmp_path):
    card = json.loads((prepared / "card.json").read_text())
    assert prepare(DIGITS, "latlon10", tmp_path / "a", seed=4) == card
    other = prepare(DIGITS, "latlon10", tmp_path / "b", seed=5)
    for name in ("train_Omni.npy", "test_Omni.npy"):
        assert other["sha256"][name] != card["sha256"][name]


def test_train_and_test_have_separate_planes(tmp_path):
    twins = DIGITS._replace(test_images=DIGITS.train_images, test_labels=DIGITS.train_labels)
    prepare(twins, "latlon10", tmp_path)
    train, test = (np.load(tmp_path / f"{part}_Omni.npy") for part in ("train", "test"))
    assert (train != test).any(axis=1).mean() > 0.9


def test_planes_do_not_depend_on_the_resolution():
    """But for the rounding of longitudes down to a column."""
    coarse, fine = (tangent_frames(500, n, np.random.default_rng(0)) for n in (30, 60))
    np.testing.assert_array_equal(coarse[:, 0, 2], fine[:, 0, 2])
    cosines = np.sum(coarse[:, 1] * fine[:, 1], axis=1)
    assert cosines.min() >= np.cos(np.radians(6)) - 1e-12
    assert np.mean(cosines > 1 - 1e-12) == pytest.approx(0.5, abs=0.1)


def test_the_published_faults_of_the_other_data_leave_omni_alone(prepared, tmp_path):
    faulty = prepare(DIGITS, "latlon10", tmp_path, 4, rotation_chunk=500, edition="published")
    plain = json.loads((prepared / "card.json").read_text())
    assert faulty["sha256"]["train_Omni.npy"] == plain["sha256"]["train_Omni.npy"]
    assert faulty["sha256"]["train_R.npy"] != plain["sha256"]["train_R.npy"]
