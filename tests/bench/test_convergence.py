"""The convergence measurements: closed forms, statistics, and what the analysis promises."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y
from sympy.physics.quantum.spin import Rotation as SympyRotation

from bench import convergence, convergence_report, speed, stencil_digits
from bench.__main__ import main
from bench.convergence import (
    fibre_quantities,
    fibre_weights,
    fit_order,
    interpolation_factor,
    measure_family,
    measure_fibre,
)
from bench.stencil_families import (
    EQUAL,
    FAMILIES,
    SMOOTH,
    Family,
    ModeOperators,
    Smoother,
    relaxed_icosphere,
    smoother_stencil,
)
from bench.wigner import factor, wigner_d
from data_prep.synthetic_digits import synthetic_digits
from pdo.direct import DEGREES, ETH, DirectPDOConv, TransportedStencil, turn_matrices
from pdo.frames import default_frames, icosahedral_rotations
from pdo.layers import PDOConv
from pdo.mesh import Icosphere
from pdo.operators import all_terms, derivative_matrix, terms
from pdo.stencils import PAPER, SMOOTHED, fit_stencil, layer_stencils, smoothing_stencil

FRAMES = Rotation.random(40, random_state=0).as_matrix()
DEGREES_OF_OPERATORS = np.array([0, 2, 1, 1, 2, 2])
FEW = ("nearest ring (paper)", "equal average", "smoothed (default)")


def all_orders(degree, frames):
    return np.stack([wigner_d(degree, n, frames) for n in range(-degree, degree + 1)], axis=2)


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_wigner_functions_represent_rotations(degree):
    """D(RS) = D(R) D(S), D(R_z(a)) = diag(e^{-i m a}), D unitary."""
    left, right = FRAMES[:20], FRAMES[20:]
    product = all_orders(degree, left) @ all_orders(degree, right)
    np.testing.assert_allclose(all_orders(degree, left @ right), product, atol=1e-12)
    angles = np.array([0.0, 0.3, -2.0])
    turns = Rotation.from_rotvec(angles[:, None] * [0, 0, 1]).as_matrix()
    m = np.arange(-degree, degree + 1)
    want = np.exp(-1j * angles[:, None] * m)[:, :, None] * np.eye(2 * degree + 1)
    np.testing.assert_allclose(all_orders(degree, turns), want, atol=1e-12)
    down = Rotation.from_rotvec([np.pi, 0, 0]).as_matrix()[None]  # the other pole of Euler angles
    np.testing.assert_allclose(
        all_orders(degree, left @ down), all_orders(degree, left) @ all_orders(degree, down),
        atol=1e-12,
    )  # fmt: skip


def test_wigner_functions_against_sympy_and_scipy():
    degree, beta = 3, 0.7
    tilt = Rotation.from_rotvec([0, beta, 0]).as_matrix()[None]
    for n in (-3, 0, 2):
        want = [complex(SympyRotation.d(degree, m, n, beta).doit()) for m in range(-3, 4)]
        np.testing.assert_allclose(wigner_d(degree, n, tilt)[0], want, atol=1e-12)
    x, y, z = FRAMES[..., 2].T
    harmonics = [sph_harm_y(degree, m, np.arccos(z), np.arctan2(y, x)) for m in range(-3, 4)]
    want = np.sqrt(4 * np.pi / 7) * np.conj(harmonics).T
    np.testing.assert_allclose(wigner_d(degree, 0, FRAMES), want, atol=1e-12)


def moved(frames, direction, distance):
    """Frames carried along geodesics that start at `direction` (angle in the tangent plane)."""
    axis = np.cos(direction) * frames[..., 1] - np.sin(direction) * frames[..., 0]
    return Rotation.from_rotvec(distance * axis).as_matrix() @ frames


@pytest.mark.parametrize("n", range(-3, 4))
def test_factors_against_finite_differences_along_geodesics(n):
    degree, step = 3, 1e-3
    f = wigner_d(degree, n, FRAMES)

    def along(direction):  # first and second derivative along a geodesic, to O(step^4)
        at = [wigner_d(degree, n, moved(FRAMES, direction, k * step)) for k in (-2, -1, 1, 2)]
        first = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)
        second = (-at[0] + 16 * at[1] - 30 * f + 16 * at[2] - at[3]) / (12 * step**2)
        return first, second

    (d1, d11), (d2, d22), (_, slant) = along(0), along(np.pi / 2), along(np.pi / 4)
    d12 = slant - (d11 + d22) / 2
    found = [f, d11 + d22, d1 + 1j * d2, d1 - 1j * d2]
    found += [d11 - d22 + 2j * d12, d11 - d22 - 2j * d12]
    for operator, (value, shift) in enumerate(zip(found, (0, 0, 1, -1, 2, -2), strict=True)):
        scale = factor(operator, degree, n)
        want = scale * wigner_d(degree, n + shift, FRAMES) if abs(n + shift) <= degree else 0 * f
        assert scale != 0 or abs(n + shift) > degree
        np.testing.assert_allclose(value, want, atol=1e-7)


def test_no_such_order():
    with pytest.raises(ValueError, match="degree 2 has no order 3"):
        wigner_d(2, 3, FRAMES)


def test_order_of_a_power_law_is_exact():
    h = 0.3 / 2.0 ** np.arange(5)
    order = fit_order(h, 7 * h**1.5)
    assert order.slope == pytest.approx(1.5, abs=1e-12)
    assert order.constant == pytest.approx(7)
    assert order.half_width < 1e-6


def test_interval_of_the_order_covers_in_95_of_100_cases():
    """Log-normal scatter, five points: coverage within three standard errors of 0.95."""
    rng, h, trials = np.random.default_rng(0), 0.3 / 2.0 ** np.arange(5), 2000
    noisy = [fit_order(h, h**2 * np.exp(0.1 * rng.standard_normal(5))) for _ in range(trials)]
    covered = np.mean([abs(order.slope - 2) < order.half_width for order in noisy])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / trials)


def test_orders_that_cannot_be_fitted():
    assert np.isnan(fit_order([0.2, 0.1], [0.4, 0.1]).half_width)
    for bad in ([0.1], [0.1, 0.0]):
        with pytest.raises(ValueError, match="at least two positive errors"):
            fit_order([0.2, 0.1][: len(bad)], bad)


def test_errors_tell_a_common_factor_from_a_loss_of_equivariance():
    mesh = Icosphere(3)
    harmonics = convergence._harmonics(default_frames(mesh))
    wanted = {n: harmonics[n] for n in (0, 1)}
    shrunk = {0: 0.9 * wanted[0], 1: 0.9 * wanted[1]}
    errors = convergence._errors(shrunk, wanted, harmonics, mesh.vertex_areas)
    assert errors["rms"] == pytest.approx(0.1)
    assert errors["equivariance"] < 1e-12
    uneven = {n: field * [2, 1, 1, 1, 1, 1, 1] for n, field in wanted.items()}  # one m of seven
    errors = convergence._errors(uneven, wanted, harmonics, mesh.vertex_areas)
    assert errors["equivariance"] == pytest.approx(np.sqrt((36 / 49 + 6 / 49) / 10), rel=1e-2)


@pytest.fixture(scope="module")
def errors():
    names = [*FEW, "order 3, 2 rings, Gaussian 1"]
    rows = [
        {"family": name} | row
        for name in names
        for level in (2, 3, 4)
        for row in measure_family(FAMILIES[name], level)
    ]
    return pd.DataFrame(rows).set_index(["family", "quantity"])


def order_of(errors, family, quantity, error):
    group = errors.loc[(family, quantity)]
    return fit_order(group["h"], group[error]).slope


def test_paper_fit_converges_as_its_analysis_promises(errors):
    """Largest errors: first derivatives O(h^2), second ones and the layers O(h)."""
    promised = {"d1": 2, "d2": 2, "d11": 1, "d12": 1, "d22": 1}
    for quantity, order in promised.items():
        assert order_of(errors, FEW[0], quantity, "max") > order - 0.2, quantity
    for quantity in ("lifting layer", "group layer"):
        assert order_of(errors, FEW[0], quantity, "max") > 0.9
        assert order_of(errors, FEW[0], quantity, "equivariance") > 1


def test_smoothing_converges_up_to_level_4_and_an_equal_average_does_not(errors):
    for quantity in ("d1", "d2", "d11", "d12", "d22", "lifting layer", "group layer"):
        assert order_of(errors, "smoothed (default)", quantity, "rms") > 1.5
    for quantity in ("d11", "d12", "d22", "lifting layer"):
        assert errors.loc[("equal average", quantity), "rms"].iloc[-1] > 0.2
        assert order_of(errors, "equal average", quantity, "rms") < 0.2


def test_composed_second_derivatives(errors):
    """The nearest ring diverges (0.27, 0.41 at levels 3, 4 on a prototype); cubic fits do not."""
    composed = errors.xs("conj(eth)^2 eth^2", level="quantity")
    assert composed.loc[FEW[0], "rms"].to_numpy()[1:] == pytest.approx([0.27, 0.41], abs=0.01)
    assert order_of(errors, "order 3, 2 rings, Gaussian 1", "conj(eth)^2 eth^2", "rms") > 1.5


def test_mode_operators_are_those_of_the_layers():
    mesh = Icosphere(2)
    f = np.random.default_rng(0).standard_normal(len(mesh))
    frames = default_frames(mesh)
    matrix = derivative_matrix(fit_stencil(mesh, frames, PAPER), 1.0, all_terms(0, 2), 0, len(mesh))
    value, laplacian, eth, _, eth2, _ = ModeOperators(mesh, Family())(list(range(6)), f, 0)
    found = np.split(matrix @ f, [2 * len(mesh), 4 * len(mesh)])
    want = [np.stack([value, laplacian], 1).real]
    want += [np.sqrt(2) * np.stack([z.real, z.imag], 1) for z in (eth, eth2)]
    for block, wanted in zip(found, want, strict=True):
        np.testing.assert_allclose(block.reshape(-1, 2), wanted, atol=1e-10)


@pytest.mark.parametrize("n", [-2, 0, 1, 2])
@pytest.mark.parametrize(
    ("family", "spec"), [(Family(), PAPER), (FAMILIES["smoothed (default)"], SMOOTHED)]
)
def test_mode_operators_are_those_of_the_direct_form(float64, family, spec, n):
    """On the samples of a mode e^{-i n phi}, in two real parts."""
    mesh, samples = Icosphere(2), 7
    frames = default_frames(mesh)
    f = np.random.default_rng(0).standard_normal((2, len(mesh))).T @ [1, 1j]
    mode = np.exp(-2j * np.pi * n * np.arange(samples) / samples)
    sampled = f[:, None] * mode
    h = torch.tensor(np.stack([sampled.real, sampled.imag], axis=-1))[:, :, None]
    for stencil in layer_stencils(mesh, frames, spec, transport=True):
        if stencil is not None:
            derivatives = TransportedStencil(stencil, samples, "trigonometric")(h)
            h = derivatives[:, 0]
    real, imaginary = derivatives[:, :, :, 0].unbind(-1)
    coefficients = torch.complex(real, imaginary).numpy() @ mode.conj() / samples
    wanted = coefficients @ ETH.numpy().T
    found = np.stack(ModeOperators(mesh, family)(list(range(6)), f, n), axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "spec"), [(Family(), PAPER), (FAMILIES["smoothed (default)"], SMOOTHED)]
)
@pytest.mark.parametrize("input_orders", [0, 2])
def test_family_layer_is_the_network_s_layer(family, spec, input_orders):
    mesh = Icosphere(2)
    ours = stencil_digits.FamilyConv(mesh, 2, 3, input_orders, family)
    theirs = PDOConv(mesh, 2, 3, 2, input_orders, spec)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(len(mesh), 2 * input_orders + 1, 2, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_raw_identity_sees_the_signal_itself():
    mesh = Icosphere(2)
    noise = np.random.default_rng(0).standard_normal((len(mesh), 1))
    family = Family(smoothers=(SMOOTH,), raw_identity=True)
    value, laplacian = ModeOperators(mesh, family)([0, 1], noise, 0)
    smooth, same = ModeOperators(mesh, Family(smoothers=(SMOOTH,)))([0, 1], noise, 0)
    np.testing.assert_array_equal(value, noise)
    np.testing.assert_array_equal(laplacian, same)
    assert np.std(smooth) < 0.6 * np.std(noise)


@pytest.mark.parametrize("input_orders", [0, 2])
@pytest.mark.parametrize(
    "name", ["2 rings, Gaussian 1", "equal average twice", "smoothed, raw identity"]
)
def test_family_layer_mixes_its_mode_operators(float64, name, input_orders):
    """out_m = sum over terms of weight * operator f_n in complex modes, at m = 0 over real rows."""
    mesh, family = Icosphere(2), FAMILIES[name]
    layer = stencil_digits.FamilyConv(mesh, 1, 1, input_orders, family)
    x = torch.randn(len(mesh), 2 * input_orders + 1, 1, 1)
    found = layer(x).detach().squeeze().numpy()
    operators, units = ModeOperators(mesh, family), mesh.mean_edge**DEGREES_OF_OPERATORS

    def mode(field, n):
        return field[:, 2 * n - 1 : 2 * n + 1] @ [1, 1j] / np.sqrt(2) if n else field[:, 0]

    for m, weights in enumerate(layer.weights):
        wanted, weights = 0, weights.detach().squeeze((-2, -1)).numpy()
        rows = iter(weights if m == 0 else weights.T @ [1, 1j])
        for term in terms(m, input_orders):
            field = mode(x[..., 0, 0].numpy(), term.n)
            value = units[term.operator] * operators([term.operator], field, term.n)[0]
            if m > 0:
                wanted = wanted + next(rows) * (value.conj() if term.conjugate else value)
            elif term.n == 0:
                wanted = wanted + next(rows) * value.real
            else:
                wanted = wanted + np.sqrt(2) * (next(rows) * value.real + next(rows) * value.imag)
        np.testing.assert_allclose(mode(found, m), wanted, atol=1e-11)


@pytest.mark.parametrize("exact", [0, 1, 2])
def test_smoothers_keep_polynomials_of_the_chart(exact):
    mesh = Icosphere(3)
    frames = default_frames(mesh)
    stencil = smoother_stencil(mesh, frames, Smoother(2, 1.0, exact, True))
    chart = np.einsum("eji,ej->ei", frames[stencil.rows][..., :2], mesh.vertices[stencil.cols])
    a, b = chart.T

    def smoothed(values):
        return np.bincount(stencil.rows, stencil.weights[:, 0] * values)

    errors = [
        np.abs(smoothed(p) - at_centre).max()
        for p, at_centre in ((a**0, 1), (2 * a - b, 0), (a * b + b**2, 0))
    ]
    assert max(errors[: exact + 1]) < 1e-12
    assert all(error > 1e-5 for error in errors[exact + 1 :])


def test_named_smoothers():
    mesh = Icosphere(2)
    frames = default_frames(mesh)
    ours, theirs = smoother_stencil(mesh, frames, SMOOTH), smoothing_stencil(mesh, frames)
    np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-12)
    equal = smoother_stencil(mesh, frames, EQUAL).weights
    assert set(equal[:, 0].round(12)) == {round(1 / 6, 12), round(1 / 7, 12)}


def test_relaxed_mesh_keeps_the_symmetry_and_loses_the_kinks():
    mesh, plain = relaxed_icosphere(3), Icosphere(3)
    tree = cKDTree(mesh.vertices)
    for rotation in icosahedral_rotations():
        distance, image = tree.query(mesh.vertices @ rotation.T)
        assert distance.max() < 1e-9
        assert len(set(image)) == len(mesh)
    assert mesh.vertex_areas.sum() == pytest.approx(4 * np.pi)

    def lopsided(m):  # distance of each vertex from the centroid of its ring, away from the twelve
        ring = m.adjacency.astype(float) @ m.vertices / 6
        tangential = ring - np.sum(ring * m.vertices, 1, keepdims=True) * m.vertices
        return np.linalg.norm(tangential[12:], axis=1).mean()

    assert lopsided(mesh) < 0.5 * lopsided(plain)


@pytest.mark.parametrize("interpolation", ["linear", "trigonometric"])
@pytest.mark.parametrize("samples", [5, 9])
def test_interpolation_factors_against_the_direct_form(interpolation, samples):
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, 20)
    matrices = turn_matrices(angles, samples, interpolation).double().numpy()
    phi = 2 * np.pi * np.arange(samples) / samples
    for n in range(-6, 7):
        mode = np.exp(-1j * n * phi)
        want = interpolation_factor(angles, n, samples, interpolation)[:, None] * mode
        np.testing.assert_allclose(matrices @ mode, want, atol=1e-5)


@pytest.fixture(scope="module")
def fibre():
    return pd.DataFrame([row for level in (2, 3) for row in measure_fibre(level)])


def test_trigonometric_samples_add_nothing_to_derivatives_and_linear_ones_fall_with_n(fibre):
    """Once N > 2 DEGREE."""
    table = fibre[fibre["level"] == 3].pivot(
        index="N", columns=["interpolation", "quantity"], values="rms"
    )
    for quantity in ("eth", "eth^2"):
        exact, linear = table["trigonometric", quantity], table["linear", quantity]
        np.testing.assert_allclose(exact[exact.index > 6], exact[45], rtol=1e-9)
        assert (np.diff(linear) < 0).all()
        assert linear[45] > exact[45]


def test_layers_on_n_samples(fibre):
    """Linear: second order in 1 / N. Trigonometric: the mean over B takes e^{i (n + N) B} for
    e^{i n B}, so what is left is of the size of I_{N-3}(1). A lifting layer has no samples."""
    orders = convergence_report._fibre_orders(fibre).set_index(["quantity", "level"])
    assert set(orders.index.get_level_values("quantity")) == {"eth", "eth^2", "group layer"}
    for (quantity, level), row in orders.iterrows():
        assert abs(row["order"] - 2) < 0.25, (quantity, level)
        assert row["half_width"] < 0.8
    left = fibre.set_index(["quantity", "interpolation", "N", "level"])["of_fibre"]
    assert (left["lifting layer"] < 1e-14).all()
    for samples in (7, 9, 15):
        size = left["group layer", "trigonometric", samples, 3] / special.iv(samples - 3, 1)
        assert 0.1 < size < 2
    rms = fibre.set_index(["quantity", "interpolation", "N", "level"])["rms"]
    for quantity in ("lifting layer", "group layer"):
        coarse, fine = (rms[quantity, "trigonometric", 15, level] for level in (2, 3))
        assert coarse / fine > 3


@pytest.mark.parametrize("interpolation", ["linear", "trigonometric"])
@pytest.mark.parametrize("samples", [5, 9])
def test_the_measured_group_layer_is_the_direct_one(float64, samples, interpolation):
    """`pdo.direct.DirectPDOConv` with the same weights on the same field, complex in two parts."""
    mesh = Icosphere(2)
    z, b = fibre_weights()
    angles = 2 * np.pi / samples * np.arange(samples)
    layer = DirectPDOConv(mesh, 1, 1, samples, False, PAPER, interpolation)
    weight = z * np.exp(np.cos(angles[:, None] - b)) / samples / mesh.mean_edge**DEGREES
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight)[:, :, None, None])
    frames = default_frames(mesh)
    orders = range(-convergence.DEGREE, convergence.DEGREE + 1)
    turns = {n: np.exp(-1j * n * angles)[None, :, None] for n in range(-5, 6)}
    field = sum(wigner_d(convergence.DEGREE, n, frames)[:, None] * turns[n] for n in orders)
    parts = torch.tensor(np.concatenate([field.real, field.imag], axis=2))[:, :, None]
    with torch.no_grad():
        real, imaginary = layer(parts)[:, :, 0].chunk(2, dim=2)
    measured = (real + 1j * imaginary).numpy()
    exact = {
        (o, n): factor(o, convergence.DEGREE, n)
        * (wigner_d(convergence.DEGREE, n + s, frames) if abs(n + s) <= convergence.DEGREE else 0)
        for o, s in enumerate(convergence.SHIFTS)
        for n in orders
    }
    continuous = convergence._superposed(fibre_quantities(None)["group layer"], exact)
    wanted = sum(field[:, None] * turns[m] for m, field in continuous.items() if abs(m) <= 3)
    areas = mesh.vertex_areas[:, None, None]
    size, error = (np.sum(areas * np.abs(x) ** 2) for x in (wanted, measured - wanted))
    rows = pd.DataFrame(measure_fibre(2)).set_index(["quantity", "interpolation", "N"])
    found = rows.loc[("group layer", interpolation, samples), "rms"]
    assert np.sqrt(error / size) == pytest.approx(found, rel=1e-6)


@pytest.fixture
def little(monkeypatch):
    """Few families and small networks: the command's paths, not its numbers."""
    few = {name: FAMILIES[name] for name in FEW}
    monkeypatch.setattr(convergence_report, "FAMILIES", few)
    monkeypatch.setattr(convergence_report, "POOLS", {"equal": EQUAL})
    monkeypatch.setattr(convergence_report, "SEEDS", (0,))
    monkeypatch.setattr(stencil_digits, "REPEATS", 1)
    monkeypatch.setattr(stencil_digits, "WIDTHS", ((4,), (8,)))


