"""The certificate: networks whose answer is known, and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre
from torch import nn

from baselines.coulomb_mlp import CoulombMLP
from baselines.inputs import MNIST_MEAN, MNIST_STD
from baselines.molecules import ELEMENTS
from bench.certificate import warm_up
from bench.equivariance import certify
from bench.errors import RunError
from bench.interpolation import bilinear_interpolation, interpolation
from bench.registry import MODELS, models_of
from bench.rotated_signals import (
    BAND_LIMIT,
    band_limited_signals,
    digit_signals,
    harmonics,
    in_batches,
    molecules,
    rooms,
)
from bench.seeds import derive
from bench.tasks_qm7 import in_one_batch
from data_prep.grids import grid_points
from data_prep.room_signals import Quirks, haar_rotation, prepare
from data_prep.spherical_mnist import haar_rotations, sample_rotated, to_bytes
from data_prep.stanford import RGBD_MEAN, RGBD_STD
from data_prep.synthetic_digits import synthetic_digits
from data_prep.synthetic_rooms import generate
from pdo.mesh import Icosphere
from pdo.networks import PDOeS2CNN

POINTS = Icosphere(3).vertices
degree_of = np.repeat(np.arange(BAND_LIMIT + 1), 2 * np.arange(BAND_LIMIT + 1) + 1)
ROTATIONS = haar_rotations(3, np.random.default_rng(7))
IDENTITY = np.eye(3)[None]


def values(n=12, points=POINTS):
    return band_limited_signals(n, points, np.random.default_rng(3))


def signals(n=12, points=POINTS):
    return in_batches(values(n, points), 32)


class Powers(nn.Module):
    """The power of each degree, from all coefficients: invariant by Wigner's unitarity."""

    def __init__(self):
        super().__init__()
        self.coefficients = torch.tensor(np.linalg.pinv(harmonics(POINTS, BAND_LIMIT))).float()
        self.sums = torch.tensor(np.eye(BAND_LIMIT + 1)[degree_of]).float()

    def forward(self, x):
        return (x[:, 0] @ self.coefficients.T).square() @ self.sums


class OneVertex(nn.Module):
    """Classes by the values at two opposite vertices: the two poles."""

    def forward(self, x):
        return x[:, 0, [0, 11]]


class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 3)


class ItsInput(Powers):
    """The signal itself as a field, and, so that one is wrong, negated in one place."""

    def fields(self, x):
        field = x.permute(2, 1, 0)[:, None]
        wrong = field.clone()
        wrong[11] *= -1
        return [field, wrong]


def errors(found):
    return [v for k in ("invariants", "output") for v in (found[k]["mean"], found[k]["max"])]


def test_an_invariant_model_is_certified():
    found = certify(Powers(), signals(), POINTS, ROTATIONS)
    assert 0 < max(errors(found)) < 1e-5  # rounding in float32
    assert found["agreement"] == 1 and found["invariants_are"] == "output"


def test_a_model_that_reads_a_vertex_is_not():
    """Values at far-apart points of a random signal are independent: as if exchanged, sqrt 2 in
    the root mean square; the prediction agrees as often as not."""
    rotations = haar_rotations(20, np.random.default_rng(0))
    found = certify(OneVertex(), signals(200), POINTS, rotations)
    assert 0.9 < found["output"]["mean"] < 1.5 < found["output"]["max"]
    assert abs(found["agreement"] - 0.5) < 0.1 and abs(found["agreement_by_chance"] - 0.5) < 0.02


def test_a_constant_does_not_divide_by_zero():
    found = certify(Constant(), signals(), POINTS, ROTATIONS)
    assert errors(found) == [0, 0, 0, 0] and found["output"]["spread"] == 0
    assert found["agreement"] == found["agreement_by_chance"] == 1


@pytest.mark.parametrize("name", models_of("spherical_mnist"))
def test_the_identity_moves_nothing(name):
    entry = MODELS["spherical_mnist", name]
    points = grid_points(entry.grid_name(3))
    model = entry.build(level=3)
    found = certify(model, signals(4, points), points, IDENTITY)
    assert errors(found) == [0, 0, 0, 0] and found["agreement"] == 1
    assert found["invariants_are"] == ("features" if hasattr(model, "invariants") else "output")
    for field in found["fields"]:
        assert field["mean"] < 1e-9 and field["round_trip"] < 1e-9 and field["floor"] < 1e-9


