"""Scores of a segmentation, from its confusion matrix."""

from __future__ import annotations

import numpy as np

from data_prep.stanford import LABELS

CLASSES = tuple(range(1, 14))
"""The labels that count: all but unknown (0) and missing (14)."""


def confusion(predictions: np.ndarray, targets: np.ndarray, n: int = len(LABELS)) -> np.ndarray:
    """How many points of label i (row) were taken for label j (column): (n, n) int64."""
    index = targets.astype(np.int64).ravel() * n + predictions.astype(np.int64).ravel()
    return np.bincount(index, minlength=n * n).reshape(n, n)


def per_class(matrix: np.ndarray, masked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Of each of the 13 classes: IoU = TP / (TP + FP + FN) and accuracy = TP / (TP + FN), (13,)
    each; nan where the class neither occurs nor is predicted (accuracy: does not occur).

    Points that show no class count as false positives, as in the published numbers (Jiang et al.
    2019); `masked` leaves them out.
    """
    chosen = list(CLASSES)
    hit = np.diag(matrix)[chosen].astype(float)
    truth = matrix[chosen].sum(axis=1)
    predicted = (matrix[chosen] if masked else matrix).sum(axis=0)[chosen]
    with np.errstate(invalid="ignore"):
        return hit / (truth + predicted - hit), hit / truth


def scores(matrix: np.ndarray) -> dict[str, float]:
    """Unweighted means over the classes, in percent."""
    iou, accuracy = per_class(matrix)
    return {
        "mean_iou_percent": 100 * float(np.nanmean(iou)),
        "mean_accuracy_percent": 100 * float(np.nanmean(accuracy)),
        "masked_mean_iou_percent": 100 * float(np.nanmean(per_class(matrix, masked=True)[0])),
    }