def test_command(little, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["convergence", "--levels", "2", "3", "--digits", "20", "--json"]
    assert main([*arguments, "--data", str(tmp_path), "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"git_commit", "cpu", "errors", "orders", "fibre", "families", "pools"} <= set(printed)
    tables = ("errors", "families", "fibre", "fibre_orders", "orders", "pools")
    names = [f"{n}.csv" for n in tables]
    names += ["convergence.md", "convergence.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    errors = pd.read_csv(out / "errors.csv")
    assert set(errors["level"]) == {2, 3} and set(errors["family"]) == set(FEW)
    families = pd.read_csv(out / "families.csv").set_index("family")
    assert families.loc[FEW[0], "nonzeros"] < families.loc[FEW[2], "nonzeros"]
    assert (families["movement"] > 0).all()
    assert families[["N/N", "N/R"]].stack().between(0, 100).all()
    assert (out / "convergence.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "convergence.png").stat().st_size < 200_000
    text = (out / "convergence.md").read_text()
    assert "nan" not in text and "smoothed (default)" in text
    assert printed["digits"] == "synthetic digits" and "digits: synthetic digits." in text


def test_command_without_digits(little, tmp_path):
    assert main(["convergence", "--levels", "2", "3", "--digits", "0", "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "pools.csv").exists()
    assert "movement" not in pd.read_csv(tmp_path / "families.csv")


@pytest.mark.parametrize("levels", [("3", "2"), ("2", "9"), ("0", "3")])
def test_wrong_levels(levels, capsys, tmp_path):
    assert main(["convergence", "--levels", *levels, "--out", str(tmp_path / "out")]) == 1
    assert "--levels must be two of 1..7, coarse first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--digits", "-5"], "--digits must be 0, or at least 2 (features vary), not -5"),
        (["--digits", "1"], "--digits must be 0, or at least 2 (features vary), not 1"),
        (["--levels", "1", "2"], "--levels must go up to 3 at least with digits, not to 2"),
    ],
)
def test_wrong_numbers(arguments, message, capsys, tmp_path):
    assert main(["convergence", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def on_digits(float64, monkeypatch):
    """`on_digits(family, turn)`: a small network on 50 digits, each turned by `turn` degrees about
    its own axis; at random without it."""
    monkeypatch.setattr(stencil_digits, "WIDTHS", ((4,), (32,)))
    images = synthetic_digits(150, 50)

    def compared(family, turn=None, pool=SMOOTH):
        with monkeypatch.context() as patch:
            if turn is not None:
                turns = Rotation.from_euler("z", np.full((50, 1), turn), degrees=True).as_matrix()
                patch.setattr(stencil_digits, "haar_rotations", lambda n, _: turns)
            return stencil_digits.compare_on_digits(FAMILIES[family], images, 3, 0, pool)

    return compared


@pytest.mark.parametrize(
    "family", ["nearest ring (paper)", "smoothed, raw identity", "smoothed, relaxed mesh"]
)
def test_only_a_half_turn_of_a_digit_moves_no_feature(on_digits, family):
    """It maps the mesh to itself where networks read digits; a quarter turn does not."""
    half, quarter = on_digits(family, 180), on_digits(family, 90)
    assert half["movement"] < 1e-12 < 0.05 < quarter["movement"] < 0.5
    assert half["N/R"] == half["N/N"] == quarter["N/N"] > 60  # one in ten by chance


def test_what_random_rotations_move(on_digits):
    """The nearest ring more than smoothed stencils, and with plain pools still more; a relaxed mesh
    less than one with kinks."""
    nearest, smoothed = on_digits(FEW[0]), on_digits(FEW[2])
    assert nearest["movement"] > 1.5 * smoothed["movement"] > 0.1
    assert nearest["N/R"] < nearest["N/N"] - 5
    assert smoothed["N/R"] > nearest["N/R"] + 5
    assert on_digits(FEW[0], pool=EQUAL)["movement"] > 1.05 * nearest["movement"]
    assert on_digits("smoothed, relaxed mesh")["movement"] < 0.9 * smoothed["movement"]


def test_cost_is_that_of_a_step_of_the_layer(monkeypatch):
    """With numbers counted in the network's own layer, and times that are made up."""
    mesh, (width, batch) = Icosphere(1), (speed.FIELDS, speed.BATCH)
    layer = PDOConv(mesh, width, width, 2)

    def taken(steps, repeats):
        for step in steps.values():
            gradients = [tuple(g.shape) for g in step()]
            assert gradients[0] == (len(mesh), 5, width, batch)
            assert gradients[1:] == [tuple(w.shape) for w in layer.weights]
        return dict(zip(steps, (3.0, 2.0), strict=True))

    monkeypatch.setattr(speed, "run_in_turn", taken)
    found = stencil_digits.cost(FAMILIES["smoothed (default)"], 1)
    nonzeros = layer.smoothing.forth.nnz + layer.derivatives.nnz
    assert found == {"nonzeros": round(nonzeros / len(mesh), 1), "relative time": 1.5}


def test_ridge_separates_what_is_separable():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 10
    features = np.eye(10)[labels] + 0.05 * rng.standard_normal((100, 10))
    classify = stencil_digits._ridge(features, labels)
    assert (classify(features) == labels).all()
    assert np.mean(classify(rng.standard_normal((1000, 10))) == np.arange(1000) % 10) < 0.2