def test_classes_that_are_never_predicted_do_not_agree():
    """Class 2 has the highest score everywhere; the others go by the sign of a random signal."""

    class Signs(nn.Module):
        def forward(self, x):
            return torch.cat([x, -x, 9 + 0 * x], dim=1)

    loose = certify(Signs(), signals(8), POINTS, ROTATIONS)
    assert loose["agreement"] == 1 and loose["agreement_by_chance"] == pytest.approx(1)
    found = certify(Signs(), signals(8), POINTS, ROTATIONS, never=(2,))
    assert 0.9 < found["agreement"] < 1 and found["agreement_by_chance"] == pytest.approx(
        0.5, abs=0.1
    )


def test_molecules_are_those_that_a_network_was_trained_on(tmp_path):
    points = grid_points("icosphere1")
    assert molecules(points, 4, 0, tmp_path).source == "synthetic molecules"
    with pytest.raises(RunError, match=r"trained on QM7, and .*qm7\.npz is missing: fetch it with"):
        molecules(points, 4, 0, tmp_path, source="qm7")
    (tmp_path / "raw/qm7").mkdir(parents=True)
    (tmp_path / "raw/qm7/qm7.npz").write_bytes(b"not read")
    assert molecules(points, 4, 0, tmp_path, source="synthetic").source == "synthetic molecules"


def test_relative_to_the_spread_and_to_the_norm():
    """By hand: one class, signals of constant value 1, 3, 5, and 2 more on every rotated one."""
    plain = torch.ones(3, 1, len(POINTS)) * torch.tensor([1.0, 3, 5])[:, None, None]

    def shifted(rotation):
        return [plain + (0 if np.array_equal(rotation, np.eye(3)) else 2)]

    class First(nn.Module):
        def forward(self, x):
            return x[:, 0, :1]

    found = certify(First(), shifted, POINTS, ROTATIONS)["output"]
    assert found["spread"] == pytest.approx(np.sqrt(8 / 3))
    assert found["norm"] == pytest.approx(np.sqrt(35 / 3))
    assert found["mean"] == found["max"] == pytest.approx(2 / np.sqrt(8 / 3))
    assert found["mean_of_norm"] == pytest.approx(2 / np.sqrt(35 / 3))


def test_fields_are_pulled_back():
    """The signal is an equivariant field, known in closed form: its error is interpolation's."""
    right, wrong = certify(ItsInput(), signals(), POINTS, ROTATIONS)["fields"]
    assert (right["vertices"], right["fields"]) == (len(POINTS), 1)
    assert right["mean"] == pytest.approx(right["floor"], rel=0.3) and right["mean"] < 0.01
    assert right["mean"] < right["round_trip"] < 3 * right["mean"]
    assert wrong["mean"] > 10 * right["mean"]


def test_mesh_symmetry_is_exact_and_another_rotation_is_not():
    """A fifth of a turn about the poles maps mesh, frames and (10 samples) fibres to themselves;
    pulling back the wrong way would show."""
    torch.manual_seed(0)
    model = PDOeS2CNN(3, ((4,), (6,)), samples=10)
    warm_up(model, signals()(np.eye(3)))
    fifth = Rotation.from_euler("z", 72, degrees=True).as_matrix()[None]
    exact, other = (certify(model, signals(), POINTS, r) for r in (fifth, ROTATIONS))
    for key in ("invariants", "output"):
        assert exact[key]["max"] < 1e-4 < 1e-2 < other[key]["mean"]
    assert [f["vertices"] for f in exact["fields"]] == [642, 162]
    for on, off in zip(exact["fields"], other["fields"], strict=True):
        assert on["max"] < 1e-4 < 1e-2 < off["mean"]
        assert on["round_trip"] < 1e-9


