"""Oracles: symmetries of grids and images that hold exactly, and numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest

from bench.edition_votes import features, half_turn_test, spread_test, upright
from data_prep.grids import grid_points
from data_prep.spherical_mnist import (
    EDITIONS,
    haar_rotations,
    sample_rotated,
    sampling_matrix,
    to_bytes,
)
from data_prep.synthetic_digits import synthetic_digits

IMAGES = synthetic_digits(40, 1, seed=5).train_images
IDENTITY = np.broadcast_to(np.eye(3), (len(IMAGES), 3, 3))
ROTATIONS = haar_rotations(len(IMAGES), np.random.default_rng(8))


def signals(grid: str, edition: str, rotations: np.ndarray = IDENTITY) -> np.ndarray:
    values = to_bytes(sample_rotated(IMAGES, rotations, grid_points(grid), edition), edition)
    return values / values.max(axis=1, keepdims=True)


@pytest.mark.parametrize("grid", ["icosphere4", "icosphere4-equator", "latlon30", "latlon30-dh"])
def test_half_turn_is_seen_in_the_published_edition_alone(grid):
    found = {edition: half_turn_test(signals(grid, edition), grid) for edition in EDITIONS}
    assert (found["published"].votes == 1).all() and (found["corrected"].votes == -1).all()
    assert all(test.explained.all() for test in found.values())
    own = found["published"].residuals
    assert own["published"].max() < 0.005 and own["published, half turn"].min() > 0.05
    own = found["corrected"].residuals
    assert own["corrected"].max() < 0.005 and own["published"].min() > 0.05
    # A half turn of the signal is one of the image about pixel 14, so the same pixels explain it.
    np.testing.assert_allclose(own["corrected, half turn"], own["corrected"], rtol=0.05)


@pytest.mark.parametrize("edition", EDITIONS)
def test_residual_is_that_of_least_squares(edition):
    grid = "icosphere4"
    points = grid_points(grid)
    tangent = np.hypot(points[:, 0], points[:, 1]) / (1.001 - points[:, 2]) * 2.001
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    x, y = tangent * np.cos(azimuth), tangent * np.sin(azimuth)
    # 12 pixels of 28 of a plane 3 wide; the cap at the north pole is left out.
    used = (np.maximum(abs(x), abs(y)) <= 12 * 3 / 28) & (points[:, 2] < 0.9)
    matrix = (
        sampling_matrix(points[used], edition).toarray() / {"published": 4, "corrected": 1}[edition]
    )
    with_ridge = np.vstack([matrix, 0.01 * np.eye(784)])
    rng = np.random.default_rng(0)
    noisy = np.clip(signals(grid, edition) + 0.1 * rng.standard_normal((40, len(points))), 0, 1)
    samples = noisy[:, used].T
    image = np.linalg.lstsq(with_ridge, np.pad(samples, ((0, 784), (0, 0))))[0]
    left = np.linalg.norm(samples - matrix @ image, axis=0) / np.linalg.norm(samples, axis=0)
    got = half_turn_test(noisy, grid).residuals[edition]
    np.testing.assert_allclose(got, left, rtol=1e-6)
    assert left.min() > 0.02  # not explained: it must not vote
    assert not half_turn_test(noisy, grid).votes.any()


def test_rotated_digits_are_not_upright():
    for edition in EDITIONS:
        assert upright(signals("icosphere4", edition), "icosphere4").all()
        assert not upright(signals("icosphere4", edition), "icosphere4-equator").any()
        rotated = signals("icosphere4", edition, ROTATIONS)
        assert upright(rotated, "icosphere4").mean() < 0.1


def test_features_do_not_see_turns_of_the_grid():
    found = signals("latlon30", "published", ROTATIONS)
    turned = np.roll(found.reshape(-1, 60, 60), 7, axis=2).reshape(found.shape)
    np.testing.assert_allclose(features(turned, "latlon30"), features(found, "latlon30"), atol=1e-9)


def test_features_of_a_constant_and_of_a_harmonic():
    grid = "icosphere4"
    z = grid_points(grid)[:, 2]
    # 0.5 everywhere: all power in degree 0 (shares below 1e-6 are cut), inked area 4 pi, none above
    # 0.5, the mean of the powers 1/2, 1/4, 1/8, 1/16.
    constant = features(np.full((1, len(z)), 0.5), grid)[0]
    np.testing.assert_allclose(constant[:3], [0, np.log(1e-6), np.log(1e-6)], atol=0.1)
    np.testing.assert_allclose(constant[25], np.log(4 * np.pi), atol=1e-9)
    np.testing.assert_allclose(constant[-4:], [1 / 2, 1 / 4, 1 / 8, 1 / 16], atol=1e-9)
    assert (constant[26:30] == pytest.approx(1)) and (constant[31:-4] == 0).all()
    # (1 + z) / 2: its squares integrate to 1/4 and 1/12 in degrees 0 and 1: shares 3/4 and 1/4.
    ramp = features((1 + z[None]) / 2, grid)[0]
    np.testing.assert_allclose(np.exp(ramp[:2]), [3 / 4, 1 / 4], atol=1e-3)
    np.testing.assert_allclose(ramp[30], 0.5 / 0.98, atol=0.02)  # share above 0.5 of that over 0.02


@pytest.mark.parametrize("grid", ["icosphere3", "icosphere4", "latlon30-dh"])
def test_spread_tells_the_editions_of_rotated_digits(grid):
    for edition, vote in (("published", 1), ("corrected", -1)):
        votes = spread_test(signals(grid, edition, ROTATIONS), grid)
        assert (votes == vote).mean() >= 0.9


def test_what_is_no_digit_does_not_vote():
    grid = "icosphere4"
    points = grid_points(grid)
    rng = np.random.default_rng(0)
    caps = (points @ haar_rotations(20, rng)[:, :, 0].T > 0.8).T.astype(float)
    shuffled = signals(grid, "published", ROTATIONS)[:, rng.permutation(len(points))]
    noise = rng.random((20, len(points))) * (rng.random((20, len(points))) < 0.2)
    for strange in (caps, shuffled, noise):
        assert not spread_test(strange, grid).any()
