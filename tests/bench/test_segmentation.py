"""Scores of a segmentation against scikit-learn, and by hand where unlabelled points count."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score

from bench.segmentation import CLASSES, confusion, per_class, scores


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 15, (6, 500)).astype(np.uint8)
    predictions = np.where(rng.uniform(size=targets.shape) < 0.6, targets, rng.integers(1, 14))
    predictions = np.clip(predictions, 1, 13).astype(np.uint8)
    return predictions, targets


def test_confusion_is_scikit_learns(drawn):
    predictions, targets = drawn
    want = confusion_matrix(targets.ravel(), predictions.ravel(), labels=range(15))
    np.testing.assert_array_equal(confusion(predictions, targets), want)


def test_published_definition_is_scikit_learns(drawn):
    predictions, targets = (values.ravel() for values in drawn)
    iou, accuracy = per_class(confusion(predictions, targets))
    given = {"labels": CLASSES, "average": None}
    np.testing.assert_allclose(iou, jaccard_score(targets, predictions, **given))
    np.testing.assert_allclose(accuracy, recall_score(targets, predictions, **given))
    found = scores(confusion(predictions, targets))
    assert found["mean_iou_percent"] == pytest.approx(100 * iou.mean())
    assert found["mean_accuracy_percent"] == pytest.approx(100 * accuracy.mean())


def test_masked_leaves_out_points_that_show_no_class(drawn):
    predictions, targets = (values.ravel() for values in drawn)
    shown = (targets > 0) & (targets < 14)
    matrix = confusion(predictions, targets)
    want = jaccard_score(targets[shown], predictions[shown], labels=CLASSES, average=None)
    np.testing.assert_allclose(per_class(matrix, masked=True)[0], want)
    found = scores(matrix)
    assert found["masked_mean_iou_percent"] == pytest.approx(100 * want.mean())
    assert found["masked_mean_iou_percent"] > found["mean_iou_percent"]


def test_by_hand():
    """Class 1: 2 right of 3, and taken for it one of class 2 and one unknown point."""
    targets = np.array([[1, 1, 1, 2, 0]])
    predictions = np.array([[1, 1, 2, 1, 1]])
    iou, accuracy = per_class(confusion(predictions, targets))
    assert iou[0] == 2 / 5 and accuracy[0] == 2 / 3
    assert iou[1] == 0 and np.isnan(iou[2:]).all() and np.isnan(accuracy[2:]).all()
    assert per_class(confusion(predictions, targets), masked=True)[0][0] == 2 / 4
    assert scores(confusion(predictions, targets))["mean_iou_percent"] == pytest.approx(20)
