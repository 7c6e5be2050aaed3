"""Small prepared data and runs that every test may use."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.config import RunConfig, parse_protocol, planned_runs
from data_prep.spherical_mnist import prepare
from data_prep.synthetic_digits import synthetic_digits
from pdo.precision import default_dtype

N_TRAIN, N_TEST = 120, 40

os.environ.pop("MLFLOW_TRACKING_URI", None)  # the user's server is not for runs of tests
os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # nor a proxy for our own servers


def tiny_protocol(**changes) -> dict:
    """A protocol of synthetic digits on a coarse mesh, as a plain tree."""
    tree = {
        "protocol": "tiny",
        "seeds": 1,
        "tracking": False,
        "tasks": {
            "spherical_mnist": {
                "data": {"source": "synthetic", "level": 3, "n_train": N_TRAIN, "n_test": N_TEST},
                "train": {"epochs": 2, "batch_size": 16, "schedule": "one_cycle"},
            }
        },
    }
    return tree | changes


def tiny_run(model: str = "UGSCNN", setting: str = "N", seed: int = 0, **train) -> RunConfig:
    tree = tiny_protocol(seeds=seed + 1)
    tree["tasks"]["spherical_mnist"]["train"] |= train
    runs = planned_runs(parse_protocol(tree))
    return next(r for r in runs if (r.model, r.setting, r.seed) == (model, setting, seed))


@pytest.fixture(autouse=True)
def torch_as_it_was(monkeypatch) -> Iterator[None]:
    """What a command or a training asks of the whole process ends with the test."""
    monkeypatch.setattr("bench.__main__._keep_freed_memory", lambda: None)
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture
def one_thread() -> None:
    """As in training."""
    torch.set_num_threads(1)


@pytest.fixture
def float64() -> Iterator[None]:
    """Operators are rounded to the default type when they are built, so `.double()` is too late."""
    with default_dtype(torch.float64):
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Prepared synthetic digits on the grids of all models at level 3."""
    root = tmp_path_factory.mktemp("data")
    digits = synthetic_digits(N_TRAIN, N_TEST, seed=0)
    for grid in ("icosphere3-equator", "latlon15"):
        folder = root / tiny_run().data.folder(grid)
        prepare(digits, grid, folder, seed=0)
    return root


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium; `make browser` installs it on Debian."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium: make browser")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page_of(browser) -> Callable:
    """`page_of(address, width, height)` opens a page; gives it and a list of what its console said
    (and the file that it spoke of) and of what it asked the network for, besides its own server."""

    def opened(address: str, width: int = 1200, height: int = 900) -> tuple:
        page, messages = browser.new_page(viewport={"width": width, "height": height}), []
        page.on("console", lambda m: messages.append(f"{m.text} {m.location['url']}"))
        page.on("pageerror", lambda error: messages.append(str(error)))
        others = (address.split("#")[0], "data:")
        page.on("request", lambda r: r.url.startswith(others) or messages.append(r.url))
        page.goto(address)
        return page, messages

    return opened
