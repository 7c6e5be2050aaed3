"""Loops over the vertices of a field that torch has no fast operation for, compiled by Numba for
the CPU.

Fields are (V, N, C, B) as in `pdo.layers`, in float32 or float64. Every element is summed in one
order, whatever the number of threads: the same bits on one core as on many.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, prange, set_num_threads, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

VECTOR_BYTES, VECTORS = 64, 4
"""Sums over neighbours: so many vectors at a time, for two rows, are kept in registers."""
BLOCK = 256
"""Numbers of a fibre coordinate at a vertex that `relu` works on at a time, in a core's first-level
cache."""
VERTICES = 64
"""Vertices whose partial sums are kept in the field's own precision, before float64."""

CONTRACT = {"contract"}  # multiply-adds in one rounding; sums are not reordered
U = (
    np.uint64
)  # an unsigned index spares the check for a negative one, and lets the loop be a vector's


def array(x: Tensor) -> np.ndarray:
    """The memory of a CPU tensor; bfloat16 as its bits."""
    x = x.detach()
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()


def apply_to(x: Tensor) -> bool:
    """Whether the kernels can work on a tensor: whether it is on a CPU."""
    return x.device.type == "cpu"


def threads() -> int:
    """Lets Numba use as many threads as torch does, so far as it has them; returns how many."""
    wanted = torch.get_num_threads()
    count = min(wanted, config.NUMBA_NUM_THREADS)
    set_num_threads(count)
    if torch.get_num_threads() != wanted:  # Numba's first call sets OpenMP's default: torch's too
        torch.set_num_threads(wanted)
    return count


def _put(target, at, source, start, count):  # type: ignore[no-untyped-def]
    """target[at:] = source[start : start + count], rounded to bfloat16 if the target is bits."""
    raise NotImplementedError


@overload(_put, inline="always", strict=False)
def _put_of(target: Any, at: Any, source: Any, start: Any, count: Any) -> Any:
    if target.dtype is types.uint16:

        def rounded(target, at, source, start, count):  # type: ignore[no-untyped-def]
            bits = source.view(np.uint32)
            for k in range(count):
                u = bits[start + k]
                even = (u >> np.uint32(16)) & np.uint32(1)
                target[at + k] = np.uint16((u + np.uint32(0x7FFF) + even) >> np.uint32(16))

        return rounded

    def copied(target, at, source, start, count):  # type: ignore[no-untyped-def]
        for k in range(count):
            target[at + k] = source[start + k]

    return copied


def _take(target, at, source, start, count):  # type: ignore[no-untyped-def]
    """target[at:] = source[start : start + count], from bfloat16 if the source is bits."""
    raise NotImplementedError


@overload(_take, inline="always", strict=False)
def _take_of(target: Any, at: Any, source: Any, start: Any, count: Any) -> Any:
    if source.dtype is types.uint16:

        def widened(target, at, source, start, count):  # type: ignore[no-untyped-def]
            bits = target.view(np.uint32)
            for k in range(count):
                bits[at + k] = np.uint32(source[start + k]) << np.uint32(16)

        return widened

    def copied(target, at, source, start, count):  # type: ignore[no-untyped-def]
        for k in range(count):
            target[at + k] = source[start + k]

    return copied


