"""Sparse operators on fields: what the stencils do to fibre modes, as real matrices.

A regular field is a function of a vertex P and an orientation phi, stored by its fibre modes:
f(P, phi) = sum_{|n| <= M} f_n(P) e^{-i n phi} with f_{-n} = conj f_n. The N = 2M + 1 real numbers
(f_0, sqrt2 Re f_1, sqrt2 Im f_1, ..., sqrt2 Re f_M, sqrt2 Im f_M) are its coordinates in an
orthonormal basis: their sum of squares is the mean of f^2 over the fibre.

The rotated derivatives of the paper become operators that shift the order n (spin weight):
eth = d1 + i d2 raises it by 1, eth^2 = d11 - d22 + 2i d12 by 2, their conjugates lower it, the
identity and the Laplacian keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from pdo.stencils import Stencil

SHIFTS = (0, 0, 1, -1, 2, -2)
"""Order shift of each operator: identity, Laplacian, eth, conj eth, eth^2, conj eth^2."""

CONJUGATE = (0, 1, 3, 2, 5, 4)
"""The complex conjugate of each of these operators."""


@dataclass(frozen=True)
class Term:
    """One input of output order m: an operator applied to the mode of order n of the input.

    `conjugate`: the input mode has a negative order and is the conjugate of the stored mode n.
    """

    operator: int
    n: int
    conjugate: bool = False


def terms(m: int, input_orders: int) -> list[Term]:
    """All operators applied to modes |n| <= `input_orders` whose result has order m >= 0.

    For m = 0 the results of n and -n are conjugates of each other, and one of them is listed.
    """
    found = []
    for operator, shift in enumerate(SHIFTS):
        n = m - shift
        if abs(n) > input_orders or (m == 0 and n < 0):
            continue
        if n >= 0:
            found.append(Term(operator, n))
        else:  # D_s conj(f_n) = conj(D_{-s} f_n)
            found.append(Term(CONJUGATE[operator], -n, conjugate=True))
    return found


Terms = Sequence[Sequence[Term]]
"""Those of each output order m = 0, 1, ..."""


def all_terms(input_orders: int, output_orders: int) -> list[list[Term]]:
    """All terms of output orders m = 0 .. `output_orders`."""
    return [terms(m, input_orders) for m in range(output_orders + 1)]


def term_rows(m: int, term: Term) -> int:
    """Real rows of a term of output order m at a vertex: two parts, one where both are real."""
    return 1 if m == term.n == 0 else 2


def derivative_rows(m: int, found: Sequence[Term]) -> int:
    """Real rows of some terms of output order m at a vertex."""
    return sum(term_rows(m, term) for term in found)


def terms_of_input(listed: Terms, n: int) -> list[tuple[int, int, Term]]:
    """The terms that read mode n: output order, place in its list, and the term."""
    return [(m, i, t) for m, row in enumerate(listed) for i, t in enumerate(row) if t.n == n]


def coordinates(n: int) -> slice:
    """Where mode n >= 0 stands among the N real coordinates."""
    return slice(0, 1) if n == 0 else slice(2 * n - 1, 2 * n + 1)


def complex_operators(stencil: Stencil, h: float) -> np.ndarray:
    """The six operators as complex stencil weights (6, E), in units of the mesh size h (so that
    they are pure numbers): identity, h^2 Laplacian, h eth, conj, h^2 eth^2, conj."""
    value, d1, d2, d11, d12, d22 = stencil.weights.T
    eth, eth2 = h * (d1 + 1j * d2), h**2 * (d11 - d22 + 2j * d12)
    return np.stack([value + 0j, h**2 * (d11 + d22) + 0j, eth, eth.conj(), eth2, eth2.conj()])


def derivative_matrix(
    stencil: Stencil, h: float, listed: Terms, input_orders: int, n_vertices: int
) -> sparse.csr_array:
    """All listed terms, one real matrix below the other: for each output order m a block of V * R_m
    rows, against V * (2 input_orders + 1) columns.

    Row (P, r) of block m: the terms as they are listed, each with its parts (Re, Im); identity and
    Laplacian of mode 0 are real and have one part.
    """
    operators = complex_operators(stencil, h)
    matrices = []
    for m, found in enumerate(listed):
        blocks = [_real_block(_weights(stencil, operators, t), t.n, m, t.conjugate) for t in found]
        starts = [coordinates(t.n).start for t in found]
        matrices.append(_assemble(stencil, blocks, starts, n_vertices, 2 * input_orders + 1))
    return sparse.vstack(matrices, format="csr")


def adjoint_matrix(
    stencil: Stencil, h: float, listed: Terms, input_orders: int, n_vertices: int
) -> sparse.csr_array:
    """The adjoint D^H of every listed term D, applied to the gradient g_m of its output order (to
    conj g_m, where the term reads a conjugate): for each input mode n a block of V * R_n rows,
    against V * (2 output orders + 1) columns.

    out_m = sum W D f_n has the gradients sum over m of W^H D^H g_m with respect to f_n, and
    sum over P of (D^H g_m) conj f_n with respect to W: both from rows that are as many as those of
    the derivatives. Row (Q, r) of block n: the terms as `terms_of_input` lists them, with parts as
    in `derivative_matrix`.
    """
    operators = complex_operators(stencil, h)
    reverse = replace(stencil, rows=stencil.cols, cols=stencil.rows)
    matrices = []
    for n in range(input_orders + 1):
        found = terms_of_input(listed, n)
        blocks = [
            _real_block(_weights(stencil, operators, t), n, m, t.conjugate, adjoint=True)
            for m, _, t in found
        ]
        starts = [coordinates(m).start for m, _, _ in found]
        matrices.append(_assemble(reverse, blocks, starts, n_vertices, 2 * len(listed) - 1))
    return sparse.vstack(matrices, format="csr")


def _weights(stencil: Stencil, operators: np.ndarray, term: Term) -> np.ndarray:
    """What each neighbour's mode counts in a term, carried to the frame at P: complex (E,)."""
    return operators[term.operator] * np.exp(1j * term.n * stencil.angles)


