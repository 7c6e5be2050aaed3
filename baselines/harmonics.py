"""Harmonic analysis on the sphere and on SO(3), as matrices that are computed once.

Rotations are R = Rz(alpha) Ry(beta) Rz(gamma), directions (sin beta cos alpha, sin beta sin alpha,
cos beta), and an index m of degree l runs over -l..l. With the irreducible representations

    D^l_mn(R) = e^{-i m alpha} d^l_mn(beta) e^{-i n gamma},    d^l(beta) = exp(-i beta J_y),

the spherical harmonics are Y_lm = sqrt((2 l + 1) / 4 pi) conj(D^l_m0), with Condon-Shortley phase.
A signal turned by R, f(R^-1 x), has coefficients D^l(R) a^l in place of a^l = integral f conj(Y_l).

Real form: a unitary matrix U (`real_basis`) takes the conj(Y_lm) to real harmonics S_lm,
proportional to cos(m alpha) for m >= 0 and to sin(|m| alpha) for m < 0, so R^l = U D^l U^+ is real.
A real signal then needs real arithmetic only. With e_m(t) = cos(m t) for m >= 0, sin(|m| t) for
m < 0, s_m = 1 for m >= 0 and -1 for m < 0, and J^l = R^l(0, beta, 0),

    R^l_mn = s_n J^l_|m||n|(beta) e_m(alpha) e_n(gamma)
           - s_m J^l_-|m|-|n|(beta) e_-m(alpha) e_-n(gamma),

the second term only where neither m nor n is 0. Each degree's signals on SO(3) are thus waves in
alpha and gamma, times a function of beta.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def wigner_d(degree: int, beta: np.ndarray) -> np.ndarray:
    """d^l_mn(beta) = (exp(-i beta J_y))_mn for beta of any shape (...): (..., 2 l + 1, 2 l + 1).

    From the eigenvectors of J_y, which keeps full accuracy at any degree.
    """
    m = np.arange(-degree, degree + 1)
    raising = np.diag(np.sqrt((degree - m[:-1]) * (degree + m[1:])), -1)  # J_+: row m + 1, column m
    _, vectors = np.linalg.eigh((raising - raising.T) / 2j)  # eigenvalues are -l..l
    turned = vectors * np.exp(-1j * np.asarray(beta)[..., None, None] * m)
    return (turned @ vectors.conj().T).real


def wigner(degree: int, alpha: np.ndarray, beta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """D^l_mn at rotations given by Euler angles of one shape (...): (..., 2 l + 1, 2 l + 1)."""
    m = np.arange(-degree, degree + 1)
    left, right = (np.exp(-1j * np.asarray(angle)[..., None] * m) for angle in (alpha, gamma))
    return left[..., :, None] * wigner_d(degree, beta) * right[..., None, :]


def real_basis(degree: int) -> np.ndarray:
    """Unitary U (2 l + 1, 2 l + 1) with S_lm = sum over n of U_mn conj(Y_ln)."""
    basis = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=complex)
    basis[degree, degree] = 1
    for m in range(1, degree + 1):
        plus, minus, sign = degree + m, degree - m, (-1) ** m
        basis[plus, [plus, minus]] = sign / np.sqrt(2), 1 / np.sqrt(2)
        basis[minus, [plus, minus]] = 1j * sign / np.sqrt(2), -1j / np.sqrt(2)
    return basis


def real_wigner(degree: int, alpha: np.ndarray, beta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """R^l_mn at rotations given by Euler angles of one shape (...): (..., 2 l + 1, 2 l + 1)."""
    basis = real_basis(degree)
    return (basis @ wigner(degree, alpha, beta, gamma) @ basis.conj().T).real


def spherical_harmonics(degrees: int, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Y_lm for l < degrees at P directions: (degrees^2, P) complex, row l^2 + l + m."""
    zero = np.zeros_like(alpha)
    rows = [
        np.sqrt((2 * degree + 1) / (4 * np.pi))
        * wigner(degree, alpha, beta, zero)[:, :, degree].conj().T
        for degree in range(degrees)
    ]
    return np.concatenate(rows)


def real_harmonics(degrees: int, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """R^l_m0 = sqrt(4 pi / (2 l + 1)) S_lm for l < degrees at P directions:
    (2 degrees - 1, degrees, P), axes m, l, point, zeros where |m| > l."""
    zero = np.zeros_like(alpha)
    blocks = [real_wigner(degree, alpha, beta, zero)[:, :, degree].T for degree in range(degrees)]
    return stack_degrees(blocks, 1)


def soft_angles(bandwidth: int) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, beta) of Kostelec & Rockmore's grid, each (2 b,): alpha_k = k pi / b, which is also
    gamma's, and beta_j = (2 j + 1) pi / (4 b)."""
    steps = np.arange(2 * bandwidth)
    return np.pi * steps / bandwidth, np.pi * (2 * steps + 1) / (4 * bandwidth)


