"""Oracles: sympy, products of scipy's harmonics, the published count, rotated coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y
from sympy.physics.quantum.cg import CG
from torch import Tensor

from baselines.clebsch_gordan import clebsch_gordan
from baselines.ffs2cnn import (
    CHANNELS,
    DEGREES,
    FFS2CNN,
    CGProduct,
    FragmentMix,
    couplings,
    live_products,
)
from baselines.harmonics import soft_points, wigner
from pdo.precision import default_dtype

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def product() -> CGProduct:
    with default_dtype(torch.float64):
        return CGProduct()


def product_channels(channels: list[int]) -> list[int]:
    return [len(mask) for mask in live_products(channels)]


def fragments(channels: list[int], batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2 * k + 1, tau, batch, generator=generator, dtype=torch.complex128)
        for k, tau in enumerate(channels)
    ]


def turned(f: list[Tensor], rotation: Rotation) -> list[Tensor]:
    angles = rotation.as_euler("ZYZ")
    matrices = [torch.from_numpy(wigner(degree, *angles)) for degree in range(len(f))]
    return [torch.einsum("mn,ncb->mcb", d, part) for d, part in zip(matrices, f, strict=True)]


def of_real_signals(channels: list[int], batch: int, seed: int = 0) -> list[Tensor]:
    """a_l,-m = (-1)^m conj(a_lm)."""
    signs = [(-1.0) ** torch.arange(-k, k + 1)[:, None, None] for k in range(len(channels))]
    random = fragments(channels, batch, seed)
    return [f + s * f.flip(0).conj() for f, s in zip(random, signs, strict=True)]


def sampled(coefficients: list[Tensor], points: np.ndarray) -> Tensor:
    """sum of a_lm Y_lm at points (P, 3), with scipy's harmonics: (batch, 1, P)."""
    x, y, z = points.T
    alpha, beta = np.arctan2(y, x), np.arctan2(np.hypot(x, y), z)
    f = sum(
        torch.outer(a[degree + m, 0], torch.from_numpy(sph_harm_y(degree, m, beta, alpha)))
        for degree, a in enumerate(coefficients)
        for m in range(-degree, degree + 1)
    )
    assert f.imag.abs().max() < 1e-10
    return f.real[:, None]


def grid(bandwidth: int) -> np.ndarray:
    alpha, beta = soft_points(bandwidth)
    return np.stack([np.sin(beta) * np.cos(alpha), np.sin(beta) * np.sin(alpha), np.cos(beta)], 1)


def trained_statistics(model: FFS2CNN) -> FFS2CNN:
    """In eval mode, the standard deviations and batch norm's statistics neither fresh nor trivial,
    and weights of both signs."""
    torch.manual_seed(1)
    for mix in model.mixes:
        mix.weight.data.normal_(0, 0.05)
    for seed in range(3):
        model.head(model.scalars(of_real_signals([1] * DEGREES, 16, seed)))
    return model.eval()


@pytest.mark.parametrize("l1", range(4))
@pytest.mark.parametrize("l2", range(4))
def test_coefficients_are_those_of_sympy(l1: int, l2: int) -> None:
    for degree in range(abs(l1 - l2), l1 + l2 + 1):
        table = clebsch_gordan(l1, l2, degree)
        for m1 in range(-l1, l1 + 1):
            for m2 in range(-l2, l2 + 1):
                for m in range(-degree, degree + 1):
                    value = table[degree + m, l1 + m1, l2 + m2]
                    if m != m1 + m2:
                        assert value == 0
                        continue
                    expected = float(CG(l1, m1, l2, m2, degree, m).doit())
                    assert value == pytest.approx(expected, abs=1e-14)


def test_coefficients_are_orthogonal_up_to_degree_10() -> None:
    for l1, l2, _ in couplings():
        blocks = [clebsch_gordan(l1, l2, degree) for degree in range(l1 - l2, l1 + l2 + 1)]
        matrix = np.concatenate(blocks).reshape((2 * l1 + 1) * (2 * l2 + 1), -1)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)


