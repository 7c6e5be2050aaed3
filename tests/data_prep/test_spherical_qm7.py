"""Potentials round atoms: closed forms and symmetries."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep import spherical_qm7
from data_prep.__main__ import main
from data_prep.grids import grid_points
from data_prep.qm7 import ELEMENTS, fetch_qm7, load_qm7
from data_prep.spherical_qm7 import least_distance, potentials, prepare
from data_prep.synthetic_molecules import synthetic_molecules
from tests.data_prep.test_qm7 import needs_qm7

POINTS = grid_points("icosphere1")
MOLECULES = synthetic_molecules(10, seed=1)
VARIANTS = [(1, "index"), (2, "index"), (1, "nearest"), (2, "nearest")]


def molecule(k: int = 0) -> tuple[np.ndarray, np.ndarray]:
    present = MOLECULES.charges[k] > 0
    return MOLECULES.positions[k][present].astype(float), MOLECULES.charges[k][present]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("exclusion", ["index", "nearest"])
def test_two_atoms_closed_form(power, exclusion):
    """C at the origin, O at distance d on the z axis: distance^2 = r^2 + d^2 -+ 2 r d cos(beta)."""
    d, r = 2.2, 0.9
    signals = potentials(
        np.array([[0, 0, 0], [0, 0, d]]), np.array([6, 8]), POINTS, r, power, exclusion
    )
    assert signals.shape == (2, 5, len(POINTS))
    carbon, oxygen = ELEMENTS.index(6), ELEMENTS.index(8)
    for atom, element, sign in ((0, oxygen, -1), (1, carbon, 1)):
        distance = np.sqrt(r**2 + d**2 + sign * 2 * r * d * POINTS[:, 2])
        np.testing.assert_allclose(signals[atom, element], 48 / distance**power, rtol=1e-13)
    signals[0, oxygen] = signals[1, carbon] = 0
    assert not signals.any()  # nothing of the other elements, nothing of oneself


def test_the_sum_over_atoms_of_an_element():
    """Two H seen from C add up; from an H, the other one alone."""
    p = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0]])
    signals = potentials(p, np.array([6, 1, 1]), POINTS, 0.5)
    away = [np.linalg.norm(0.5 * POINTS - q, axis=1) for q in p[1:]]
    np.testing.assert_allclose(signals[0, 0], 6 / away[0] + 6 / away[1], rtol=1e-13)
    np.testing.assert_allclose(
        signals[1, 0], 1 / np.linalg.norm(p[1] + 0.5 * POINTS - p[2], axis=1), rtol=1e-13
    )


@pytest.mark.parametrize(("power", "exclusion"), VARIANTS)
def test_moving_turning_and_permuting(power, exclusion):
    p, z = molecule()
    before = potentials(p, z, POINTS, 1.7, power, exclusion)
    turn = Rotation.random(random_state=0).as_matrix()
    moved = potentials(p @ turn.T + [3, -1, 2], z, POINTS @ turn.T, 1.7, power, exclusion)
    np.testing.assert_allclose(moved, before, rtol=1e-9)
    order = np.random.default_rng(0).permutation(len(z))
    np.testing.assert_allclose(
        potentials(p[order], z[order], POINTS, 1.7, power, exclusion), before[order], rtol=1e-12
    )


def test_nearest_is_index_unless_spheres_overlap():
    half = least_distance(MOLECULES) / 2
    differ = 0
    for k in range(10):
        p, z = molecule(k)
        a, b = (potentials(p, z, POINTS, half, 1, kind) for kind in ("index", "nearest"))
        np.testing.assert_array_equal(a, b)
        a, b = (potentials(p, z, POINTS, 2 * half, 1, kind) for kind in ("index", "nearest"))
        differ += not np.allclose(a, b)
    assert differ == 10


def test_nearest_leaves_an_atom_out_of_one_sphere_at_each_point():
    """Against the definition, atom by atom and point by point."""
    p, z = molecule(2)
    signals = potentials(p, z, POINTS, 1.9, 2, "nearest")
    want = np.zeros_like(signals)
    for k, x in enumerate(POINTS):
        distances = np.linalg.norm((p + 1.9 * x)[:, None] - p, axis=-1)  # sphere i, atom j
        for j, near in enumerate(distances.argmin(axis=0)):
            for i in set(range(len(z))) - {near}:
                want[i, ELEMENTS.index(z[j]), k] += float(z[i]) * z[j] / distances[i, j] ** 2
    np.testing.assert_allclose(signals, want, rtol=1e-10)


def test_prepared_files(tmp_path, monkeypatch):
    monkeypatch.setattr(spherical_qm7, "BLOCK", 3)  # and the block size does not matter
    card = prepare(MOLECULES, "icosphere1", tmp_path)
    assert json.loads((tmp_path / "card.json").read_text()) == card
    signals = np.load(tmp_path / "signals.npy", mmap_mode="r")
    with np.load(tmp_path / "molecules.npz") as file:
        first, charges, positions = file["first"], file["charges"], file["positions"]
        np.testing.assert_array_equal(file["energies"], MOLECULES.energies)
        for k, members in enumerate(MOLECULES.folds):
            np.testing.assert_array_equal(np.flatnonzero(file["fold"] == k), members)
    assert signals.dtype == np.float16 and signals.shape == (first[-1], 5, 42)
    assert card["atoms"] == len(charges) == np.count_nonzero(MOLECULES.charges)
    radius = least_distance(MOLECULES) / 2
    assert card["signals"]["radius_bohr"] == radius
    for k in range(10):
        p, z = molecule(k)
        atoms = slice(first[k], first[k + 1])
        np.testing.assert_array_equal(charges[atoms], z)
        np.testing.assert_array_equal(positions[atoms], p.astype(np.float32))
        np.testing.assert_allclose(signals[atoms], potentials(p, z, POINTS, radius), rtol=2**-11)
    assert card["signals"]["largest"] >= signals.max() - 0.1 > card["signals"]["least_positive"]


def test_without_signals_and_other_variants(tmp_path):
    assert prepare(MOLECULES, "none", tmp_path / "none")["signals"] == {}
    assert sorted(p.name for p in (tmp_path / "none").iterdir()) == ["card.json", "molecules.npz"]
    arguments = "--synthetic 10 --seed 1 --power 2 --radius whole --self-exclusion nearest"
    folder = tmp_path / "released"
    assert main(["qm7", *arguments.split(), "--grid", "latlon3-dh", "--out", str(folder)]) == 0
    signals, (p, z) = np.load(folder / "signals.npy"), molecule()
    assert signals.dtype == np.float32
    want = potentials(p, z, grid_points("latlon3-dh"), least_distance(MOLECULES), 2, "nearest")
    np.testing.assert_allclose(signals[: len(z)], want, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"power": 3}, {"radius": 0.9}, {"self_exclusion": "none"}])
def test_unknown_variants_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="power must be 1 or 2"):
        prepare(MOLECULES, "none", tmp_path, **wrong)


def test_a_failed_preparation_leaves_no_card(tmp_path, monkeypatch):
    prepare(MOLECULES, "icosphere1", tmp_path)
    monkeypatch.setattr(spherical_qm7, "potentials", lambda *_: np.full((2, 5, 41), 1.0))
    with pytest.raises(ValueError, match="does not fit"):
        prepare(MOLECULES, "icosphere1", tmp_path)
    assert not (tmp_path / "card.json").exists()


@needs_qm7
@pytest.mark.slow
def test_where_the_released_exclusion_fails(tmp_path):
    """Least distance as published; with whole radius the nearest sphere is another one at about
    35 % of (atom, grid point)."""
    fetch_qm7(tmp_path)
    molecules = load_qm7(tmp_path)
    radius = least_distance(molecules)
    assert radius == pytest.approx(1.8265, abs=1e-4)
    points, other, total = grid_points("latlon10-dh"), 0, 0
    for positions, charges in zip(molecules.positions[::50], molecules.charges[::50], strict=True):
        p = positions[charges > 0].astype(float)
        spheres = p[:, None] + radius * points  # (sphere, point, 3)
        distances = np.linalg.norm(spheres[:, :, None] - p, axis=-1)
        nearest = distances.argmin(axis=0)  # (point, atom)
        other += (nearest != np.arange(len(p))).sum()
        total += nearest.size
    assert other / total == pytest.approx(0.35, abs=0.01)
