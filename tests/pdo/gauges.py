"""Changes of gauge."""

import numpy as np


def turn_frames(frames: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn the frame at each vertex by angles (V,) in its tangent plane (a change of gauge):
    e1' = cos(a) e1 + sin(a) e2."""
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    e1, e2, n = frames[..., 0], frames[..., 1], frames[..., 2]
    return np.stack([c * e1 + s * e2, c * e2 - s * e1, n], axis=-1)