@pytest.mark.parametrize(("l1", "l2"), [(2, 1), (5, 4), (7, 7), (10, 6)])
def test_coefficients_expand_products_of_harmonics(l1: int, l2: int) -> None:
    """Y_l1m1 Y_l2m2 = sum over l of sqrt((2 l1 + 1) (2 l2 + 1) / (4 pi (2 l + 1)))
    <l1 0 l2 0 | l 0> <l1 m1 l2 m2 | l m> Y_lm."""
    rng = np.random.default_rng(0)
    alpha, beta = rng.uniform(0, 2 * np.pi, 5), rng.uniform(0, np.pi, 5)
    tables = {k: clebsch_gordan(l1, l2, k) for k in range(l1 - l2, l1 + l2 + 1)}
    for m1 in range(-l1, l1 + 1, 2):
        for m2 in range(-l2, l2 + 1):
            found = np.zeros(5, dtype=complex)
            for k, table in tables.items():
                if abs(m1 + m2) <= k:
                    size = np.sqrt((2 * l1 + 1) * (2 * l2 + 1) / (4 * np.pi * (2 * k + 1)))
                    both = table[k, l1, l2] * table[k + m1 + m2, l1 + m1, l2 + m2]
                    found += size * both * sph_harm_y(k, m1 + m2, beta, alpha)
            expected = sph_harm_y(l1, m1, beta, alpha) * sph_harm_y(l2, m2, beta, alpha)
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("degree", [-1, 0, 6])
def test_degrees_that_do_not_couple_are_refused(degree: int) -> None:
    with pytest.raises(ValueError, match=rf"2 and 3 do not couple to {degree}$"):
        clebsch_gordan(2, 3, degree)


def test_published_numbers() -> None:
    assert CHANNELS == [12, 7, 6, 5, 4, 4, 4, 4, 3, 3, 3]
    assert len(couplings()) == 66
    first, later = (product_channels(tau) for tau in ([1] * DEGREES, CHANNELS))
    assert np.dot(CHANNELS, first) == 1_643
    assert np.dot(CHANNELS, later) == 31_023
    for level in (3, 4):
        model = FFS2CNN(level)
        assert sum(p.numel() for p in model.parameters()) == 285_772
        assert sum(m.weight.numel() for m in model.mixes) == 2 * (1_643 + 4 * 31_023)


