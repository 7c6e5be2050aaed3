"""`make ui`, walked through in a browser as a reader would: tables, models, seeds, curves, tags."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.slow

MODELS = ("UGSCNN", "PDO-eS2CNN-small")
PATIENCE = 180  # seconds: a few on a free machine
MAKE_UI = ("make", "--assume-old=.venv/.ready", "ui")  # the environment is this test's own
KNOWN = (
    # MLflow asks who is logged in, which only its server with accounts can answer
    "users/current",
    # its table library's advice to its authors
    "AG Grid: since v27.1",
    # a browser's notice that a page took more than a frame to lay itself out: on a busy machine
    "ResizeObserver loop completed",
)


@pytest.fixture(scope="module")
def clone(project):
    """Recorded runs, and no database but what `sync_tracking` makes of them."""
    for model in MODELS:
        recorded = project.folder / "results/recorded/default/runs/spherical_mnist" / model
        shutil.copytree(recorded, project.folder / "results/runs/default/spherical_mnist" / model)
    assert project.run("python", "-m", "bench", "tables").returncode == 0
    done = project.run("snakemake", "--cores", "1", "sync_tracking")
    assert done.returncode == 0 and "runs changed" in done.stdout, done.stdout
    return project


@pytest.fixture(scope="module")
def address(clone, tmp_path_factory):
    """Where `make ui` serves the clone's runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path_factory.mktemp("ui") / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*MAKE_UI, f"PORT={port}"],
            cwd=clone.folder,
            env=clone.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.5)
        assert output.read_text().startswith(f"{address}: ")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        process.wait(timeout=60)


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def test_it_listens_on_this_machine_alone(address):
    port = int(address.rsplit(":", 1)[1])
    with socket.socket() as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", port)) != 0, "loopback, but not 127.0.0.1"


def test_a_walk_through_its_pages(address, clone, page_of):
    results = clone.folder / "results"
    page, messages = page_of(f"{address}/#/experiments", width=1600, height=3000)
    page.set_default_timeout(1000 * PATIENCE)
    page.get_by_text("Model training").click()

    # An experiment for each table, with its models and the table itself.
    page.get_by_role("link", name="qm7").wait_for()
    page.get_by_role("link", name="synthetic_rooms").wait_for()
    page.get_by_role("link", name="spherical_mnist").click()
    for name in (*MODELS, "table_1"):
        page.get_by_role("link", name=name, exact=True).wait_for()
    assert not page.get_by_role("link", name="N/seed0").count()

    # The table's files; its CSV is shown as a table.
    page.get_by_role("link", name="table_1", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    for suffix in ("html", "md", "tex"):
        page.get_by_text(f"table1.{suffix}", exact=True).wait_for()
    page.get_by_text("table1.csv", exact=True).click()
    table = pd.read_csv(results / "tables/default/table1.csv")
    page.get_by_role("row").filter(has_text="SphereNet").first.wait_for()
    rows = [row.split() for row in page.get_by_role("row").all_inner_texts()]
    assert rows[0][:3] == list(table.columns[:3])
    assert [row[:2] for row in rows[1:]] == table[["model", "setting"]].values.tolist()

    # A model's seeds are its children.
    page.get_by_role("link", name="Runs").first.click()
    page.get_by_role("row").filter(has_text="UGSCNN").get_by_role("button").first.click()
    for run in ("N/seed0", "N/seed1", "R/seed0", "R/seed1"):
        page.get_by_role("link", name=run).wait_for()
    page.get_by_role("link", name="N/seed0").click()
    page.get_by_role("link", name="UGSCNN", exact=True).wait_for()  # "Parent run"
    folder = results / "runs/default/spherical_mnist/UGSCNN/N/seed0"
    text = page.inner_text("body")
    assert "train.learning_rate" in text and "data.card.dataset" in text
    assert "default/spherical_mnist/UGSCNN/N/seed0" in text and "seed\n: 0" in text

    # Its curves have the points of its history.
    page.get_by_role("tab", name="Model metrics").click()
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .scatter').length >= 3")
    curves = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
        ".filter(line => line.type === 'scatter').map(line => [[...line.x], [...line.y]])"
    )
    history = pd.read_csv(folder / "history.csv")
    for name in ("train_loss", "validation_loss", "validation_accuracy_percent"):
        values = history[name].tolist()
        assert any(x == history.epoch.tolist() and np.allclose(y, values) for x, y in curves), name
    assert [m for m in messages if not any(known in m for known in KNOWN)] == []


def test_a_server_has_a_page_of_its_own(project):
    done = project.run(*MAKE_UI, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode != 0
    assert done.stdout.startswith("error: the runs are on a server, open http://127.0.0.1:9\n")
