"""Our layer beside what one would use instead: torch-harmonics' local convolution on the sphere and
e3nn's convolution on SO(3), each in a virtual environment of its own.

What is equal: fields (or numbers a point), numbers stored for a field (within a few per cent),
batch size, threads, allocator, float32, forward and backward, machine, repeats taken in turn. What
is not:

- torch-harmonics' layer takes scalar fields, as our lifting layer does; fields of orientations it
  does not have. So it stands beside our layer for scalar fields, and, with N channels for each
  field, beside our group layer: as many numbers, but channels that do not turn with the sphere.
- Its grid is equiangular (denser at the poles) with about as many points, its kernel 3 functions,
  ours 6 operators (2 between scalars).
- e3nn's layer acts on Fourier coefficients, with kernels of global support, all orders |n| <= l,
  no local derivatives; lmax gives as many coefficients as our field has numbers, or (`same
  bandwidth`) the degree that as many vertices resolve. Transforms to and from a grid, which any
  nonlinearity needs, are left out: to its favour.
"""

from __future__ import annotations

import os
import subprocess
import venv
from dataclasses import dataclass
from math import isqrt, sqrt
from pathlib import Path

import torch

from bench.errors import RunError
from bench.speed import BATCH, FIELDS, Row, layer_step, random_field, run_in_turn, summary
from pdo.layers import PDOConv
from pdo.mesh import Icosphere

SCRIPT = Path(__file__).with_name("speed_peer.py")
PACKAGES = {
    # 0.9.3 asks for torch 2.14 but runs, with its own compiled kernels, on 2.13: no second torch.
    "torch-harmonics": [["numpy", "torch=={torch}"], ["--no-deps", "torch-harmonics==0.9.3"]],
    "e3nn": [["torch=={torch}", "e3nn==0.6.0"]],
}
"""What pip is given, call by call; {torch} is the version in use here."""
ORDERS = 2


@dataclass(frozen=True)
class Pair:
    """A peer's layer and ours beside it: `orders` 0 for scalar fields."""

    peer: str
    size: int
    channels: int
    orders: int
    remark: str


def pairs(vertices: int) -> list[Pair]:
    """What is compared at a number of vertices V: a grid of n x 2n = V points, and lmax with
    (lmax + 1)(2 lmax + 1)(2 lmax + 3) / 3 coefficients nearest to N V."""
    n = 2 * ORDERS + 1
    latitudes = round(sqrt(vertices / 2))
    lmax = min(range(200), key=lambda top: abs(coefficients(top) - n * vertices))
    return [
        Pair("torch-harmonics", latitudes, FIELDS, 0, "scalar fields"),
        Pair("torch-harmonics", latitudes, n * FIELDS, ORDERS, "as many numbers a point"),
        Pair("e3nn", lmax, FIELDS, ORDERS, "as many numbers a field"),
        Pair("e3nn", isqrt(vertices) - 1, FIELDS, ORDERS, "same bandwidth"),
    ]


def coefficients(lmax: int) -> int:
    """Fourier coefficients of a field on SO(3): the sum of (2l + 1)^2 over l <= lmax."""
    return (lmax + 1) * (2 * lmax + 1) * (2 * lmax + 3) // 3


def compare_with_peers(level: int, repeats: int, pythons: dict[str, Path]) -> list[Row]:
    """Steps of the peers' layers and ours, in turn, in the peers' `environment`s.

    Raises:
        RunError: if a peer fails.
    """
    mesh, rows = Icosphere(level), []
    for pair in pairs(len(mesh)):
        with Peer(pair, pythons[pair.peer]) as peer:
            n = 2 * pair.orders + 1
            layer = PDOConv(mesh, FIELDS, FIELDS, pair.orders)
            ours = layer_step(layer, random_field(mesh, n, FIELDS, BATCH))
            seconds = run_in_turn({"ours": ours, "peer": peer.step}, repeats)
        row = {"peer": pair.peer, "compared": pair.remark, "channels": pair.channels}
        row |= {"size": pair.size, "N": n, "torch": peer.torch}
        values = {f"{name} ms": 1e3 * s / BATCH for name, s in seconds.items()}
        values["peer / ours"] = seconds["peer"] / seconds["ours"]
        rows.append(row | summary(values))
    return rows


class Peer:
    """A process that keeps a peer's layer and takes a step of it when told to."""

    def __init__(self, pair: Pair, python: Path) -> None:
        threads = str(torch.get_num_threads())
        numbers = [str(k) for k in (pair.size, pair.channels, BATCH)]
        self.name = pair.peer
        self.process = subprocess.Popen(
            [python, SCRIPT, pair.peer, *numbers, threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "MALLOC_MMAP_MAX_": "0",  # freed memory is kept, as our process keeps it
                "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
            },
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.input, self.output = self.process.stdin, self.process.stdout
        self.errors = self.process.stderr
        self.torch = self._line()

    def step(self) -> float:
        """Seconds of one step, by the peer's own clock."""
        try:
            self.input.write("\n")
            self.input.flush()
        except BrokenPipeError:
            pass  # it died; what it said is in stderr
        return float(self._line())

    def _line(self) -> str:
        line = self.output.readline().strip()
        if not line:
            said = self.errors.read().strip().splitlines() or ["nothing"]
            raise RunError(f"the layer of {self.name} failed, its last word: {said[-1]}")
        return line

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # the end of its input is its end


def environment(peer: str, folder: Path) -> Path:
    """Python of the peer's virtual environment, which is made if it is not there.

    Raises:
        RunError: if pip fails.
    """
    home = folder.resolve() / peer
    python, done = home / "bin" / "python", home / "complete"
    version = torch.__version__.split("+")[0]
    wanted = [[word.format(torch=version) for word in call] for call in PACKAGES[peer]]
    if done.exists() and done.read_text() == repr(wanted):
        return python
    venv.create(home, with_pip=True, clear=True)
    for words in wanted:
        command = [str(python), "-m", "pip", "install", "--quiet", *words]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            said = pip.stderr.strip().splitlines() or ["nothing"]
            raise RunError(f"{peer} could not be installed in {home}: {said[-1]}")
    done.write_text(repr(wanted))
    return python
