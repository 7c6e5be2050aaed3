"""Clebsch-Gordan coefficients, from ladder operators."""

from __future__ import annotations

import numpy as np


def clebsch_gordan(l1: int, l2: int, degree: int) -> np.ndarray:
    """<l1 m1 l2 m2 | l m>, real, (2 l + 1, 2 l1 + 1, 2 l2 + 1), [l + m, l1 + m1, l2 + m2].

    Zero unless m = m1 + m2. Signs after Condon and Shortley: <l1 l1 l2 (l - l1) | l l> > 0. The
    state |l l> follows from J_+ |l l> = 0, those of m >= 0 from
    J_- |l m> = sqrt((l + m) (l - m + 1)) |l m-1>, the others by the symmetry of turning all signs
    of m, which is a factor (-1)^(l1 + l2 - l).

    Raises:
        ValueError: unless |l1 - l2| <= l <= l1 + l2.
    """
    if not abs(l1 - l2) <= degree <= l1 + l2:
        raise ValueError(f"degrees {l1} and {l2} do not couple to {degree}")
    lower1, lower2 = _lowering(l1), _lowering(l2)
    state = np.zeros((2 * l1 + 1, 2 * l2 + 1))
    state[2 * l1, degree - l1 + l2] = 1
    for m1 in range(l1 - 1, degree - l2 - 1, -1):
        m2 = degree - m1  # J_+ takes |m1, m2> and |m1 + 1, m2 - 1> to the same |m1 + 1, m2>
        above = state[l1 + m1 + 1, l2 + m2 - 1] * lower2[l2 + m2 - 1, l2 + m2]
        state[l1 + m1, l2 + m2] = -above / lower1[l1 + m1, l1 + m1 + 1]
    states = [state / np.linalg.norm(state)]
    # Only down to 0: every step down the ladder amplifies rounding errors.
    for m in range(degree, 0, -1):
        lowered = lower1 @ states[-1] + states[-1] @ lower2.T
        states.append(lowered / np.sqrt((degree + m) * (degree - m + 1)))
    mirrored = [(-1) ** (l1 + l2 - degree) * state[::-1, ::-1] for state in states[:-1]]
    return np.stack(mirrored + states[::-1])


def _lowering(degree: int) -> np.ndarray:
    """J_-, row m - 1 and column m: sqrt((l + m) (l - m + 1))."""
    m = np.arange(1 - degree, degree + 1)
    return np.diag(np.sqrt((degree + m) * (degree - m + 1)), 1)
