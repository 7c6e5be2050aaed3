"""Oracles: small cases worked out by hand, and a loop over points and pixels written from the
description of the reference generator alone (Python floats, no arrays)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep import published_edition, spherical_mnist
from data_prep.grids import grid_points
from data_prep.mnist import Digits
from data_prep.spherical_mnist import haar_rotations, prepare, sample_rotated, sampling_matrix
from data_prep.synthetic_digits import synthetic_digits

DIGITS = synthetic_digits(12, 10, seed=3)
NOISE = np.random.default_rng(1).integers(0, 256, (4, 28, 28), dtype=np.uint8)
INKED = NOISE // 2 + 100
"""Ink up to the edge, so that every special case at the edge matters."""


def image_of(ink: dict[tuple[int, int], int]) -> np.ndarray:
    image = np.zeros((1, 28, 28), dtype=np.uint8)
    for pixel, value in ink.items():
        image[0][pixel] = value
    return image


def signal_at(image: np.ndarray, coordinates: list[tuple[float, float]]) -> list[int]:
    row, column = np.array(coordinates, dtype=float).T
    return published_edition.stretch(published_edition.sample(image, row, column))[0].tolist()


def slow_signal(image: np.ndarray, rotation: np.ndarray | None, points: np.ndarray) -> list[int]:
    """One signal as described: project, drop the fraction, weigh i - 1 and i + 1, stretch."""

    def pixel(i: int, j: int) -> float:
        return float(image[i, j]) if 0 <= i < 28 and 0 <= j < 28 else 0.0

    samples = []
    for point in points:
        x, y, z = (float(value) for value in point)
        if rotation is not None:
            x, y, z = (float(a) * x + float(b) * y + float(c) * z for a, b, c in rotation)
        height = z + 1.0
        t = -height / (height - 2.001)
        # The ray starts above the pole, at (0, 0): point + t (point - start).
        r, s = (28.0 * ((t * (q - 0.0) + q - -1.5) / 3.0) for q in (x, y))
        i, j = int(r), int(s)
        before = (i + 1 - r) * pixel(i - 1, j - 1) + (r - (i - 1)) * pixel(i + 1, j - 1)
        after = (i + 1 - r) * pixel(i - 1, j + 1) + (r - (i - 1)) * pixel(i + 1, j + 1)
        samples.append((j + 1 - s) * before + (s - (j - 1)) * after)
    least, greatest = min(samples), max(samples)
    if least == greatest:
        return [0] * len(samples)
    return [math.trunc((value - least) / (greatest - least) * 255) for value in samples]


def test_weights_by_hand():
    # Column 9 is a pixel line: weight 1 on the columns 8 and 10, so both axes are the first one's.
    image = image_of({(4, 8): 200, (6, 8): 104})
    coordinates = [(5.25, 9), (5, 9), (7, 9), (7.75, 9), (4.5, 9)]
    # 5.25: pixel 4 has 6 - 5.25 = 0.75, pixel 6 has 5.25 - 4 = 1.25: 150 + 130 = 280.
    # 5: on a line, 1 and 1: 304. 7: pixels 6 and 8, 1 and 1: 104.
    # 7.75: pixel 6 has 8 - 7.75 = 0.25: 26. 4.5: pixels 3 and 5: 0.
    # Times 255 / 304: 234.87, 255, 87.24, 21.81, 0.
    assert signal_at(image, coordinates) == [234, 255, 87, 21, 0]


def test_edges_by_hand():
    image = image_of({(0, 8): 80, (1, 8): 120, (26, 8): 200, (27, 8): 60})
    rows = [-0.5, -1.5, -1, -2.5, 0, 25, 27.5, 28.25, 29.5]
    # -0.5: i = 0 (the fraction is dropped), pixel 1 has -0.5 + 1 = 0.5: 60.
    # -1.5: i = -1, pixel 0 has -1.5 + 2 = 0.5: 40. -1: i = -1, pixel 0 has 1: 80.
    # -2.5: i = -2, pixels -3 and -1 are outside: 0. 0: pixel 1 has 1: 120.
    # 25: pixels 24 and 26, 1 and 1: 200. 27.5: pixel 26 has 28 - 27.5 = 0.5: 100.
    # 28.25: pixel 27 has 29 - 28.25 = 0.75: 45. 29.5: pixels 28 and 30 are outside: 0.
    # Times 255 / 200: 76.5, 51, 102, 0, 153, 255, 127.5, 57.375, 0.
    expected = [76, 51, 102, 0, 153, 255, 127, 57, 0]
    assert signal_at(image, [(r, 9) for r in rows]) == expected
    turned = image.transpose(0, 2, 1)
    assert signal_at(turned, [(9, r) for r in rows]) == expected


def test_both_axes_by_hand():
    image = image_of({(4, 20): 100, (6, 22): 40})
    # (5.25, 21.5): column 20 has 22 - 21.5 = 0.5 and holds 0.75 * 100 = 75, column 22 has
    # 21.5 - 20 = 1.5 and holds 1.25 * 40 = 50: 37.5 + 75 = 112.5. (5, 21): 140.
    # (5.25, 23): column 22 has 1: 50. (0, 0): 0. Times 255 / 140: 204.9, 255, 91.07, 0.
    assert signal_at(image, [(5.25, 21.5), (5, 21), (5.25, 23), (0, 0)]) == [204, 255, 91, 0]


def test_poles_and_a_ray_by_hand():
    image = image_of({(13, 13): 91, (15, 15): 30, (4, 13): 200})
    # Both poles are at (14, 14), a crossing of pixel lines: 91 + 30 = 121.
    # Row 5.25, column 14 is at q = 3 * 5.25 / 28 - 1.5 = -0.9375 of the plane; pixel 4 has
    # 0.75: 150. The ray from there to (0, 0, 2.001) is (s q, 0, 2.001 (1 - s)); it leaves the
    # sphere around (0, 0, 1) twice: (s q)^2 + (1.001 - 2.001 s)^2 = 1. The greater s is a point
    # of the lower half, the lesser one is in the cap at the north pole.
    q = -0.9375
    a, b, c = q**2 + 2.001**2, -2 * 2.001 * 1.001, 1.001**2 - 1
    root = math.sqrt(b**2 - 4 * a * c)
    ray = [(s * q, 0.0, 1.001 - 2.001 * s) for s in ((-b + root) / (2 * a), (-b - root) / (2 * a))]
    assert ray[0][2] < 0 and ray[1][2] > 0.99
    # (0, 0.8, 0.6) is outside the image: 0. Times 255 / 150: 205.7, 255, 0.
    points = np.array([(0, 0, -1), (0, 0, 1), *ray, (0, 0.8, 0.6)])
    samples = sample_rotated(image, np.eye(3)[None], points, "published")
    np.testing.assert_allclose(samples, [[121, 121, 150, 150, 0]], atol=1e-9)
    assert published_edition.stretch(samples[:, [0, 1, 2, 4]]).tolist() == [[205, 205, 255, 0]]


def test_bytes_are_truncated():
    samples = np.array([[0, 254.99, 255, 1.999], [3, 3, 3, 3], [-2, -1, 0, 2]])
    expected = [[0, 254, 255, 1], [0, 0, 0, 0], [0, 63, 127, 255]]
    np.testing.assert_array_equal(published_edition.stretch(samples), expected)


@pytest.mark.parametrize("grid", ["latlon10-dh", "latlon10", "icosphere3", "icosphere3-equator"])
@pytest.mark.parametrize("chunk", [1, 500])
def test_prepared_arrays_are_those_of_the_description(tmp_path, monkeypatch, grid, chunk):
    images = np.concatenate([INKED, DIGITS.test_images[:2], 0 * INKED[:1]])
    labels = np.zeros(len(images), dtype=np.uint8)
    turns = haar_rotations(len(images), np.random.default_rng(6), chunk)
    monkeypatch.setattr(spherical_mnist, "haar_rotations", lambda n, rng, chunk: turns)
    monkeypatch.setattr(spherical_mnist, "BLOCK_VALUES", 1000)  # several blocks
    digits = Digits(images, labels, images, labels, "noise", {})
    prepare(digits, grid, tmp_path, rotation_chunk=chunk, edition="published")
    points = grid_points(grid)
    upright, rotated = (np.load(tmp_path / f"test_{variant}.npy") for variant in "NR")
    for k, image in enumerate(images):
        assert upright[k].tolist() == slow_signal(image, None, points)
        assert rotated[k].tolist() == slow_signal(image, turns[k], points)


def test_all_of_the_generators_own_grid():
    points = grid_points("latlon30-dh")
    row, column = published_edition.project(*points.T)
    assert (row == np.trunc(row)).sum() > 60 and ((row > -1) & (row < 0)).sum() > 20
    got = published_edition.stretch(published_edition.sample(INKED[:1], row, column))
    assert got[0].tolist() == slow_signal(INKED[0], None, points)
    # The north pole is 60 points of it, which all read the middle of the image.
    assert len(set(got[0, :60].tolist())) == 1 and got[0, 0] > 0


def test_matrix_gives_the_same_samples():
    points = np.vstack([grid_points("icosphere3"), grid_points("latlon10-dh")])
    identity = np.broadcast_to(np.eye(3), (4, 3, 3))
    samples = sample_rotated(INKED, identity, points, "published")
    flat = INKED.reshape(4, -1).T.astype(float)
    matrix = sampling_matrix(points, "published")
    np.testing.assert_allclose((matrix @ flat).T, samples, atol=1e-9)
    row, column = published_edition.project(*points.T)
    inside = (abs(row - 14) < 12) & (abs(column - 14) < 12)
    np.testing.assert_allclose(matrix.sum(axis=1)[inside], 4)  # twice the weight on each axis


def test_points_are_rotated_not_the_digit_turned_back():
    about_z = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    points = grid_points("icosphere3")
    got = sample_rotated(INKED[:1], about_z[None], points, "published")
    x, y, z = points.T
    expected = published_edition.sample(INKED[:1], *published_edition.project(-y, x, z))
    away_from_lines = np.abs(np.stack(published_edition.project(-y, x, z)) % 1 - 0.5) < 0.499
    inside = away_from_lines.all(axis=0)
    np.testing.assert_allclose(got[:, inside], expected[:, inside], atol=1e-8)
    assert inside.mean() > 0.9
