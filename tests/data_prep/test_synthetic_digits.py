from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from data_prep.synthetic_digits import synthetic_digits

DIGITS = synthetic_digits(2000, 500, seed=0)


def test_same_arrays_as_mnist():
    assert DIGITS.train_images.shape == (2000, 28, 28) and DIGITS.test_images.shape == (500, 28, 28)
    assert all(a.dtype == np.uint8 for a in DIGITS[:4])
    np.testing.assert_array_equal(np.bincount(DIGITS.train_labels), np.full(10, 200))
    np.testing.assert_array_equal(np.bincount(DIGITS.test_labels), np.full(10, 50))
    assert DIGITS.source == "synthetic digits"
    for name, digest in DIGITS.sha256.items():
        assert digest == hashlib.sha256(getattr(DIGITS, name).tobytes()).hexdigest()


def test_ink_on_a_black_background_inside_the_border():
    images = DIGITS.train_images
    assert (images.max(axis=(1, 2)) > 200).all()
    assert 0.05 < (images > 128).mean() < 0.3
    border = np.ones((28, 28), dtype=bool)
    border[1:-1, 1:-1] = False
    assert images[:, border].mean() < 0.5


def test_deterministic_and_separate_streams():
    again = synthetic_digits(2000, 500, seed=0)
    assert all((a == b).all() for a, b in zip(DIGITS[:4], again[:4], strict=True))
    fewer = synthetic_digits(100, 500, seed=0)
    np.testing.assert_array_equal(fewer.test_images, DIGITS.test_images)
    other = synthetic_digits(2000, 500, seed=1)
    assert not np.array_equal(other.test_images, DIGITS.test_images)
    assert len(np.unique(DIGITS.train_images.reshape(2000, -1), axis=0)) == 2000


def test_learnable_but_not_trivial():
    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) / 255.0

    train, test = flat(DIGITS.train_images), flat(DIGITS.test_images)
    model = KNeighborsClassifier(3).fit(train, DIGITS.train_labels)
    assert model.score(test, DIGITS.test_labels) > 0.97
    shuffled = np.random.default_rng(0).permutation(DIGITS.train_labels)
    assert KNeighborsClassifier(3).fit(train, shuffled).score(test, DIGITS.test_labels) < 0.25


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (-1, 5)])
def test_empty_sets_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one"):
        synthetic_digits(*sizes)
