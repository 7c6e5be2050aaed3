"""Oracles: the definition of the Coulomb matrix entry by entry, features counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.coulomb_mlp import (
    INPUTS,
    REALISATIONS,
    CoulombMLP,
    ScaledLinear,
    coulomb_matrices,
    realisation,
)
from baselines.molecules import ELEMENTS, Molecules

pytestmark = pytest.mark.usefixtures("float64")


def molecules(sizes: list[int], seed: int = 0) -> Molecules:
    rng = np.random.default_rng(seed)
    charges = rng.choice(ELEMENTS, sum(sizes))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    counts = [
        [float((charges[owner == b] == e).sum()) for e in ELEMENTS] for b in range(len(sizes))
    ]
    return Molecules(
        None,
        torch.from_numpy(owner),
        torch.from_numpy(charges),
        torch.from_numpy(rng.uniform(-5, 5, (sum(sizes), 3))),
        torch.tensor(counts),
    )


def fitted(batch: Molecules) -> CoulombMLP:
    torch.manual_seed(0)
    model = CoulombMLP()
    model.fit(batch, torch.linspace(-2000, -500, len(batch)))
    torch.nn.init.normal_(model.network[-1].weight)  # it is zero, and so would be the output
    return model.eval()


def test_matrices_by_definition() -> None:
    sizes = [4, 7, 23]
    batch = molecules(sizes)
    matrices, first = coulomb_matrices(batch), 0
    for matrix, size in zip(matrices, sizes, strict=True):
        z = batch.charges[first : first + size].double()
        p = batch.positions[first : first + size]
        first += size
        for i in range(23):
            for j in range(23):
                if max(i, j) >= size:
                    expected = 0.0
                elif i == j:
                    expected = 0.5 * z[i].item() ** 2.4
                else:
                    expected = (z[i] * z[j] / torch.dist(p[i], p[j])).item()
                assert matrix[i, j].item() == pytest.approx(expected, rel=1e-12)


def test_hydrogen_molecule() -> None:
    """Two charges 1 at 1.4 Bohr: 0.5 on the diagonal, 1 / 1.4 off it."""
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 1.4]])
    ones = torch.ones(2, dtype=torch.int64)
    batch = Molecules(None, 0 * ones, ones, positions, torch.tensor([[2.0, 0, 0, 0, 0]]))
    expected = torch.tensor([[0.5, 1 / 1.4], [1 / 1.4, 0.5]])
    torch.testing.assert_close(coulomb_matrices(batch)[0, :2, :2], expected)


def test_too_many_atoms_are_refused() -> None:
    with pytest.raises(ValueError, match="24 atoms do not fit"):
        coulomb_matrices(molecules([5, 24]))


def test_without_noise_rows_are_sorted() -> None:
    matrices = coulomb_matrices(molecules([6, 20]))
    found = realisation(matrices, torch.zeros(2, 23))
    assert found.shape == (2, 276)
    for matrix, entries in zip(matrices, found, strict=True):
        order = np.argsort(-matrix.norm(dim=1).numpy(), kind="stable")
        ordered = matrix.numpy()[np.ix_(order, order)]
        np.testing.assert_array_equal(entries, ordered[np.triu_indices(23)])


def test_realisations_are_permutations() -> None:
    """Full matrices put together again have the spectrum and the entries of the unsorted ones."""
    matrices = coulomb_matrices(molecules([6, 20]))
    row, column = np.triu_indices(23)
    seen = set()
    for seed in range(3):
        noise = torch.randn(2, 23, generator=torch.Generator().manual_seed(seed))
        for matrix, entries in zip(matrices, realisation(matrices, noise), strict=True):
            full = np.zeros((23, 23))
            full[row, column] = full[column, row] = entries
            np.testing.assert_array_equal(np.sort(full.ravel()), np.sort(matrix.numpy().ravel()))
            np.testing.assert_allclose(
                np.linalg.eigvalsh(full), np.linalg.eigvalsh(matrix), atol=1e-9
            )
            seen.add(entries.numpy().tobytes())
    assert len(seen) > 2  # draws differ


def test_features() -> None:
    """Thresholds 0..ceil(max) of every entry, centred, and of standard deviation 1 over all."""
    batch = molecules([6, 8, 5, 7])
    model, matrices = fitted(batch), coulomb_matrices(batch)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(REALISATIONS, 4, 23, generator=generator)
    entries = torch.cat([realisation(matrices, draw) for draw in draws]).numpy()
    expected = np.concatenate(
        [np.tanh(e[:, None] - np.arange(np.ceil(e.max()) + 1)) for e in entries.T], axis=1
    )
    used = expected.shape[1]
    expected -= expected.mean(axis=0)
    found = model.features(torch.from_numpy(entries))
    np.testing.assert_allclose(found[:, :used], expected / expected.std(), atol=1e-9)
    assert not found[:, used:].any()


def test_target_scale() -> None:
    batch = molecules([6, 8, 5])
    model = CoulombMLP()
    model.fit(batch, torch.tensor([-900.0, -600.0, -300.0]))
    assert model.mean.item() == pytest.approx(-600)
    assert model.scale.item() == pytest.approx(np.std([-900, -600, -300]))
    torch.testing.assert_close(model(batch), model.mean.expand(3))  # the last layer is zero


def test_features_that_do_not_fit_are_refused() -> None:
    crowded = molecules([23] * 4)
    crowded.charges.fill_(16)
    with pytest.raises(ValueError, match=f"features do not fit {INPUTS} inputs"):
        CoulombMLP().fit(crowded, torch.zeros(4))


def test_parameters() -> None:
    assert sum(p.numel() for p in CoulombMLP().parameters()) == 400 * 2_151 + 100 * 401 + 101


def test_symmetries_and_independence_in_evaluation() -> None:
    batch = molecules([6, 8, 5])
    model = fitted(batch)
    with torch.no_grad():
        at_rest = model(batch)
        assert at_rest.std() > 1
        torch.testing.assert_close(model(batch), at_rest, rtol=0, atol=0)

        rotation = torch.linalg.qr(torch.randn(3, 3)).Q
        moved = Molecules(**vars(batch) | {"positions": batch.positions @ rotation.T + 7})
        torch.testing.assert_close(model(moved), at_rest, rtol=1e-9, atol=0)

        order = torch.cat([torch.randperm(6), 6 + torch.randperm(8), 14 + torch.randperm(5)])
        permuted = Molecules(
            None, batch.molecule, batch.charges[order], batch.positions[order], batch.counts
        )
        torch.testing.assert_close(model(permuted), at_rest, rtol=1e-12, atol=0)

        middle = Molecules(
            None,
            torch.zeros(8, dtype=torch.int64),
            batch.charges[6:14],
            batch.positions[6:14],
            batch.counts[1:2],
        )
        torch.testing.assert_close(model(middle), at_rest[1:2], rtol=1e-12, atol=0)


def test_training_draws_anew_from_the_generator_of_torch() -> None:
    batch = molecules([6, 8])
    model = fitted(batch).train()
    torch.manual_seed(1)
    first, second = model(batch), model(batch)
    assert (first - second).abs().max() > 0
    torch.manual_seed(1)
    assert torch.equal(model(batch), first)


def test_state_dict_carries_the_fit() -> None:
    batch = molecules([6, 8, 5])
    model, twin = fitted(batch), CoulombMLP().eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(batch), model(batch))


def test_scaled_layers_train_as_the_published_ones() -> None:
    """One step of SGD on the network against Montavon's own, without his centring: gradients of a
    layer over the root of its inputs, backward signals times sqrt(m / n), at the same effective
    weights. His are of the sum over the batch of half squares: ours needs 25 / 2 times his rate."""
    torch.manual_seed(0)
    network = CoulombMLP(inputs=30).network
    torch.nn.init.normal_(network[-1].weight)
    layers = [layer for layer in network if isinstance(layer, ScaledLinear)]
    before = [(layer.gain * layer.weight).detach() for layer in layers]
    x, target, rate = torch.randn(25, 30), torch.randn(25), 0.01
    optimizer = torch.optim.SGD(network.parameters(), lr=25 / 2 * rate)
    output = network(x)[:, 0]
    (output - target).square().mean().backward()
    optimizer.step()

    signals = [x]
    for weight in before[:2]:
        signals.append(1.5 * torch.tanh(signals[-1] @ weight.t() / 1.5))
    back = (output - target)[:, None].detach()
    for layer, weight, signal in reversed(list(zip(layers, before, signals, strict=True))):
        n, m = weight.shape
        moved = weight - rate / m**0.5 * back.t() @ signal
        torch.testing.assert_close((layer.gain * layer.weight).detach(), moved)
        back = (m / n) ** 0.5 * back @ weight * (1 - (signal / 1.5) ** 2)
