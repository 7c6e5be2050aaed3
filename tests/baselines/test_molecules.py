"""Oracles: potentials of molecules moved as a whole, numpy's least squares, pinned counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from baselines.ffs2cnn_molecules import MoleculeFFS2CNN
from baselines.molecules import ELEMENTS, AtomSum, Molecules
from baselines.pdo_molecules import MoleculePDOeS2CNN
from baselines.s2cnn_molecules import Lift, Lower, MoleculeS2CNN
from data_prep.grids import grid_points
from pdo.frames import icosahedral_rotations
from pdo.precision import default_dtype
from tests.baselines.helpers import assert_gradients

RADIUS = 0.913
NETWORKS = {
    "PDO-eS2CNN": (MoleculePDOeS2CNN, "icosphere2", 324_565),
    "FFS2CNN": (MoleculeFFS2CNN, "latlon10", 1_050_937),
    "S2CNN": (MoleculeS2CNN, "latlon10", 1_510_281),
}
PARAMS = ["PDO-eS2CNN", "FFS2CNN", pytest.param("S2CNN", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


@pytest.fixture(scope="module", params=PARAMS)
def network(request, float64: None) -> tuple[AtomSum, str]:
    """In eval mode, with a composition and moved statistics; and the grid."""
    build, grid, _ = NETWORKS[request.param]
    torch.manual_seed(0)
    model = build()
    training = molecules(range(8), grid)  # with all elements
    model.weights.copy_(torch.tensor([-60.0, -170, -110, -100, -80]))
    model.scale.fill_(20)
    for layer in model.modules():
        if hasattr(layer, "momentum"):
            layer.momentum = 0.8
    for _ in range(2):
        model(training)
    return model.eval(), grid


def molecule(seed: int, atoms: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Charges and positions: atoms at least 1.9 Bohr apart, in a cube that they fill."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-3, 3, (1, 3))
    while len(positions) < atoms:
        new = rng.uniform(-3, 3, 3)
        if np.linalg.norm(positions - new, axis=1).min() > 1.9:
            positions = np.vstack([positions, new])
    return rng.choice(ELEMENTS, atoms), positions


def potentials(charges: np.ndarray, positions: np.ndarray, points: np.ndarray) -> np.ndarray:
    """sum over j != i of that element, of z_i z_j / |p_i + r x - p_j|: (atoms, 5, points)."""
    found = np.zeros((len(charges), len(ELEMENTS), len(points)))
    for i, center in enumerate(positions):
        for j, other in enumerate(positions):
            if i != j:
                distance = np.linalg.norm(center + RADIUS * points - other, axis=1)
                found[i, ELEMENTS.index(charges[j])] += charges[i] * charges[j] / distance
    return found


def batch(parts: list[tuple[np.ndarray, np.ndarray]], grid: str) -> Molecules:
    points = grid_points(grid)
    charges = np.concatenate([z for z, _ in parts])
    return Molecules(
        signals=torch.from_numpy(np.concatenate([potentials(*part, points) for part in parts])),
        molecule=torch.from_numpy(np.repeat(np.arange(len(parts)), [len(z) for z, _ in parts])),
        charges=torch.from_numpy(charges),
        positions=torch.from_numpy(np.concatenate([p for _, p in parts])),
        counts=torch.tensor([[float((z == e).sum()) for e in ELEMENTS] for z, _ in parts]),
    )


def molecules(seeds: range, grid: str) -> Molecules:
    return batch([molecule(seed, atoms=3 + seed % 3) for seed in seeds], grid)


def energies(network: tuple[AtomSum, str], parts: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    model, grid = network
    with torch.no_grad():
        return model(batch(parts, grid))


PARTS = [molecule(10), molecule(11, 3)]


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters(name: str) -> None:
    build, _, count = NETWORKS[name]
    assert sum(p.numel() for p in build().parameters()) == count


def test_molecules_differ(network: tuple[AtomSum, str]) -> None:
    """By more than their composition does."""
    model, _ = network
    z, p = PARTS[0]
    stretched, at_rest = energies(network, [(z, 1.2 * p), (z, p)])
    assert (stretched - at_rest).abs() > 1e-3 * model.scale


def test_permuted_atoms(network: tuple[AtomSum, str]) -> None:
    order = np.random.default_rng(0).permutation(4)
    z, p = PARTS[0]
    at_rest, moved = energies(network, [(z, p)]), energies(network, [(z[order], p[order])])
    torch.testing.assert_close(moved, at_rest, rtol=1e-12, atol=0)


def test_translated_molecules(network: tuple[AtomSum, str]) -> None:
    parts = [(z, p + np.array([3.0, -20.0, 7.0])) for z, p in PARTS]
    torch.testing.assert_close(
        energies(network, parts), energies(network, PARTS), rtol=1e-11, atol=0
    )


def test_rotated_by_the_icosahedron() -> None:
    """Exact for PDO-eS2CNN."""
    torch.manual_seed(0)
    model = MoleculePDOeS2CNN().eval()
    at_rest = energies((model, "icosphere2"), PARTS)
    for rotation in icosahedral_rotations()[1::7]:
        parts = [(z, p @ rotation.T) for z, p in PARTS]
        moved = energies((model, "icosphere2"), parts)
        torch.testing.assert_close(moved, at_rest, rtol=0, atol=1e-10)


@pytest.mark.parametrize("network", PARAMS[1:], indirect=True)
def test_rotated(network: tuple[AtomSum, str]) -> None:
    """Harmonic networks, up to what grids and band limits lose: far less than a stretch by a tenth
    changes."""
    at_rest = energies(network, PARTS)
    change = (energies(network, [(z, 1.1 * p) for z, p in PARTS]) - at_rest).abs().max()
    for seed in range(2):
        rotation = Rotation.random(random_state=seed)
        moved = energies(network, [(z, rotation.apply(p)) for z, p in PARTS])
        assert (moved - at_rest).abs().max() < 0.05 * change


def test_molecules_of_a_batch_are_independent(network: tuple[AtomSum, str]) -> None:
    """Whatever shares the batch with them, larger molecules too: there is no padding."""
    together = energies(network, [*PARTS, molecule(12, 6)])
    for part, expected in zip(PARTS, together, strict=False):
        alone = energies(network, [part])
        torch.testing.assert_close(alone[0], expected, rtol=1e-12, atol=0)


def test_sum_over_atoms(network: tuple[AtomSum, str]) -> None:
    """The same atoms twice in a molecule: twice the pooled vector."""
    model, grid = network
    one = batch(PARTS[:1], grid)
    two = Molecules(
        signals=torch.cat([one.signals, one.signals]),
        molecule=torch.zeros(8, dtype=torch.int64),
        charges=torch.cat([one.charges, one.charges]),
        positions=torch.cat([one.positions, one.positions + 1e3]),
        counts=2 * one.counts,
    )
    with torch.no_grad():
        torch.testing.assert_close(model.invariants(two), 2 * model.invariants(one))


def test_every_parameter_gets_a_gradient(network: tuple[AtomSum, str]) -> None:
    model, grid = network
    model(batch(PARTS, grid)).sum().backward()
    assert_gradients(model)
    model.zero_grad()


class Nothing(nn.Module):
    """No features at all."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 0)


