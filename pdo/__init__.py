"""PDO-eS2CNN: convolutional networks on the sphere built from partial differential operators.

    import pdo

    classifier = pdo.load("pdo-es2cnn-small-mnist")
    classes, probabilities = classifier.predict(signals)  # (B, 2562) grey levels 0..255

What is here is the public surface; docs/api.md lists it. The geometry in a layer is rounded to
torch's default dtype when it is built: for float64 throughout, set it before. The modules, to be
read in this order: mesh, frames, stencils, operators, local, mixing, derivatives, layers,
activation, networks.
"""

from pdo.activation import FieldNormReLU
from pdo.direct import DirectPDOConv, to_direct, to_spectral
from pdo.frames import default_frames, icosahedral_rotations, transport_angles
from pdo.layers import InvariantReadout, PDOConv, Pool, Unpool
from pdo.mesh import Icosphere
from pdo.networks import PDOeS2CNN, pdo_es2cnn_large, pdo_es2cnn_small
from pdo.pretrained import Classifier, Prediction, load, pretrained
from pdo.stencils import (
    GAUSSIAN,
    PAPER,
    SMOOTHED,
    Stencil,
    StencilSpec,
    fit_stencil,
    smoothing_stencil,
)

__all__ = [
    "GAUSSIAN",
    "PAPER",
    "SMOOTHED",
    "Classifier",
    "DirectPDOConv",
    "FieldNormReLU",
    "Icosphere",
    "InvariantReadout",
    "PDOConv",
    "PDOeS2CNN",
    "Pool",
    "Prediction",
    "Stencil",
    "StencilSpec",
    "Unpool",
    "default_frames",
    "fit_stencil",
    "icosahedral_rotations",
    "load",
    "pdo_es2cnn_large",
    "pdo_es2cnn_small",
    "pretrained",
    "smoothing_stencil",
    "to_direct",
    "to_spectral",
    "transport_angles",
]
