"""The tutorial runs from top to bottom and shows what it says."""

import runpy

import pytest

from tests.workflow.conftest import ROOT


@pytest.mark.slow
def test_tutorial_shows_what_it_says():
    found = runpy.run_path(str(ROOT / "docs" / "tutorial.py"))
    errors = found["laplacian_error"]
    assert errors[2] > 2 * errors[3] > 4 * errors[4] and errors[4] < 0.01
    assert found["layer_error"] < 1e-4
    accuracy = found["accuracy"]
    assert accuracy["upright"] > 0.85 and accuracy["rotated"] > accuracy["upright"] - 0.15