def test_forward_is_the_head_of_the_invariants():
    for name in models_of("spherical_mnist"):
        entry = MODELS["spherical_mnist", name]
        x = torch.randn(2, 1, len(grid_points(entry.grid_name(3))))
        model = entry.build(level=3).eval()
        if hasattr(model, "invariants"):
            torch.testing.assert_close(model(x), model.head(model.invariants(x)), rtol=0, atol=0)
        if hasattr(model, "fields"):
            mean = model.readout(model.fields(x)[-1])
            torch.testing.assert_close(mean, model.invariants(x), rtol=0, atol=0)
            sizes = [len(field) for field in model.fields(x)]
            assert sizes == [642, 162, 42, 12][: len(sizes)], name


class ScoresOfItsInput(nn.Module):
    """The four channels themselves as scores of four labels at each point."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("grid", ["icosphere3", "planar2"])
def test_scores_at_points_are_pulled_back(grid):
    """An equivariant network of labels, known in closed form: its error is interpolation's; as a
    label, the largest of four channels is the same but near where it changes."""
    points = grid_points(grid)
    smooth = band_limited_signals(6, points, np.random.default_rng(3), channels=4)
    interpolate = bilinear_interpolation if grid == "planar2" else interpolation
    found = certify(ScoresOfItsInput(), in_batches(smooth, 2), points, ROTATIONS, interpolate)
    output = found["output"]
    assert (output["vertices"], output["fields"]) == (len(points), 4)
    assert output["mean"] == pytest.approx(output["floor"], rel=0.3) and output["mean"] < 0.1
    assert found["invariants_are"] == "output" and found["invariants"] == output
    assert 0.93 < found["agreement"] < 1 and 0.2 < found["agreement_by_chance"] < 0.3
    still = certify(ScoresOfItsInput(), in_batches(smooth, 2), points, IDENTITY, interpolate)
    assert still["output"]["max"] < 1e-6 and still["agreement"] == 1


def test_errors_of_fields_are_means_over_the_sphere_not_over_points():
    """1 added in the five rows of 16 that are nearest to each pole: 5/8 of the points, a share
    1 - cos(5 pi / 16) of the sphere."""
    points = grid_points("planar1")
    polar = torch.tensor(np.abs(points[:, 2]) > np.cos(np.pi * 5 / 16)).float()
    assert polar.mean() == 5 / 8
    constant = torch.tensor([[1.0, 0], [3, 0]])[:, :, None] * torch.ones(2, 2, len(points))
    outputs = iter([constant, constant + torch.stack([polar, 0 * polar])])

    class InTurn(nn.Module):
        def forward(self, x):
            return next(outputs)

    found = certify(InTurn(), lambda _: [constant], points, IDENTITY, bilinear_interpolation)
    assert found["output"]["spread"] == pytest.approx(1)
    assert found["output"]["mean"] == pytest.approx(np.sqrt(1 - np.cos(np.pi * 5 / 16)), rel=1e-3)


def random_molecules(n):
    """Of 3 to 9 atoms of all elements at normally distributed places, in two batches."""
    rng = np.random.default_rng(4)
    parts = []
    for size in (n // 3, n - n // 3):
        atoms = rng.integers(3, 10, size)
        charges, positions = rng.choice(ELEMENTS, atoms.sum()), rng.normal(size=(atoms.sum(), 3))
        parts.append((atoms, charges, positions))

    def batches(rotation):
        return [in_one_batch(atoms, z, p @ rotation, None) for atoms, z, p in parts]

    return batches


class Energies(nn.Module):
    """Composition, exactly, and half of what `term` says of a molecule's first atom, (B, 3)."""

    def __init__(self, term, composition=300.0):
        super().__init__()
        self.term, self.composition = term, composition

    def forward(self, molecules):
        return self.invariants(molecules).sum(dim=1) - 1000

    def invariants(self, molecules):
        atoms = molecules.molecule.bincount()
        first = molecules.positions[atoms.cumsum(0) - atoms].double()
        composition = molecules.counts.double() @ torch.arange(1.0, 6).double()
        return torch.stack([self.composition * composition, self.term(first) / 2], dim=1)


