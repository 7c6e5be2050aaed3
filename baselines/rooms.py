"""What the networks of omnidirectional segmentation share."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from pdo.mesh import Icosphere

CHANNELS = 4
"""Red, green, blue, depth."""
LABELS = 15
"""13 classes, unknown (0) and missing (14)."""


def midpoints(coarse: Icosphere) -> sparse.csr_array:
    """Linear interpolation from a mesh to the next finer one, (V', V): a vertex keeps its value,
    the new one on an edge has the mean of the two ends."""
    edges = np.arange(len(coarse.edges))
    ends = (np.full(2 * len(edges), 0.5), (np.repeat(edges, 2), coarse.edges.ravel()))
    halves = sparse.csr_array(ends, shape=(len(edges), len(coarse)))
    return sparse.vstack([sparse.eye_array(len(coarse)), halves], format="csr")
