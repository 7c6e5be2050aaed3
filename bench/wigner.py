"""Fields on the sphere whose derivatives are known: Wigner-D functions.

With D^l the irreducible representation of degree l and R_P = [e1 e2 n] the frame at P,

    f_n(P) = D^l_mn(R_P),    |m|, |n| <= l,

is a fibre mode of order n: turning the frame by a multiplies it by e^{-i n a}, as it must. Moving
along e1 with parallel transport turns the frame about e2, along e2 about -e1, so d1 and d2 are
-i J_y and i J_x acting on the index n from the right. Hence d1 + i d2 = -J_+ and d1 - i d2 = J_-:

    eth D_mn      = -sqrt((l - n)(l + n + 1)) D_m,n+1
    conj(eth) D_mn = sqrt((l + n)(l - n + 1)) D_m,n-1
    Laplacian D_mn = -(l (l + 1) - n^2) D_mn.

Order 0 are the spherical harmonics, D^l_m0 = sqrt(4 pi / (2l + 1)) conj(Y_lm); the others the
spin-weighted ones. Over all m of a degree these functions span a space that rotations keep, and by
Schur's lemma a map that commutes with rotations sends D_mn to a multiple, the same for all m.
"""

from __future__ import annotations

import numpy as np

from pdo.operators import SHIFTS


def wigner_d(degree: int, n: int, frames: np.ndarray) -> np.ndarray:
    """D^l_mn at rotations `frames` (V, 3, 3), for m = -l..l: (V, 2l + 1) complex.

    D^l_mn(R_z(a) R_y(b) R_z(c)) = e^{-i m a} d^l_mn(b) e^{-i n c}, d^l(b) = exp(-i b J_y), from the
    eigenvectors of J_y.

    Raises:
        ValueError: if |n| > degree.
    """
    if abs(n) > degree:
        raise ValueError(f"a Wigner-D function of degree {degree} has no order {n}")
    m = np.arange(-degree, degree + 1)
    raising = np.diag(np.sqrt((degree - m[:-1]) * (degree + m[1:])), -1)  # J_+: row m + 1, column m
    _, vectors = np.linalg.eigh((raising - raising.T) / 2j)  # eigenvalues are -l..l
    first, beta, last = _euler(frames)
    turned = np.exp(-1j * beta[:, None] * m) * vectors[n + degree].conj()
    return np.exp(-1j * first[:, None] * m) * (turned @ vectors.T) * np.exp(-1j * last * n)[:, None]


def factor(operator: int, degree: int, n: int) -> float:
    """What an operator of `pdo.operators.SHIFTS` (at h = 1) makes of D^l_mn: factor * D^l_m,n+s."""
    if abs(n + SHIFTS[operator]) > degree:
        return 0.0

    def step(n: int, sign: int) -> float:  # eth or its conjugate on order n
        return -sign * np.sqrt((degree - sign * n) * (degree + sign * n + 1))

    sign = int(np.sign(SHIFTS[operator]))
    if abs(SHIFTS[operator]) == 2:
        return step(n, sign) * step(n + sign, sign)
    return step(n, sign) if sign else (1.0, float(n**2 - degree * (degree + 1)))[operator]


def _euler(frames: np.ndarray) -> np.ndarray:
    """Angles (a, b, c), each (V,), with frame = R_z(a) R_y(b) R_z(c); at b = 0 and pi, c = 0."""
    sine = np.hypot(frames[:, 0, 2], frames[:, 1, 2])
    generic = sine > 1e-12
    beta = np.arctan2(sine, frames[:, 2, 2])
    first = np.where(
        generic,
        np.arctan2(frames[:, 1, 2], frames[:, 0, 2]),
        np.arctan2(-frames[:, 0, 1], frames[:, 1, 1]),
    )
    last = np.where(generic, np.arctan2(frames[:, 2, 1], -frames[:, 2, 0]), 0)
    return np.stack([first, beta, last])