@pytest.mark.parametrize("n", [12, 400])
def test_errors_of_energies_are_relative_to_what_composition_leaves(n):
    """By hand, with the projection onto composition. However much of the output is composition,
    the spread is that of half a normal variable."""
    make = random_molecules(n)

    def heights(rotation):
        model = Energies(lambda first: first[:, 2])
        return np.concatenate([model.invariants(batch)[:, 1] for batch in make(rotation)])

    counts = np.concatenate([batch.counts for batch in make(np.eye(3))])
    design = np.column_stack([counts, np.ones(n)])
    still = heights(np.eye(3))
    spread = np.sqrt(np.sum((still - design @ np.linalg.pinv(design) @ still) ** 2) / (n - 5))
    errors = [np.abs(heights(rotation) - still) / spread for rotation in ROTATIONS]
    for composition in (0, 1, 300):
        model = Energies(lambda first: first[:, 2], composition)
        found = certify(model, make, np.zeros((0, 3)), ROTATIONS)
        for key in ("output", "invariants"):
            assert found[key]["spread"] == pytest.approx(spread)
            assert found[key]["mean"] == pytest.approx(np.mean(errors))
            assert found[key]["max"] == pytest.approx(np.max(errors))
    assert found["output"]["norm"] > 1000
    assert n == 12 or spread == pytest.approx(0.5, rel=0.1)


def test_energies_that_rotation_leaves_have_no_error():
    """None at all, not even where composition is all there is; distances are rounded."""
    for term, largest in (
        (lambda first: 0 * first[:, 0] + torch.arange(len(first)), 0),
        (lambda first: 0 * first[:, 0], 0),
        (lambda first: first.norm(dim=1), 1e-5),
    ):
        found = certify(Energies(term), random_molecules(30), np.zeros((0, 3)), ROTATIONS)
        assert found["output"]["mean"] <= found["output"]["max"] <= largest


