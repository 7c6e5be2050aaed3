"""The paper's error analysis as measurements, and the stencil families side by side.

Errors are relative and taken over all Wigner-D functions of degree DEGREE (`bench.wigner`), where
every answer is known:

    rms = |measured - exact| / |exact| in L2 over the sphere and all m,
    max = the largest error / the largest exact value.

By Schur's lemma an equivariant map multiplies D_mn by a constant, the same for all m. What the best
constant leaves is the `equivariance` error: a smoothing that all directions share is no error.

Layers are random ones. The unit of length of their operators (unit * eth, unit^2 eth^2, ...) is
that of the signal, 1 / sqrt(l (l + 1)), the same at all mesh sizes; a network's is the mesh size.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from bench.stencil_families import Family, ModeOperators, transported
from bench.wigner import factor, wigner_d
from pdo.direct import DEGREES, ETH
from pdo.frames import default_frames
from pdo.mesh import Icosphere
from pdo.operators import SHIFTS, complex_operators
from pdo.stencils import PAPER, fit_stencil

DEGREE = 3
ORDERS = 2
SAMPLES = (5, 7, 9, 15, 25, 45)
DEPTH = 4
"""Layers of the deep stack: a lifting layer and group layers."""

Fields = dict[int, np.ndarray]
"""Fibre order n -> modes (V, 2 DEGREE + 1)."""


def measure_family(family: Family, level: int) -> list[dict]:
    """Errors of a family at a level, one row for each quantity."""
    mesh = family.mesh(level)
    apply = ModeOperators(mesh, family)
    exact = _harmonics(apply.frames)
    rows = []

    def add(quantity: str, measured: Fields, wanted: Fields, equivariance: bool) -> None:
        errors = _errors(measured, wanted, exact if equivariance else None, mesh.vertex_areas)
        rows.append({"quantity": quantity, "level": level, "h": mesh.mean_edge} | errors)

    measured = _derivatives(apply(list(range(6)), exact[0], 0))
    wanted = _derivatives([factor(o, DEGREE, 0) * exact[s] for o, s in enumerate(SHIFTS)])
    for name in measured:
        add(name, {0: measured[name]}, {0: wanted[name]}, False)

    def add_layers(name: str, coefficients: dict[int, complex], layers: list[np.ndarray]) -> None:
        fields = {n: c * exact[n] for n, c in coefficients.items()}
        for weights in layers:
            fields = _layer(apply, weights, fields)
            coefficients = _exact_layer(weights, coefficients)
        wanted = {n: c * exact[n] for n, c in coefficients.items()}
        add(name, fields, wanted, True)

    signal = 1 / np.sqrt(DEGREE * (DEGREE + 1))
    field = dict(enumerate(_complex_normal(2 * ORDERS + 1, seed=0), start=-ORDERS))
    add_layers("lifting layer", {0: 1}, [_layer_weights(1, signal)])
    add_layers("group layer", field, [_layer_weights(0, signal)])
    for quantity, unit in (("deep stack", signal), ("deep stack, mesh units", mesh.mean_edge)):
        add_layers(quantity, {0: 1}, [_layer_weights(i, unit) for i in range(1, DEPTH + 1)])

    (raised,) = apply([4], exact[0], 0)
    (back,) = apply([5], raised, 2)
    scale = factor(4, DEGREE, 0) * factor(5, DEGREE, 2)
    add("conj(eth)^2 eth^2", {0: back}, {0: scale * exact[0]}, True)
    return rows


def measure_fibre(level: int) -> list[dict]:
    """Errors against the number N of samples of a fibre (nearest-ring fit), one row for each
    interpolation between them, quantity and N:

        rms        |measured - exact| / |exact|, as above
        of_fibre   |measured - continuous| / |exact|

    over all samples, `continuous` being the same on the same mesh with whole fibres, N = infinity.

    Quantities: `eth` and `eth^2` of the field sum over |n| <= DEGREE of D_mn e^{-i n phi}; a
    `lifting layer` on D_m0; a `group layer` on that field, out(phi) = mean over B of chi_B[h](phi +
    B), with the weight z_k e^{cos(B - b_k)} of derivative k at B. z and b are random.
    """
    mesh = Icosphere(level)
    frames = default_frames(mesh)
    stencil = fit_stencil(mesh, frames, PAPER)
    weights = complex_operators(stencil, 1.0)
    modes = {n: wigner_d(DEGREE, n, frames) for n in range(-DEGREE, DEGREE + 1)}
    pairs = list(product(range(len(SHIFTS)), modes))
    exact = {
        (o, n): factor(o, DEGREE, n) * modes.get(n + SHIFTS[o], 0 * modes[0]) for o, n in pairs
    }
    whole = {(o, n): transported(stencil, weights[o], n) @ modes[n] for o, n in pairs}
    limits, rows = fibre_quantities(None), []
    for interpolation, samples in product(("linear", "trigonometric"), SAMPLES):
        measured = {}
        for o, n in pairs:
            turn = interpolation_factor(stencil.angles, n, samples, interpolation)
            turn = turn * np.exp(-1j * n * stencil.angles)  # in place of the exact transport
            measured[o, n] = transported(stencil, weights[o] * turn, n) @ modes[n]
        for quantity, coefficients in fibre_quantities(samples).items():
            found = _superposed(coefficients, measured)
            wanted, continuous = (_superposed(limits[quantity], v) for v in (exact, whole))
            size = _over_samples(wanted, samples, mesh.vertex_areas)
            row = {"interpolation": interpolation, "quantity": quantity, "N": samples}
            row |= {"level": level, "h": mesh.mean_edge}
            for name, reference in (("rms", wanted), ("of_fibre", continuous)):
                difference = {m: found[m] - reference[m] for m in found}
                row[name] = _over_samples(difference, samples, mesh.vertex_areas) / size
            rows.append(row)
    return rows


def fibre_quantities(samples: int | None) -> dict[str, dict[tuple[int, int], complex]]:
    """The quantities of `measure_fibre` as sums of c operator f_n: c by (operator, n).

    Of the group layer c is the mean over N = `samples` of v_s(B) e^{-i n B}, v_s the weight of
    operator s at B that the weights of the six derivatives make (`pdo.direct`); None: over the
    circle, where e^{cos(B - b)} gives I_n(1) e^{-i n b}.
    """
    orders = range(-DEGREE, DEGREE + 1)
    z, b = fibre_weights()
    to_operators = np.linalg.inv(ETH.numpy())  # (derivative, operator)
    group = {}
    for n in orders:
        if samples is None:
            means = special.iv(n, 1) * np.exp(-1j * n * b)
        else:
            angles = 2 * np.pi / samples * np.arange(samples)
            means = np.exp(np.cos(angles[:, None] - b) - 1j * n * angles[:, None]).mean(axis=0)
        for o, c in enumerate((z * means) @ to_operators):
            group[o, n] = complex(c)
    return {
        "eth": {(2, n): 1 for n in orders},
        "eth^2": {(4, n): 1 for n in orders},
        "lifting layer": {(o, 0): complex(c) for o, c in enumerate(z @ to_operators)},
        "group layer": group,
    }


def fibre_weights() -> tuple[np.ndarray, np.ndarray]:
    """z and b of `measure_fibre`, (6,) each: the derivatives (value, d1, d2, d11, d12, d22) in the
    unit of length of the signal."""
    rng = np.random.default_rng(0)
    unit = 1 / np.sqrt(DEGREE * (DEGREE + 1))
    return rng.standard_normal(6) * unit**DEGREES, rng.uniform(0, 2 * np.pi, 6)


def interpolation_factor(
    angles: np.ndarray, n: int, samples: int, interpolation: str
) -> np.ndarray:
    """What stands in place of e^{i n theta} when a fibre mode sampled N times is interpolated at
    phi - theta. Linear, with theta = (k + p) D, D = 2 pi / N, 0 <= p < 1:
    e^{i n k D} (1 - p + p e^{i n D}). Trigonometric: e^{i n' theta}, n' = n mod N in |n'| < N / 2.
    """
    if interpolation == "linear":
        step = 2 * np.pi / samples
        k = np.floor(angles / step)
        p = angles / step - k
        return np.exp(1j * n * k * step) * (1 - p + p * np.exp(1j * n * step))
    folded = (n + samples // 2) % samples - samples // 2
    return np.exp(1j * folded * angles)


class Order(NamedTuple):
    """error = constant * h^slope, the slope with the half-width of its 95 % interval."""

    slope: float
    half_width: float
    constant: float


def fit_order(h: Iterable[float], error: Iterable[float]) -> Order:
    """Regression of log error on log h; the interval is t_{0.975, n-2} standard errors wide to
    either side, NaN for fewer than three points.

    Raises:
        ValueError: if there are fewer than two points, or an error is not positive.
    """
    x, y = np.asarray(list(h), float), np.asarray(list(error), float)
    if len(x) < 2 or not (y > 0).all():
        raise ValueError(f"an order needs at least two positive errors, not {y.tolist()}")
    line = stats.linregress(np.log(x), np.log(y))
    width = stats.t.ppf(0.975, len(x) - 2) * line.stderr if len(x) > 2 else np.nan
    return Order(float(line.slope), float(width), float(np.exp(line.intercept)))


def _superposed(coefficients: dict[tuple[int, int], complex], values: dict) -> Fields:
    """By order: the sum of c * (operator f_n), of order n + shift."""
    out: Fields = {}
    for (operator, n), c in coefficients.items():
        order = n + SHIFTS[operator]
        out[order] = out.get(order, 0) + c * values[operator, n]
    return out


def _over_samples(fields: Fields, samples: int, areas: np.ndarray) -> float:
    """Root of the integral of |sum over n of f_n e^{-i n phi}|^2 over the sphere, mean over N
    equidistant phi, where orders that differ by N are the same function."""
    folded: Fields = {}
    for n, field in fields.items():
        folded[n % samples] = folded.get(n % samples, 0) + field
    return float(np.sqrt(sum(areas @ np.sum(np.abs(f) ** 2, axis=1) for f in folded.values())))


def _harmonics(frames: np.ndarray) -> Fields:
    return {n: wigner_d(DEGREE, n, frames) for n in range(-ORDERS, ORDERS + 1)}


def _derivatives(operators: list[np.ndarray]) -> dict[str, np.ndarray]:
    """d1 .. d22 of a scalar from the six operators, as pdo.operators.complex_operators has them."""
    _, laplacian, eth, conj_eth, eth2, conj_eth2 = operators
    return {
        "d1": (eth + conj_eth) / 2,
        "d2": (eth - conj_eth) / 2j,
        "d11": laplacian / 2 + (eth2 + conj_eth2) / 4,
        "d12": (eth2 - conj_eth2) / 4j,
        "d22": laplacian / 2 - (eth2 + conj_eth2) / 4,
    }


def _errors(
    measured: Fields, wanted: Fields, harmonics: Fields | None, areas: np.ndarray
) -> dict[str, float]:
    """The three errors defined above; equivariance only where `harmonics` are given."""

    def square(x: np.ndarray) -> float:
        return float(areas @ np.sum(np.abs(x) ** 2, axis=1))

    size = sum(square(wanted[n]) for n in wanted)
    largest = max(np.abs(wanted[n]).max() for n in wanted)
    difference = {n: measured[n] - wanted[n] for n in wanted}
    found = {
        "rms": np.sqrt(sum(square(d) for d in difference.values()) / size),
        "max": max(np.abs(d).max() for d in difference.values()) / largest,
    }
    if harmonics is not None:
        left = 0.0
        for n, field in measured.items():
            product_ = np.sum(areas[:, None] * harmonics[n].conj() * field)
            left += square(field - product_ / square(harmonics[n]) * harmonics[n])
        found["equivariance"] = np.sqrt(left / sum(square(f) for f in measured.values()))
    return {name: float(value) for name, value in found.items()}


def _complex_normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, *shape)).T @ [1, 1j]


def _layer_weights(seed: int, unit: float) -> np.ndarray:
    """Complex normal weights (input order, operator) of the operators in a unit of length."""
    return _complex_normal(6, 2 * ORDERS + 1, seed=seed) * unit ** np.array([0, 2, 1, 1, 2, 2])


def _layer(apply: ModeOperators, weights: np.ndarray, fields: Fields) -> Fields:
    """out_{n+s} = sum of weights[n, operator] operator f_n, as in `pdo.layers.PDOConv`."""
    out: Fields = {}
    for n, field in fields.items():
        reached = [o for o, s in enumerate(SHIFTS) if abs(n + s) <= ORDERS]
        for operator, result in zip(reached, apply(reached, field, n), strict=True):
            m = n + SHIFTS[operator]
            out[m] = out.get(m, 0) + weights[n + ORDERS, operator] * result
    return out


def _exact_layer(weights: np.ndarray, coefficients: dict[int, complex]) -> dict[int, complex]:
    """The same on Wigner-D functions: f_n = coefficients[n] D_mn."""
    out: dict[int, complex] = {}
    for n, c in coefficients.items():
        for operator, shift in enumerate(SHIFTS):
            if abs(n + shift) <= ORDERS:
                gain = weights[n + ORDERS, operator] * factor(operator, DEGREE, n)
                out[n + shift] = out.get(n + shift, 0) + gain * c
    return out