def test_fit_is_the_regression_on_the_composition() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 8, (50, 5)).astype(float)
    energy = counts @ [-60.0, -170, -110, -100, -80] - 5 + rng.normal(0, 10, 50)
    design = np.column_stack([counts, np.ones(50)])
    expected = np.linalg.lstsq(design, energy)[0]
    model = AtomSum(Nothing(), 0)
    empty = torch.zeros(0, dtype=torch.int64)
    data = Molecules(None, empty, empty, torch.zeros(0, 3), torch.from_numpy(counts))
    model.fit(data, torch.from_numpy(energy))
    np.testing.assert_allclose(model.weights, expected[:5])
    np.testing.assert_allclose(model.constant, expected[5])
    np.testing.assert_allclose(model.scale, (energy - design @ expected).std())

    nn.init.zeros_(model.psi[-1].weight), nn.init.zeros_(model.psi[-1].bias)
    found = model.eval()(batch(PARTS, "icosphere2"))
    torch.testing.assert_close(
        found, batch(PARTS, "icosphere2").counts @ model.weights + model.constant
    )


def test_fit_without_an_element() -> None:
    """Sulphur is missing from the training molecules: its weight is 0."""
    rng = np.random.default_rng(0)
    counts = np.pad(rng.integers(0, 8, (50, 4)).astype(float), [(0, 0), (0, 1)])
    model = AtomSum(Nothing(), 0)
    empty = torch.zeros(0, dtype=torch.int64)
    data = Molecules(None, empty, empty, torch.zeros(0, 3), torch.from_numpy(counts))
    model.fit(data, torch.from_numpy(counts @ [-60.0, -170, -110, -100, 0] - 5))
    np.testing.assert_allclose(model.weights, [-60.0, -170, -110, -100, 0], atol=1e-9)


def test_charges_are_divided_out() -> None:
    """An atom's signal of unit charges 1 / distance reaches the network."""
    seen = []

    class Spy(Nothing):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    z, p = np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, 2.5]])
    AtomSum(Spy(), 0).eval()(batch([(z, p)], "icosphere2"))
    points = grid_points("icosphere2")
    expected = 1 / np.linalg.norm(RADIUS * points - p[1], axis=1)
    np.testing.assert_allclose(seen[0][0, 0], expected)
    assert not seen[0][0, 1:].any()


def test_shortcuts_of_the_same_signal_agree() -> None:
    """A signal on the sphere lifted, then lowered with channels as they are, is still f(R e_z)."""
    torch.manual_seed(0)
    lift, lower = Lift(8, 2, 2), Lower(8, 6, 2, 2)
    for layer in (lift, lower):
        nn.init.eye_(layer.mix.weight)
    axis = np.array([0.3, -0.5, 0.8])
    signals = [torch.from_numpy(grid_points(f"latlon{b}") @ axis) for b in (8, 6)]
    lifted = [f.expand(3, 2, -1) for f in signals]
    found = lower(lift(lifted[0]).contiguous())
    expected = Lift(6, 2, 2)
    nn.init.eye_(expected.mix.weight)
    torch.testing.assert_close(found, expected(lifted[1]).contiguous())


def test_molecules_that_it_knows_nothing_of_are_refused(network: tuple[AtomSum, str]) -> None:
    model, grid = network
    some = batch(PARTS, grid)
    with pytest.raises(ValueError, match=r"atoms of the numbers \[9\]: only H, C, N, O and S"):
        model(replace(some, charges=torch.cat([some.charges[:-1], torch.tensor([9])])))
    with pytest.raises(ValueError, match="molecules without signals"):
        model(replace(some, signals=None))


@pytest.mark.parametrize("build", [MoleculeS2CNN, MoleculeFFS2CNN])
def test_the_wrong_grid_is_refused(build: type[AtomSum]) -> None:
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 5, 400\)"):
        build()(batch(PARTS, "icosphere2"))