def test_molecules_turn_the_other_way(tmp_path):
    """Against the potentials of the molecules as they are, at turned points."""
    points = grid_points("icosphere1")
    make = molecules(points, 9, 0, tmp_path).batches["molecules"]
    turned = molecules(points @ ROTATIONS[0].T, 9, 0, tmp_path).batches["molecules"]
    batches, expected = make(ROTATIONS[0]), turned(np.eye(3))
    assert [len(batch) for batch in batches] == [8, 1]
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.charges, other.charges)
        torch.testing.assert_close(batch.signals, other.signals, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(batch.positions, other.positions, atol=0.1)
        lengths = (batch.positions.norm(dim=1), other.positions.norm(dim=1))
        torch.testing.assert_close(*lengths, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("far", [False, True])
def test_rooms_are_those_of_the_data(tmp_path, far):
    """Against the code that prepares the turned panoramas; some of their points have no depth."""
    seed, points = derive(0, "rooms") % 2**32, grid_points("icosphere2")
    generate(tmp_path / "raw", 14, 128, seed)
    prepare(tmp_path / "raw", "icosphere2", tmp_path / "out", quirks=Quirks(missing_depth_far=far))
    turned = np.load(tmp_path / "out" / "rotated_rgbd.npy")
    assert (turned[:6, 3] == (5 if far else 0)).any()
    made = rooms(points, 6, 0, missing_depth_far=far).batches["rooms"]
    for k in range(6):
        shown = torch.cat(made(haar_rotation(0, k).T))
        signal = shown[k] * torch.tensor(RGBD_STD)[:, None] + torch.tensor(RGBD_MEAN)[:, None]
        np.testing.assert_allclose(signal, turned[k].astype(float), atol=2e-3)


def test_harmonics_obey_the_addition_theorem():
    """sum over m of Y_lm(x) Y_lm(y) = (2l + 1) / 4 pi P_l(x.y)."""
    x, y = (Rotation.random(9, random_state=s).as_matrix()[:, 2] for s in (0, 1))
    products = harmonics(x, BAND_LIMIT) * harmonics(y, BAND_LIMIT)
    for degree in range(BAND_LIMIT + 1):
        expected = (2 * degree + 1) / (4 * np.pi) * eval_legendre(degree, np.sum(x * y, axis=1))
        np.testing.assert_allclose(
            products[:, degree_of == degree].sum(axis=1), expected, atol=1e-12
        )


def test_harmonics_of_degree_one_are_y_z_x():
    """m = 0 is z; with scipy's Condon-Shortley phase the others are -x and -y."""
    expected = np.sqrt(3 / (4 * np.pi)) * POINTS[:, [2, 0, 1]] * [1, -1, -1]
    np.testing.assert_allclose(harmonics(POINTS, 1)[:, 1:], expected, atol=1e-14)


def test_rotating_a_signal_keeps_the_power_of_each_degree_and_mixes_its_orders():
    make = values(5)
    inverse = np.linalg.pinv(harmonics(POINTS, BAND_LIMIT))
    still, turned = (inverse @ make(rotation)[:, 0].T for rotation in (np.eye(3), ROTATIONS[0]))
    for degree in range(BAND_LIMIT + 1):
        rows = degree_of == degree
        powers = [np.sum(c[rows] ** 2, axis=0) for c in (still, turned)]
        np.testing.assert_allclose(*powers, atol=1e-9)
    assert np.abs(still - turned).max() > 0.1
    # degree 1 is a vector (c.x)(Rx) = (R^T c).x, in the order z, -x, -y
    vectors = [np.stack([-c[2], -c[3], c[1]]) for c in (still, turned)]
    np.testing.assert_allclose(ROTATIONS[0].T @ vectors[0], vectors[1], atol=1e-10)


def test_spectrum_is_as_stated():
    drawn = values(4000, Icosphere(1).vertices)(np.eye(3))
    assert np.mean(drawn**2) == pytest.approx(1, abs=0.03)
    assert abs(drawn.mean()) < 0.02


@pytest.mark.parametrize("grid", ["icosphere2", "icosphere2-equator", "latlon8"])
def test_digits_are_those_of_the_data(grid):
    """Against the independent sampling code that makes the rotated data sets."""
    points, images = grid_points(grid), synthetic_digits(1, 4).test_images
    for rotation in (np.eye(3), *ROTATIONS):
        expected = sample_rotated(images, np.repeat(rotation[None], 4, axis=0), points)
        found = digit_signals(images, points)(rotation) * MNIST_STD + MNIST_MEAN
        np.testing.assert_allclose(255 * found[:, 0], expected, atol=1e-6)
        samples = sample_rotated(images, np.array([rotation] * 4), points, "published")
        expected = to_bytes(samples, "published")
        found = digit_signals(images, points, "published")(rotation) * MNIST_STD + MNIST_MEAN
        assert np.abs(255 * found[:, 0] - expected).max() < 1 + 1e-6  # truncated numbers


def test_coulomb_matrices_do_not_see_rotations():
    kinds = molecules(np.zeros((0, 3)), 12, 0, Path("nowhere"))
    model = CoulombMLP(inputs=4000)
    warm_up(model, kinds.batches["molecules"](np.eye(3)), kinds.energies)
    nn.init.normal_(model.network[-1].weight)
    found = certify(model, kinds.batches["molecules"], np.zeros((0, 3)), ROTATIONS)
    assert found["output"]["spread"] > 1 and found["output"]["max"] < 1e-4
    assert found["agreement"] is None and found["fields"] == []


@pytest.mark.parametrize("name", ["PDO-eS2CNN-small", "PDO-eS2CNN-large"])
def test_our_networks_cannot_tell_an_upright_digit_from_its_half_turn(name):
    """As sampled for them; sampled round a pole they can."""
    images, half_turn = synthetic_digits(8, 2).train_images, np.diag([-1.0, -1, 1])
    entry, change = MODELS["spherical_mnist", name], {}
    for grid in (entry.grid_name(3), "icosphere3"):
        torch.manual_seed(0)
        model = entry.build(level=3)
        digits = in_batches(digit_signals(images, grid_points(grid)), 32)
        warm_up(model, digits(np.eye(3)))
        found = certify(model, digits, grid_points(grid), half_turn[None])
        change[grid] = found["output"]["max"]
    assert change["icosphere3-equator"] < 1e-4 < 0.02 < change["icosphere3"]