def transport_matrix(
    stencil: Stencil, orders: int, n_rows: int, n_cols: int | None = None
) -> sparse.csr_array:
    """A stencil of one quantity acting on every transported mode: smoothing, pooling.
    (n_rows * N, n_cols * N) with N = 2 orders + 1; n_cols is n_rows unless given."""
    weights = stencil.weights[:, 0]
    blocks = [
        _real_block(weights * np.exp(1j * n * stencil.angles), n, n, False)
        for n in range(orders + 1)
    ]
    starts = [coordinates(n).start for n in range(orders + 1)]
    return _assemble(stencil, blocks, starts, n_cols or n_rows, 2 * orders + 1, n_rows)


def _real_block(
    weights: np.ndarray, n: int, spin: int, conjugate: bool, adjoint: bool = False
) -> np.ndarray:
    """Complex weights (E,) from mode n to order `spin` as real blocks (E, parts out, parts in), or
    their adjoints from order `spin`.

    sqrt2: mode 0 is stored as it is, the others times sqrt2. A result of order 0 made from n > 0
    keeps both parts, since its conjugate twin is made from -n.
    """
    re, im = weights.real, weights.imag
    block = np.array([[re, -im], [im, re]])
    if conjugate:  # conj(D f): the imaginary part changes sign
        block[1] *= -1
    if n == 0 and spin > 0:
        block *= np.sqrt(2)
    if adjoint:
        block = block.swapaxes(0, 1)
    parts_out, parts_in = (1 if n == spin == 0 else 2), (1 if (spin if adjoint else n) == 0 else 2)
    return np.moveaxis(block[:parts_out, :parts_in], -1, 0)


def _assemble(
    stencil: Stencil,
    blocks: list[np.ndarray],
    starts: list[int],
    n_cols: int,
    coordinates_in: int,
    n_rows: int | None = None,
) -> sparse.csr_array:
    """Stack blocks below each other at every vertex; block k reads coordinates from starts[k]."""
    height = sum(block.shape[1] for block in blocks)
    rows, cols, data = [], [], []
    row = 0
    for block, start in zip(blocks, starts, strict=True):
        _, parts_out, parts_in = block.shape
        out, inp = np.arange(parts_out)[:, None], np.arange(parts_in)[None, :]
        r = stencil.rows[:, None, None] * height + row + out + 0 * inp
        c = stencil.cols[:, None, None] * coordinates_in + start + inp + 0 * out
        rows.append(r.ravel())
        cols.append(c.ravel())
        data.append(block.ravel())
        row += parts_out
    shape = ((n_rows or n_cols) * height, n_cols * coordinates_in)
    entries = (np.concatenate(rows), np.concatenate(cols))
    matrix = sparse.csr_array((np.concatenate(data), entries), shape=shape)
    matrix.eliminate_zeros()
    return matrix