def soft_points(bandwidth: int) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, beta) of the 4 b^2 points of the grid on the sphere, alpha running faster."""
    alpha, beta = soft_angles(bandwidth)
    return np.tile(alpha, 2 * bandwidth), np.repeat(beta, 2 * bandwidth)


def quadrature_weights(bandwidth: int) -> np.ndarray:
    """Weights w_j (2 b,) of the rings beta_j of the grid; they sum to 1.

    w_j = sin(beta_j) / b * sum over k < b of sin((2 k + 1) beta_j) / (2 k + 1). The mean over the
    ring, weighted by w_j, is the mean over the sphere of any signal of degree below 2 b (Driscoll &
    Healy 1994; Kostelec & Rockmore 2008, for this grid).
    """
    beta = soft_angles(bandwidth)[1][:, None]
    odd = 2 * np.arange(bandwidth) + 1
    return np.sin(beta[:, 0]) / bandwidth * np.sum(np.sin(odd * beta) / odd, axis=1)


def s2_analysis(bandwidth: int, degrees: int) -> np.ndarray:
    """Matrix (degrees^2, 4 b^2) from samples to a_lm = integral over the sphere of f conj(Y_lm);
    exact if degree of f + degrees <= 2 b."""
    mean = np.repeat(quadrature_weights(bandwidth), 2 * bandwidth) / (2 * bandwidth)
    return 4 * np.pi * mean * spherical_harmonics(degrees, *soft_points(bandwidth)).conj()


def stack_degrees(blocks: list[np.ndarray], orders: int) -> np.ndarray:
    """Stack blocks l = 0, 1, ..., each with `orders` leading axes of length 2 l + 1.

    The leading axes become as long as the last block's, with m = 0 in the middle and zeros where
    |m| > l; the axis after them is the degree.
    """
    longest = len(blocks[-1])
    padded = []
    for block in blocks:
        margin = (longest - len(block)) // 2
        padded.append(np.pad(block, [(margin,) * 2] * orders + [(0, 0)] * (block.ndim - orders)))
    return np.stack(padded, axis=orders)


def waves(bandwidth: int, degrees: int) -> np.ndarray:
    """e_m(alpha_k) for |m| < degrees: (2 b, 2 degrees - 1)."""
    alpha, m = soft_angles(bandwidth)[0][:, None], np.arange(degrees)
    return np.hstack([np.sin(m[:0:-1] * alpha), np.cos(m * alpha)])


def polar_functions(bandwidth: int, degrees: int) -> np.ndarray:
    """The functions of beta_j that make up R^l_mn, (m, n, 2 degrees, 2 b).

    [m, n, l] is the factor of e_m e_n in R^l_mn, and [m, n, degrees + l] that in R^l_-m,-n.
    """
    beta = soft_angles(bandwidth)[1]
    own, opposite = [], []
    for degree in range(degrees):
        m = np.arange(-degree, degree + 1)
        sign, used = np.where(m < 0, -1, 1), np.where(m == 0, 0, 1)
        j = real_wigner(degree, 0 * beta, beta, 0 * beta).transpose(1, 2, 0)
        cosines, sines = (j[degree + k][:, degree + k] for k in (abs(m), -abs(m)))
        own.append(sign[:, None] * cosines)
        opposite.append((sign * used)[:, None, None] * used[:, None] * sines)
    return np.concatenate([stack_degrees(own, 2), stack_degrees(opposite, 2)], axis=2)


class SO3Synthesis(nn.Module):
    """Samples f(alpha, beta, gamma) = sum over l < degrees of (2 l + 1) sum_mn X^l_mn R^l_mn.

    Shapes: X (2 L - 1, 2 L - 1, L, N), axes m, n, l, zeros where |m| or |n| > l or not (they have
    no effect), L = degrees = bandwidth -> (2 b, 2 b, 2 b, N), axes alpha, gamma, beta.
    """

    def __init__(self, bandwidth: int) -> None:
        super().__init__()
        dimensions = np.tile(2 * np.arange(bandwidth) + 1, 2)
        polar = polar_functions(bandwidth, bandwidth).swapaxes(2, 3) * dimensions
        self.register_buffer("polar", as_buffer(polar).flatten(0, 1), persistent=False)
        self.register_buffer("waves", as_buffer(waves(bandwidth, bandwidth)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        points, orders = self.waves.shape
        x = torch.cat([x, x.flip(0, 1)], dim=2)
        f = torch.bmm(self.polar, x.flatten(0, 1))  # (m n, beta, N)
        f = torch.bmm(self.waves.expand(orders, -1, -1), f.view(orders, orders, -1))
        return (self.waves @ f.view(orders, -1)).view(points, points, points, -1)


class SO3Analysis(nn.Module):
    """X^l_mn = mean over SO(3) of f R^l_mn for l < degrees, from samples on the grid; exact if
    degree of f + degrees <= 2 b, and then the inverse of `SO3Synthesis`.

    Shapes: (2 b, 2 b, 2 b, N), axes alpha, gamma, beta -> (2 L - 1, 2 L - 1, L, N), axes m, n, l,
    L = degrees, zeros where |m| or |n| > l.
    """

    def __init__(self, bandwidth: int, degrees: int) -> None:
        super().__init__()
        polar = polar_functions(bandwidth, degrees) * quadrature_weights(bandwidth)
        means = waves(bandwidth, degrees).T / (2 * bandwidth)
        self.register_buffer("polar", as_buffer(polar).flatten(0, 1), persistent=False)
        self.register_buffer("waves", as_buffer(means), persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        orders, points = self.waves.shape
        f = (self.waves @ f.view(points, -1)).view(orders, points, -1)  # (m, gamma, beta N)
        f = torch.bmm(self.waves.expand(orders, -1, -1), f)
        x = torch.bmm(self.polar, f.view(orders**2, points, -1))  # (m n, 2 l, N)
        own, opposite = x.view(orders, orders, 2, -1, x.shape[-1]).unbind(2)
        return own + opposite.flip(0, 1)


def as_buffer(values: np.ndarray) -> Tensor:
    """A real array as a tensor of the default type."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.get_default_dtype())