@intrinsic
def _add_products(  # type: ignore[no-untyped-def]
    typing, target, at, source, places, picks, start, stop, weights, first, count
):
    """target[at[r] + k] += sum over start <= s < stop of weights[first + 2 (s - start) + r] *
    source[places[picks[s]] + k], for r = 0, 1 and k < count, in flat arrays. If at[0] = at[1], the
    second is forgotten.

    Written for LLVM in vectors: the sums of a block of k stay in registers while s runs. Of loops
    it makes vectors of the innermost one alone: with k there, every sum is loaded and stored again
    for every few s.
    """
    arguments = (target, at, source, places, picks, start, stop, weights, first, count)

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        target, source, places, picks, weights = (
            context.make_array(signature.args[i])(context, builder, values[i]).data
            for i in (0, 2, 3, 4, 7)
        )
        at, start, stop, first, count = (values[i] for i in (1, 5, 6, 8, 9))
        number = context.get_data_type(signature.args[0].dtype)
        size = context.get_abi_sizeof(number)
        rows = [builder.gep(target, [builder.extract_value(at, r)]) for r in range(2)]
        done = cgutils.alloca_once_value(builder, count.type(0))

        def blocks(vectors, lanes):  # type: ignore[no-untyped-def]
            """As many blocks of so many vectors as are left of k."""
            vector, block = ir.VectorType(number, lanes), count.type(vectors * lanes)
            sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in rows]

            def place(base, k, i):  # type: ignore[no-untyped-def]
                there = builder.gep(base, [builder.add(k, k.type(i * lanes))])
                return builder.bitcast(there, vector.as_pointer())

            def spread(value):  # type: ignore[no-untyped-def]
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                none = ir.Constant(vector, ir.Undefined)
                one = builder.insert_element(none, value, ir.IntType(32)(0))
                return builder.shuffle_vector(one, none, zeros)

            left = builder.udiv(builder.sub(count, builder.load(done)), block)
            with cgutils.for_range(builder, left):
                k = builder.load(done)
                for row, kept in zip(rows, sums, strict=True):
                    for i in range(vectors):
                        builder.store(builder.load(place(row, k, i), align=size), kept[i])
                with cgutils.for_range(builder, builder.sub(stop, start)) as loop:
                    pick = builder.load(builder.gep(picks, [builder.add(start, loop.index)]))
                    base = builder.gep(source, [builder.load(builder.gep(places, [pick]))])
                    before = builder.mul(loop.index, loop.index.type(2))
                    w = builder.gep(weights, [builder.add(first, before)])
                    both = [spread(builder.load(builder.gep(w, [first.type(r)]))) for r in range(2)]
                    for i in range(vectors):
                        value = builder.load(place(base, k, i), align=size)
                        for weight, kept in zip(both, sums, strict=True):
                            product = builder.fmul(weight, value, flags=tuple(CONTRACT))
                            total = builder.fadd(
                                builder.load(kept[i]), product, flags=tuple(CONTRACT)
                            )
                            builder.store(total, kept[i])
                for row, kept in zip(reversed(rows), reversed(sums), strict=True):
                    for i in range(vectors):
                        builder.store(builder.load(kept[i]), place(row, k, i), align=size)
                builder.store(builder.add(k, block), done)

        for vectors, lanes in ((VECTORS, VECTOR_BYTES // size), (1, VECTOR_BYTES // size), (1, 1)):
            blocks(vectors, lanes)
        return context.get_dummy_value()

    return types.void(*arguments), emit


@njit(parallel=True, fastmath=CONTRACT, cache=True)
def gather(  # type: ignore[no-untyped-def]
    x, near, pairs, starts, picks, weights, vertices, columns, out, parts
):
    """Rows at some vertices as weighted sums over the vertices near them.

    x: (V, N, C, B). near: (V', J). pairs: (G, 2), pairs of rows that read the same things; the
    second may be -1. starts: (G + 1,), where the reads of each pair start. picks: (S,), what is
    read: place in `near` times N + fibre coordinate. weights: (V', S, 2), for each row. vertices:
    (n,), in so many `parts`, one thread each. out: (R, C, n, B) if `columns`, for matrix products;
    else (V', R, C, B), a field.
    """
    _, coordinates, channels, batch = x.shape
    length = channels * batch
    height = out.shape[0] if columns else out.shape[1]
    flat, target, flat_weights = x.reshape(-1), out.reshape(-1), weights.reshape(-1)
    width = (len(vertices) + parts - 1) // parts
    for part in prange(parts):
        sums = np.empty(2 * length, x.dtype)
        places = np.empty(near.shape[1] * coordinates, np.int64)
        for i in range(part * width, min(len(vertices), (part + 1) * width)):
            v = vertices[i]
            for j in range(near.shape[1]):
                for q in range(coordinates):
                    places[j * coordinates + q] = (near[v, j] * coordinates + q) * length
            for g in range(len(pairs)):
                sums[:] = 0
                start, stop = starts[g], starts[g + 1]
                first = (v * len(picks) + start) * 2
                _add_products(
                    sums, (0, length), flat, places, picks, start, stop, flat_weights, first, length
                )
                for e in range(2):
                    row = pairs[g, e]
                    if row < 0:
                        continue
                    if columns:
                        for c in range(channels):
                            at = U(((row * channels + c) * len(vertices) + i) * batch)
                            _put(target, at, sums, U(e * length + c * batch), U(batch))
                    else:
                        at = U((v * height + row) * length)
                        _put(target, at, sums, U(e * length), U(length))


@njit(parallel=True, fastmath=CONTRACT, cache=True)
def scatter(  # type: ignore[no-untyped-def]
    grad, near, pairs, starts, picks, weights, vertices, total, parts
):
    """The transpose of `gather` with columns: adds what gradients of the rows, (R, C, n, B), give
    the vertices near by to `total` (V, N, C, B).

    pairs: (G, 2), pairs of fibre coordinates that the same rows read; twice the same for a single
    one. starts: (G + 1,), where the rows of each pair start. picks: (S,), rows. weights: (V', J, S,
    2), for each coordinate. Channels are worked on in so many `parts`, one thread each: vertices
    have neighbours in common.
    """
    _, coordinates, channels, batch = total.shape
    length = channels * batch
    height = grad.shape[0]
    flat, source, flat_weights = total.reshape(-1), grad.reshape(-1), weights.reshape(-1)
    width = (channels + parts - 1) // parts
    for part in prange((channels + width - 1) // width):
        c0, c1 = part * width, min(channels, (part + 1) * width)
        k0, count = c0 * batch, (c1 - c0) * batch
        rows = np.empty(height * count, total.dtype)
        places = np.arange(height) * count
        for i in range(len(vertices)):
            v = vertices[i]
            for row in range(height):
                for c in range(c0, c1):
                    at = U(((row * channels + c) * len(vertices) + i) * batch)
                    _take(rows, U(row * count + (c - c0) * batch), source, at, U(batch))
            for j in range(near.shape[1]):
                for g in range(len(pairs)):
                    start, stop = starts[g], starts[g + 1]
                    first = ((v * near.shape[1] + j) * len(picks) + start) * 2
                    p0 = (near[v, j] * coordinates + pairs[g, 0]) * length + k0
                    p1 = (near[v, j] * coordinates + pairs[g, 1]) * length + k0
                    _add_products(
                        flat, (p0, p1), rows, places, picks, start, stop, flat_weights, first, count
                    )


@njit(parallel=True, fastmath=CONTRACT, cache=True)
def to_columns(x, vertices, out):  # type: ignore[no-untyped-def]
    """Rows of the field x (V, R, B) at the n vertices as columns (R, n, B)."""
    _, height, batch = x.shape
    source, target = x.reshape(-1), out.reshape(-1)
    for row in prange(height):
        for i in range(len(vertices)):
            start = U((vertices[i] * height + row) * batch)
            _put(target, U((row * len(vertices) + i) * batch), source, start, U(batch))


@njit(parallel=True, fastmath=CONTRACT, cache=True)
def from_columns(columns, vertices, out):  # type: ignore[no-untyped-def]
    """The reverse of `to_columns`."""
    _, height, batch = out.shape
    source, target = columns.reshape(-1), out.reshape(-1)
    for i in prange(len(vertices)):
        for row in range(height):
            at = U((vertices[i] * height + row) * batch)
            _take(target, at, source, U((row * len(vertices) + i) * batch), U(batch))


@njit(parallel=True, fastmath=CONTRACT, cache=True)
def moments(x):  # type: ignore[no-untyped-def]
    """Sums over vertices and batch of f_0 and of |f|^2, for each field: (2, C) in float64."""
    vertices, coordinates, channels, batch = x.shape
    length = U(channels * batch)
    flat = x.reshape(-1)
    blocks = (vertices + VERTICES - 1) // VERTICES
    partial = np.zeros((blocks, 2, channels))
    for block in prange(blocks):
        sums = np.zeros(2 * length, x.dtype)
        for v in range(block * VERTICES, min(vertices, (block + 1) * VERTICES)):
            for q in range(coordinates):
                at = U(v * coordinates + q) * length
                for k in range(length):
                    sums[length + k] += flat[at + k] * flat[at + k]
                if q == 0:
                    for k in range(length):
                        sums[k] += flat[at + k]
        for c in range(channels):
            for b in range(batch):
                partial[block, 0, c] += sums[c * batch + b]
                partial[block, 1, c] += sums[length + U(c * batch + b)]
    return partial.sum(axis=0)


def relu(x: Tensor, scale: Tensor, shift: Tensor, basis: Tensor) -> Tensor:
    """basis^T relu(basis (scale x + shift)) / samples, the shift to mode 0."""
    threads()
    out = torch.empty_like(x)
    forward, _ = _relu_loops(basis.shape[1])
    forward(*map(array, (x, scale, shift, _even(basis), out)))
    return out


def relu_backward(
    x: Tensor, scale: Tensor, shift: Tensor, basis: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient h with respect to (scale x + shift); and the sums over vertices and batch of <h, x>
    and of h_0 for each field, (2, C) in float64."""
    threads()
    h = torch.empty_like(x)
    _, backward = _relu_loops(basis.shape[1])
    return h, torch.from_numpy(backward(*map(array, (x, scale, shift, _even(basis), grad, h))))


def _even(basis: Tensor) -> Tensor:
    """The basis over the root of the number of samples, made even by a sample of zeros, which adds
    nothing."""
    scaled = basis / len(basis) ** 0.5
    return torch.cat([scaled, scaled.new_zeros(len(basis) % 2, basis.shape[1])])


@njit(fastmath=CONTRACT, cache=True)
def _load(source, at, length, count, coordinates, target):  # type: ignore[no-untyped-def]
    """A block of numbers at a vertex, coordinate by coordinate."""
    for q in range(coordinates):
        for k in range(count):
            target[U(q * BLOCK) + k] = source[at + U(q) * length + k]


@njit(fastmath=CONTRACT, cache=True)
def _store(source, count, coordinates, target, at, length):  # type: ignore[no-untyped-def]
    for q in range(coordinates):
        for k in range(count):
            target[at + U(q) * length + k] = source[U(q * BLOCK) + k]


@njit(fastmath=CONTRACT, cache=True)
def _normalise(x, scales, shifts, k0, count, coordinates):  # type: ignore[no-untyped-def]
    for q in range(coordinates):
        for k in range(count):
            x[U(q * BLOCK) + k] *= scales[k0 + k]
    for k in range(count):
        x[k] += shifts[k0 + k]


@cache
def _relu_loops(coordinates: int) -> tuple[Any, Any]:
    """The loops of `relu` and `relu_backward` for so many fibre coordinates: unrolled over these
    and two samples, vectors over channels and batch."""

    @njit(parallel=True, fastmath=CONTRACT, cache=True)
    def forward(x, scale, shift, basis, out):  # type: ignore[no-untyped-def]
        vertices, _, channels, batch = x.shape
        length = channels * batch
        flat, target, zero = x.reshape(-1), out.reshape(-1), x.dtype.type(0)
        scales, shifts = np.repeat(scale, batch), np.repeat(shift, batch)
        for v in prange(vertices):
            y, h = np.empty((2, coordinates * BLOCK), x.dtype)
            for k0 in range(0, length, BLOCK):
                at, count = U(v * coordinates * length + k0), U(min(BLOCK, length - k0))
                _load(flat, at, U(length), count, coordinates, y)
                _normalise(y, scales, shifts, U(k0), count, coordinates)
                h[:] = 0
                for s in range(0, len(basis), 2):
                    for k in range(count):
                        a, b = zero, zero
                        for q in range(coordinates):
                            a += basis[s, q] * y[U(q * BLOCK) + k]
                            b += basis[s + 1, q] * y[U(q * BLOCK) + k]
                        a, b = max(a, zero), max(b, zero)
                        for q in range(coordinates):
                            h[U(q * BLOCK) + k] += basis[s, q] * a + basis[s + 1, q] * b
                _store(h, count, coordinates, target, at, U(length))

    @njit(parallel=True, fastmath=CONTRACT, cache=True)
    def backward(x, scale, shift, basis, grad, out):  # type: ignore[no-untyped-def]
        vertices, _, channels, batch = x.shape
        length = channels * batch
        flat, above, target, zero = (
            x.reshape(-1),
            grad.reshape(-1),
            out.reshape(-1),
            x.dtype.type(0),
        )
        scales, shifts = np.repeat(scale, batch), np.repeat(shift, batch)
        blocks = (vertices + VERTICES - 1) // VERTICES
        partial = np.zeros((blocks, 2, channels))
        for block in prange(blocks):
            y, d, h = np.empty((3, coordinates * BLOCK), x.dtype)
            products, firsts = np.zeros((2, length), x.dtype)
            for v in range(block * VERTICES, min(vertices, (block + 1) * VERTICES)):
                for k0 in range(0, length, BLOCK):
                    at, count = U(v * coordinates * length + k0), U(min(BLOCK, length - k0))
                    _load(flat, at, U(length), count, coordinates, y)
                    _load(above, at, U(length), count, coordinates, d)
                    _normalise(y, scales, shifts, U(k0), count, coordinates)
                    h[:] = 0
                    for s in range(0, len(basis), 2):
                        for k in range(count):
                            a, b, e, f = zero, zero, zero, zero
                            for q in range(coordinates):
                                i = U(q * BLOCK) + k
                                a += basis[s, q] * y[i]
                                b += basis[s + 1, q] * y[i]
                                e += basis[s, q] * d[i]
                                f += basis[s + 1, q] * d[i]
                            e = e if a > zero else zero
                            f = f if b > zero else zero
                            for q in range(coordinates):
                                h[U(q * BLOCK) + k] += basis[s, q] * e + basis[s + 1, q] * f
                    _store(h, count, coordinates, target, at, U(length))
                    for q in range(coordinates):
                        for k in range(count):
                            i = U(q * BLOCK) + k
                            products[U(k0) + k] += h[i] * flat[at + U(q * length) + k]
                    for k in range(count):
                        firsts[U(k0) + k] += h[k]
            for c in range(channels):
                for b in range(batch):
                    partial[block, 0, c] += products[c * batch + b]
                    partial[block, 1, c] += firsts[c * batch + b]
        return partial.sum(axis=0)

    return forward, backward


@njit(parallel=True, fastmath=CONTRACT, cache=True)
def combine(x, h, scale, along, ahead):  # type: ignore[no-untyped-def]
    """h = scale h + along x + ahead, in place; `ahead` goes to mode 0, all are (C,)."""
    vertices, coordinates, channels, batch = x.shape
    length = channels * batch
    flat, target = x.reshape(-1), h.reshape(-1)
    s, a, m = np.repeat(scale, batch), np.repeat(along, batch), np.repeat(ahead, batch)
    for v in prange(vertices):
        for q in range(coordinates):
            at = U((v * coordinates + q) * length)
            for k in range(U(length)):
                target[at + k] = s[k] * target[at + k] + a[k] * flat[at + k]
            if q == 0:
                for k in range(U(length)):
                    target[at + k] += m[k]
