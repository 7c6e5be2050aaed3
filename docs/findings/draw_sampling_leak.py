"""Draw sampling-leak.png beside this file: `python docs/findings/draw_sampling_leak.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from data_prep.files import atomic_path  # noqa: E402  (of this source tree, installed or not)
from data_prep.spherical_mnist import EDITIONS, Edition, sample_rotated, to_bytes  # noqa: E402
from data_prep.synthetic_digits import synthetic_digits  # noqa: E402

PIXELS = 240
"""Along a side of the picture of a signal."""
REACH = 0.95
"""Of the sine of the angle from the south pole: the signals are seen from there, from far away."""


def half_turn_pair(image: np.ndarray, edition: Edition) -> tuple[np.ndarray, np.ndarray]:
    """Return the signal of an image (28, 28) and that of its half turn about pixel 14, turned back.

    Both are (PIXELS, PIXELS) in 0..255, as seen from the south, NaN beyond REACH. They are equal
    if the sampling does not reveal which way up the digit was.
    """
    x, y = np.meshgrid(*2 * [np.linspace(-REACH, REACH, PIXELS)], indexing="ij")  # rows follow x
    seen = np.hypot(x, y) < REACH
    x, y = x[seen], y[seen]
    points = np.stack([x, y, -np.sqrt(1 - x**2 - y**2)], axis=1)
    pair = []
    for digit, at in ((image, points), (half_turn(image), points * [-1, -1, 1])):
        samples = sample_rotated(digit[None], np.eye(3)[None], at, edition)
        signal = np.full(seen.shape, np.nan)
        signal[seen] = to_bytes(samples, edition)[0]
        pair.append(signal)
    return pair[0], pair[1]


def half_turn(image: np.ndarray) -> np.ndarray:
    """Return an image (28, 28) without ink in row 0 and column 0, turned about pixel (14, 14)."""
    return np.roll(image[::-1, ::-1], 1, axis=(0, 1))


def draw(path: Path) -> None:
    """Draw a synthetic 6, its half turn, their signals and the difference in both editions."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    digits = synthetic_digits(n_train=1, n_test=10)
    image = digits.test_images[list(digits.test_labels).index(6)]
    plot, axes = plt.subplots(2, 5, figsize=(10, 4.3), layout="constrained")
    for row, edition in zip(axes, EDITIONS, strict=True):
        signal, turned_back = half_turn_pair(image, edition)
        difference = turned_back - signal
        rms = [np.sqrt(np.nanmean(values**2)) for values in (difference, signal)]
        shown = {
            "digit": image,
            "its half turn": half_turn(image),
            "signal of the digit": signal,
            "signal of the half turn,\nturned back": turned_back,
            f"difference: {100 * rms[0] / rms[1]:.0f} %\nof the signal (rms)": difference,
        }
        for axis, (title, values) in zip(row, shown.items(), strict=True):
            if values is difference:
                axis.imshow(values, cmap="RdBu", vmin=-255, vmax=255)
            else:
                axis.imshow(values, cmap="gray_r", vmin=0, vmax=255)
            axis.set_title(title, fontsize="small")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{edition} edition")
    with atomic_path(path) as temporary:
        plot.savefig(temporary, dpi=110, metadata={"Software": None})
    plt.close(plot)


if __name__ == "__main__":
    draw(HERE / "sampling-leak.png")
    print(HERE / "sampling-leak.png")