def test_product_is_the_sum_over_coefficients(product: CGProduct) -> None:
    channels = [2, 1, 3] + [1] * 8
    f = fragments(channels, 2)
    expected: list[list[Tensor]] = [[] for _ in range(DEGREES)]
    for l1, l2, degrees in couplings():
        for degree in degrees:
            c = torch.from_numpy(clebsch_gordan(l1, l2, degree)).to(torch.complex128)
            h = torch.einsum("mpq,pxb,qyb->mxyb", c, f[l1], f[l2])
            expected[degree].append(h.flatten(1, 2))
    found = product(f)
    assert [len(h[0]) for h in found] == product_channels(channels)
    for h, parts in zip(found, expected, strict=True):
        torch.testing.assert_close(h, torch.cat(parts, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(CGProduct(degrees_out=1)(f), found[:1], rtol=0, atol=1e-12)


def test_products_that_vanish_are_known(product: CGProduct) -> None:
    channels = [2, 3] + [1] * 8 + [2]
    f = fragments(channels, 4)
    for h, live in zip(product(f), live_products(channels), strict=True):
        size = h.abs().amax(dim=(0, 2)).numpy()
        assert size[live].min() > 1e-3
        assert size[~live].max(initial=0) < 1e-13
    assert sum(len(live) - live.sum() for live in live_products(channels)) == 47


@pytest.mark.parametrize("seed", range(2))
def test_product_is_equivariant(product: CGProduct, seed: int) -> None:
    f, rotation = fragments(CHANNELS, 2, seed), Rotation.random(random_state=seed)
    at_rest, moved = product(f), product(turned(f, rotation))
    for h, expected in zip(moved, turned(at_rest, rotation), strict=True):
        torch.testing.assert_close(h, expected, rtol=0, atol=1e-11)


def test_mix_divides_by_the_average_standard_deviation() -> None:
    torch.manual_seed(0)
    channels = product_channels([1] * DEGREES)
    mix, batches = FragmentMix([1] * DEGREES), [fragments(channels, 5, seed) for seed in range(3)]
    for h in batches:
        out = mix(h)
    expected = torch.cat(
        [
            torch.stack([h[k].abs().std(dim=(0, 2), correction=0) for h in batches]).mean(0)
            for k in range(DEGREES)
        ]
    )
    torch.testing.assert_close(mix.std, expected)
    assert not mix.std.requires_grad

    start, live = 0, live_products([1] * DEGREES)
    for k, (h, divisor) in enumerate(zip(batches[-1], expected.split(channels), strict=True)):
        weight = mix.weight[start : start + CHANNELS[k] * channels[k]].detach()
        start += len(weight)
        weight = (weight[:, 0] + 1j * weight[:, 1]).view(CHANNELS[k], channels[k])
        scaled = h / divisor[:, None] * torch.from_numpy(live[k])[:, None]
        torch.testing.assert_close(out[k], torch.einsum("tc,mcb->mtb", weight, scaled))
    assert start == len(mix.weight)

    frozen = mix.eval()(batches[0])
    torch.testing.assert_close(mix.std, expected)
    torch.testing.assert_close(mix(batches[0]), frozen)


def test_dead_products_do_not_blow_up() -> None:
    mix = FragmentMix([1] * DEGREES)
    silent = [0 * h for h in fragments(product_channels([1] * DEGREES), 3)]
    for _ in range(2):
        assert all(not out.abs().any() for out in mix(silent))


@pytest.mark.parametrize("level", [3, 4])
def test_coefficients_of_sampled_signals(level: int) -> None:
    """Exact for degrees up to 2 b - 11, those above 10 are cut off."""
    a = of_real_signals([1] * 14, 2)
    found = FFS2CNN(level).coefficients(sampled(a, grid(15 * 2 ** (level - 3))))
    for part, expected in zip(found, a[:DEGREES], strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)


def test_invariant_to_rotations_of_the_coefficients() -> None:
    torch.manual_seed(0)
    model, a = trained_statistics(FFS2CNN(3)), of_real_signals([1] * DEGREES, 4, seed=9)
    with torch.no_grad():
        at_rest = model.scalars(a)
        assert at_rest.shape == (4, 122)
        size = at_rest.abs().amax(dim=0)
        assert size[size > 0].min() > 1e-6
        for seed in range(3):
            rotation = Rotation.random(random_state=seed)
            moved = model.scalars(turned(a, rotation))
            assert ((moved - at_rest).abs().amax(dim=0) <= 1e-11 * (1 + size)).all()
            torch.testing.assert_close(model.head(moved), model.head(at_rest))
        other = model.scalars(of_real_signals([1] * DEGREES, 4, seed=10))
        assert ((other - at_rest).norm(dim=1) > 0.1 * at_rest.norm(dim=1)).all()


@pytest.mark.parametrize("level", [3, 4])
def test_invariant_to_rotations_of_sampled_signals(level: int) -> None:
    """f(R^-1 x) of signals up to degree 10, evaluated at the grid's points."""
    torch.manual_seed(0)
    model, a = trained_statistics(FFS2CNN(level)), of_real_signals([1] * DEGREES, 3, seed=9)
    points = grid(15 * 2 ** (level - 3))
    with torch.no_grad():
        logits = model(sampled(a, points))
        for seed in range(2):
            rotation = Rotation.random(random_state=seed)
            moved = model(sampled(a, rotation.inv().apply(points)))
            torch.testing.assert_close(moved, logits, rtol=0, atol=1e-9 * logits.abs().max())
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_mixed_precision_is_for_the_head_alone() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model, x = FFS2CNN(3).eval(), torch.randn(2, 1, 900)
    expected = model.invariants(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.invariants(x), expected)
        assert model(x).dtype == torch.bfloat16


def test_the_last_layer_trains_its_degree_0_alone() -> None:
    """53,766 of the published parameters are never read; of the others, all that meet a product
    that is not 0 are trained."""
    torch.manual_seed(0)
    model = FFS2CNN(3, dropout=0)
    F.cross_entropy(model(torch.randn(8, 1, 900)), torch.arange(8)).backward()
    for mix, channels in zip(model.mixes, [[1] * DEGREES] + [CHANNELS] * 4, strict=True):
        masks = zip(live_products(channels), CHANNELS, strict=True)
        live = torch.from_numpy(np.concatenate([np.tile(mask, tau) for mask, tau in masks]))
        if mix is model.mixes[-1]:
            used = CHANNELS[0] * product_channels(CHANNELS)[0]
            assert len(live) - used == 53_766 // 2
            live[used:] = False
        assert not mix.weight.grad[~live].any()
        assert (mix.weight.grad[live] != 0).all()


def test_initialisation() -> None:
    """Real and imaginary parts from U(0, 0.05)."""
    torch.manual_seed(0)
    for mix in FFS2CNN(3).mixes:
        assert 0 <= mix.weight.min() < 1e-3
        assert 0.049 < mix.weight.max() <= 0.05
        assert mix.weight.mean().item() == pytest.approx(0.025, rel=0.05)


def test_state_dict_holds_no_geometry_and_fits_any_level() -> None:
    state = FFS2CNN(3).state_dict()
    products = sum(product_channels([1] * DEGREES)) + 4 * sum(product_channels(CHANNELS))
    statistics = products + 5 + 2 * 122 + 1
    assert sum(v.numel() for v in state.values()) == 285_772 + statistics
    FFS2CNN(4).load_state_dict(state)


@pytest.mark.parametrize("level", [-1, 2])
def test_too_coarse_a_level_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=rf"level must be at least 3, not {level}$"):
        FFS2CNN(level)


@pytest.mark.parametrize("shape", [(2, 1, 642), (2, 3, 900), (2, 900)])
def test_inputs_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 1, 900\)"):
        FFS2CNN(3)(torch.zeros(shape))
