# %% [markdown]
# From a mesh to a network that reads rotated digits, in about a minute on a CPU.
# Run it as a script, `python docs/tutorial.py`, or cell by cell in an editor that knows `# %%`.

# %% The sphere is sampled at the vertices of an icosphere.
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pdo
from data_prep.spherical_mnist import haar_rotations, sample_rotated, to_bytes
from data_prep.synthetic_digits import synthetic_digits

torch.manual_seed(0)
torch.set_num_threads(1)
mesh = pdo.Icosphere(3)
print(f"level 3: {len(mesh)} vertices, {np.degrees(mesh.mean_edge):.1f} degrees apart")

# %% Derivatives at a vertex are a weighted sum over its neighbours: a stencil.
# Oracle: x y is a spherical harmonic of degree l = 2, so its Laplacian is -l (l + 1) x y = -6 x y.
# In the charts of the paper, d11 + d22 at the centre is the Laplacian of the sphere.
laplacian_error = {}
for level in (2, 3, 4):
    sphere = pdo.Icosphere(level)
    fit = pdo.fit_stencil(sphere, pdo.default_frames(sphere), pdo.PAPER)
    f = sphere.vertices[:, 0] * sphere.vertices[:, 1]
    _, _, _, d11, _, d22 = fit.weights.T
    laplacian = np.bincount(fit.rows, (d11 + d22) * f[fit.cols], minlength=len(sphere))
    laplacian_error[level] = np.linalg.norm(laplacian + 6 * f) / np.linalg.norm(6 * f)
    print(f"level {level}: relative error of the Laplacian {laplacian_error[level]:.1e}")

# %% A layer mixes such derivatives; it commutes with rotations.
# Layout of a field: (vertex, fibre coordinate, channel, batch). A signal has one fibre coordinate.
# The 60 rotations of the icosahedron permute the vertices, so there nothing is lost by sampling:
# coordinate 0 of the output, a scalar, is permuted like the input.
lift = pdo.PDOConv(mesh, in_fields=1, out_fields=4, orders=2, input_orders=0)
signal = torch.randn(len(mesh), 1, 1, 1)
rotation = pdo.icosahedral_rotations()[7]
permutation = np.argmax(mesh.vertices @ rotation @ mesh.vertices.T, axis=1)  # R^T P is vertex ...
with torch.no_grad():
    scalar = lift(signal)[:, 0]
    of_rotated = lift(signal[permutation])[:, 0]
layer_error = float((of_rotated - scalar[permutation]).abs().max() / scalar.abs().max())
print(f"layer, rotation of the icosahedron: {layer_error:.1e}, rounding")

# %% A network of such layers is invariant, up to the sampling for any other rotation.
# Digits are put round the south pole; a rotated digit is sampled anew, never interpolated.
digits = synthetic_digits(n_train=600, n_test=200)


def on_sphere(images: np.ndarray, rotations: np.ndarray | None = None) -> torch.Tensor:
    """Images (n, 28, 28) as signals (n, 1, 642), roughly of mean 0 and variance 1."""
    turns = np.repeat(np.eye(3)[None], len(images), axis=0) if rotations is None else rotations
    grey = to_bytes(sample_rotated(images, turns, mesh.vertices))
    return ((torch.from_numpy(grey).float() / 255 - 0.13) / 0.31)[:, None]


turns = haar_rotations(len(digits.test_images), np.random.default_rng(0))
train, upright = on_sphere(digits.train_images), on_sphere(digits.test_images)
rotated = on_sphere(digits.test_images, turns)
network = pdo.PDOeS2CNN(level=3, widths=((6,), (8, 8), (16, 16)), hidden=32)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")

# %% Train it on upright digits only.
labels = torch.from_numpy(digits.train_labels.astype(np.int64))
epochs, batch = 4, 20
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * len(train) // batch)
for epoch in range(epochs):
    for chosen in torch.randperm(len(train)).split(batch):
        loss = torch.nn.functional.cross_entropy(network(train[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

# %% It reads digits that are turned any way, though it has never seen one.
network.eval()
accuracy = {}
with torch.no_grad():
    for name, signals in (("upright", upright), ("rotated", rotated)):
        correct = network(signals).argmax(dim=1).numpy() == digits.test_labels
        accuracy[name] = float(correct.mean())
        print(f"{name}: {accuracy[name]:.1%} of {len(correct)} test digits")
