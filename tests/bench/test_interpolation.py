"""Interpolation on the sphere: what it is exact for, and its order."""

import numpy as np

from bench.equivariance import interpolation_floor
from bench.interpolation import interpolation
from data_prep.spherical_mnist import haar_rotations
from pdo.mesh import Icosphere

POINTS = Icosphere(3).vertices
ROTATIONS = haar_rotations(3, np.random.default_rng(7))


def test_interpolation():
    """Exact at the vertices and for linear functions, of at least third order for others."""
    at_vertices = interpolation(POINTS, POINTS[5:9]).toarray()
    np.testing.assert_allclose(at_vertices, np.eye(642)[5:9], atol=1e-9)
    turned = POINTS @ ROTATIONS[0].T
    np.testing.assert_allclose(interpolation(POINTS, turned) @ POINTS, turned, atol=1e-10)
    coarse, fine = (interpolation_floor(Icosphere(n).vertices, ROTATIONS[:1]) for n in (3, 4))
    assert fine < 0.002 and coarse / fine > 2**3 * 0.7
    twelve = Icosphere(0).vertices
    assert interpolation(twelve, turned).shape == (642, 12)
