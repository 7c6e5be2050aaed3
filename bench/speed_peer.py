"""One step of another library's layer each time a line comes in; the seconds go out as a line.

Run by `bench.speed_peers` as a script, in an environment that has that library but not this
project: python speed_peer.py NAME SIZE CHANNELS BATCH THREADS.
"""

import sys
import time
from collections.abc import Callable

import torch


def disco(latitudes: int, channels: int) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """torch-harmonics' local convolution of signals on a latitudes x 2 latitudes grid; the kernel
    has 3 anisotropic basis functions (radial x angular), its radius is the library's default."""
    from torch_harmonics import DiscreteContinuousConvS2

    grid = (latitudes, 2 * latitudes)
    return DiscreteContinuousConvS2(channels, channels, grid, grid, kernel_shape=(2, 3)), grid


def so3(lmax: int, channels: int) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """e3nn's SO(3) convolution on Fourier coefficients, all degrees l <= lmax and orders m, n:
    psi * f has the coefficients f^l psi^l, matrix products for each l. No transforms to a grid."""
    from e3nn import o3

    irreps = o3.Irreps([(2 * degree + 1, (degree, 1)) for degree in range(lmax + 1)])
    return o3.Linear(irreps, irreps, f_in=channels, f_out=channels), (irreps.dim,)


LAYERS: dict[str, Callable[[int, int], tuple[torch.nn.Module, tuple[int, ...]]]] = {
    "torch-harmonics": disco,
    "e3nn": so3,
}


def main(name: str, size: int, channels: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    layer, shape = LAYERS[name](size, channels)
    x = torch.randn(batch, channels, *shape, requires_grad=True)
    grad = torch.randn_like(layer(x))
    inputs = [x, *layer.parameters()]
    print(torch.__version__, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        torch.autograd.grad(layer(x), inputs, grad, allow_unused=True)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
