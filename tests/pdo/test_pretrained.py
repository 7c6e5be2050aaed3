"""Networks by name: what they need, what they refuse, and that they read digits."""

import hashlib

import numpy as np
import pytest
import torch

import pdo
from data_prep.spherical_mnist import haar_rotations, sample_rotated, to_bytes
from data_prep.synthetic_digits import synthetic_digits
from pdo.pretrained import BATCH, FOLDER

NAME = "pdo-es2cnn-small-mnist"
DIGITS = synthetic_digits(1, 30, seed=1)


@pytest.fixture(scope="module")
def classifier():
    return pdo.load(NAME)


def signals(classifier, rotations):
    return to_bytes(sample_rotated(DIGITS.test_images, rotations, classifier.points))


def test_index_and_weights_agree():
    index = pdo.pretrained()
    assert NAME in index and len(list(FOLDER.glob("*.safetensors"))) == len(index)
    for entry in index.values():
        content = (FOLDER / entry["weights"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(entry["commit"]) == 40 and entry["measured"]
        network = pdo.PDOeS2CNN(**entry["network"])
        assert sum(p.numel() for p in network.parameters()) == entry["parameters"]


def test_digits_it_was_not_trained_on_upright_and_rotated(classifier):
    """Stroke drawings, not MNIST: a tenth would be chance. They are read when turned as well."""
    upright = np.repeat(np.eye(3)[None], 30, axis=0)
    for rotations in (upright, haar_rotations(30, np.random.default_rng(0))):
        classes, probabilities = classifier.predict(signals(classifier, rotations))
        assert classes.shape == (30,) and probabilities.shape == (30, 10)
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(30))
        assert torch.equal(probabilities.argmax(dim=1), classes)
        assert np.mean(classes.numpy() == DIGITS.test_labels) >= 0.8


def test_raw_signals_are_normalised_as_in_training(classifier):
    x = torch.randint(256, (2, 2562), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = classifier.network((x[:, None].float() / 255 - 0.1307) / 0.3081).softmax(dim=1)
    torch.testing.assert_close(classifier.predict(x.numpy().astype(np.uint8))[1], want)


def test_more_signals_than_a_batch(classifier):
    """Each is classified by itself, and in its place."""
    x = signals(classifier, np.repeat(np.eye(3)[None], 30, axis=0))
    few, many = classifier.predict(x), classifier.predict(np.tile(x, (3, 1)))
    assert BATCH < 90 == len(many[0])
    assert torch.equal(many[0], few[0].repeat(3))
    torch.testing.assert_close(many[1], few[1].repeat(3, 1))


def test_predicting_leaves_modes_and_statistics_alone(classifier, monkeypatch):
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    classifier.train()
    classifier.network.head.eval()  # frozen, as for fine-tuning
    modes = [module.training for module in classifier.modules()]
    classifier.predict(torch.zeros(1, 2562))
    assert [module.training for module in classifier.modules()] == modes
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(classifier.network, "forward", raising(MemoryError))
        classifier.predict(torch.zeros(1, 2562))
    assert [module.training for module in classifier.modules()] == modes
    classifier.eval()
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key])


def raising(error):
    def function(*_):
        raise error

    return function


def test_predicting_in_double_precision(classifier, float64):
    x = signals(classifier, np.eye(3)[None].repeat(30, axis=0))[:4]
    want = classifier.predict(x).probabilities
    found = pdo.load(NAME).double().predict(x).probabilities
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((2, 642)), r"\(batch, 2562\), the vertices of icosphere level 4, not \(2, 642\)"),
        (np.zeros(2562), r"not \(2562,\)"),
        (np.full((1, 2562), np.nan), "finite and in 0..255"),
        (np.full((1, 2562), -0.4), "in 0..255"),
        (np.full((1, 2562), 256), "in 0..255"),
    ],
)
def test_signals_that_cannot_be_meant_are_refused(classifier, wrong, said):
    with pytest.raises(ValueError, match=said):
        classifier.predict(wrong)


def test_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match=f"did you mean '{NAME}'"):
        pdo.load("pdo-es2cnn-smal-mnist")
