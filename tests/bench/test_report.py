"""The report, opened in a browser: tables as in the CSV files, nothing asked of the network."""

import base64
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from bench import figures, figures_method
from bench.__main__ import main
from bench.config import RunConfig, load_protocol, planned_runs
from bench.report import _curves
from bench.run_folder import read_metrics
from bench.tables import build_table
from bench.typesetting import write_tables
from tests.workflow.conftest import ROOT

ERRORS = ROOT / "results/recorded/convergence/errors.csv"
WIDTHS = {"desktop": 1200, "phone": 375}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The recorded runs of UGSCNN and PDO-eS2CNN-small under the default protocol."""
    folder = tmp_path_factory.mktemp("report")
    for model in ("UGSCNN", "PDO-eS2CNN-small"):
        source = ROOT / "results/recorded/default/runs/spherical_mnist" / model
        shutil.copytree(source, folder / "runs/default/spherical_mnist" / model)
    recorded = folder / "recorded/default"
    recorded.mkdir(parents=True)
    for name in ("table1.csv", "table1.md", "robustness.png"):
        shutil.copy(ROOT / "results/recorded/default" / name, recorded)
    for measured in ("speed", "convergence"):
        shutil.copytree(ROOT / "results/recorded" / measured, folder / "recorded" / measured)
    return folder


@pytest.fixture(scope="module")
def protocol():
    return load_protocol(ROOT / "config/default.yaml")


@pytest.fixture(scope="module")
def report(results):
    assert main(["report", "--results", str(results)]) == 0
    return results / "tables/default/report.html"


def test_every_finished_run_is_there_with_its_provenance(report, results, protocol):
    page = report.read_text()
    found = [run for run in planned_runs(protocol) if read_metrics(results, run)]
    assert len(found) == 8
    for run in found:
        facts = json.loads((results / "runs" / run.key / "provenance.json").read_text())
        assert f"<summary>{run.key}: " in page and facts["git_commit"] in page
        config = yaml.safe_load((results / "runs" / run.key / "config.yaml").read_text())
        assert RunConfig.model_validate(config) == run
    assert "NOT THE PAPER" in page and "CITATION" not in page and "2104.03584" in page
    assert page.count('<img src="data:image/png;base64,') >= 6
    assert "no result (0/2)" in page, "missing runs are said"


def test_it_is_one_file_without_scripts(report):
    page = report.read_text()
    assert "<script" not in page and 'src="http' not in page and 'href="http' not in page
    assert len(page) < 5e6


def test_figures_are_there_and_stand_in_files_too(report, results):
    page = report.read_text()
    images = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    files = {path.stem: path for path in (results / "tables/default/figures").rglob("*.png")}
    names = {"training", "parameters", "rotation", "cost", "spheres", "equivariance", "speed"}
    names |= {"confusion-UGSCNN", "confusion-PDO-eS2CNN-small"}
    assert files.keys() == names
    assert {path.parent.name for path in files.values()} == {"spherical_mnist", "method"}
    shown = {base64.b64decode(data) for data, _ in images}
    assert all(path.read_bytes() in shown for path in files.values())
    folders = ("convergence: ", "default: ", "speed: ")
    recorded = [alt for _, alt in images if alt.startswith(folders)]
    assert recorded == ["convergence: convergence", "default: robustness", "speed: speed"]
    assert len(images) == len(names) + len(recorded)


def test_recorded_tables_are_those_of_the_files(report):
    page = report.read_text()
    part = page[page.index('<section id="recorded">') :]
    shown = part[part.index("<tbody>") : part.index("</tbody>")]
    table = pd.read_csv(ROOT / "results/recorded/default/table1.csv")
    for row in table.itertuples():
        number = (
            f"{row.reproduced_mean:.2f} ± {row.reproduced_std:.2f} ({row.n_seeds}/{row.n_planned})"
        )
        assert f"<td>{row.model}</td>" in shown and f"<td>{number}</td>" in shown
        assert f"<td>{row.params_reproduced:,}</td>" in shown


def test_each_run_shows_its_history(report, results, protocol):
    page = report.read_text()
    runs = page.split("<details id=")[1:]
    assert len(runs) == 8
    for text in runs:
        key = re.search(r"<summary>(\S+): ", text)[1]
        history = pd.read_csv(results / "runs" / key / "history.csv")
        shown = re.findall(
            r'<p>([^:]+): (\S+) to (\S+) in (\d+) epochs.*?points="([^"]+)"', text, re.S
        )
        assert [name for name, *_ in shown] == [
            "train loss",
            "validation loss",
            "validation accuracy percent",
        ]
        for name, first, last, epochs, points in shown:
            values = history[name.replace(" ", "_")]
            assert int(epochs) == len(values)
            assert (first, last) == (f"{values.iloc[0]:.4g}", f"{values.iloc[-1]:.4g}")
            heights = [float(point.split(",")[1]) for point in points.split()]
            expected = 60 * (values.max() - values) / (values.max() - values.min())
            assert np.allclose(heights, expected, atol=0.05)


def test_curves_of_a_run_that_diverged(tmp_path):
    """Losses that are no numbers are left out; a run may end before its first epoch does."""
    path = tmp_path / "history.csv"
    assert _curves(path) == []
    path.write_text("epoch,seconds,train_loss,validation_loss\n1,3,2.5,nan\n2,3,inf,nan\n")
    (curve,) = _curves(path)
    assert curve == {"name": "train loss", "points": "0,0.0", "told": "2.5 to 2.5 in 1 epochs"}


@pytest.fixture
def drawn(monkeypatch):
    """The plots of the figures that are made, not their images."""
    plots = []
    for module in (figures, figures_method):
        monkeypatch.setattr(module, "finish", lambda plot, *names: plots.append(plot))
    return plots


def points_of(axes, label: str) -> np.ndarray:
    """The points (x, y) of all lines of that name."""
    lines = [line.get_xydata() for line in axes.lines if line.get_label() == label]
    return np.concatenate(lines)


def test_figures_of_runs_show_their_numbers(drawn, results, protocol):
    runs = [run for run in planned_runs(protocol) if read_metrics(results, run)]
    models = ["UGSCNN", "PDO-eS2CNN-small"]
    colour = figures.colours(models)
    table = build_table(protocol, "spherical_mnist", results)
    figures.training_curves(runs, results, colour)
    figures.upright_against_rotated(table, "accuracy_percent", ("N/N", "N/R"), colour)
    figures.against_parameters(table, "accuracy_percent", colour)
    figures.cost(runs, results, colour)
    training, rotation, parameters, cost = drawn
    for model in models:
        mine = [run for run in runs if run.model == model]
        folders = [results / "runs" / run.key for run in mine]
        histories = [pd.read_csv(folder / "history.csv") for folder in folders]
        curves = [
            history.validation_accuracy_percent
            for history, run in zip(histories, mine, strict=True)
            if run.setting == "N"
        ]
        mean = np.mean(curves, axis=0)
        assert np.allclose(points_of(training.axes[0], model)[:, 1], mean)
        rows = table[table.model == model].set_index("setting")
        assert np.allclose(
            points_of(rotation.axes[0], model)[:, 1], rows.reproduced_mean[["N/N", "N/R"]]
        )
        assert np.allclose(
            points_of(parameters.axes[0], model),
            rows[["params_reproduced", "reproduced_mean"]].astype(float),
        )
        seconds = np.median([history.seconds.median() for history in histories])
        facts = [json.loads((folder / "provenance.json").read_text()) for folder in folders]
        memory = np.median([fact["peak_memory_gb"] for fact in facts])
        size = rows.params_reproduced.iloc[0]
        for axes, value in zip(cost.axes, (seconds, memory), strict=True):
            assert np.allclose(points_of(axes, model), (size, value))


def test_figures_of_the_method_show_their_numbers(drawn):
    errors = pd.read_csv(ERRORS)
    figures_method.equivariance_against_mesh(ERRORS)
    for axes, layer in zip(drawn[0].axes, ("lifting layer", "group layer"), strict=True):
        for stencil in ("nearest ring (paper)", "smoothed (default)"):
            rows = errors[(errors.quantity == layer) & (errors.family == stencil)]
            assert len(rows) >= 4
            assert np.allclose(points_of(axes, stencil), rows[["h", "equivariance"]])
    speed = json.loads((ROOT / "results/recorded/speed/speed.json").read_text())
    figures_method.time_and_memory(speed)
    networks = speed["networks"]
    layer, forms, times, memory = drawn[1].axes
    assert sorted(bar.get_width() for bar in times.patches) == sorted(
        row["ms a digit"] for row in networks
    )
    assert sorted(bar.get_width() for bar in memory.patches) == sorted(
        row["peak memory GB"] for row in networks
    )
    assert len(points_of(layer, "layer, N = 5")) == 4
    for form in ("spectral", "direct"):
        assert points_of(forms, form).tolist() == [
            [r["N"], r[f"{form} ms"]] for r in speed["forms"]
        ]


def test_confusions_are_shares_of_a_class(drawn):
    counts = {"one": np.array([[3, 1], [0, 0]]), "other": np.array([[1, 1], [2, 6]])}
    figures.confusions(counts, "N/N", ["door", "wall"])
    shown = [axes.images[0].get_array().tolist() for axes in drawn[0].axes if axes.images]
    assert shown == [[[0.75, 0.25], [0, 0]], [[0.5, 0.5], [0.25, 0.75]]]
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["door", "wall"]


def test_parity_shows_energies_and_errors(drawn):
    pairs = {"one": np.array([[-3.0, -2.0], [-1.0, -1.0]]), "other": np.array([[-3.0, -5.0]])}
    figures.parity(pairs)
    top, other, bottom, _ = drawn[0].axes
    assert top.lines[0].get_xydata().tolist() == pairs["one"].tolist()
    assert bottom.lines[0].get_xydata().tolist() == [[-3, 1], [-1, 0]]
    assert top.get_title() == "one: RMSE 0.71" and other.get_title() == "other: RMSE 2.00"


def test_panoramas_are_shown_with_their_own_protocol_alone(results, tmp_path):
    """`bench rooms` has drawn the workstation protocol's."""
    (tmp_path / "tables/workstation").mkdir(parents=True)
    picture = ROOT / "results/recorded/workstation/synthetic_rooms_panoramas.png"
    shutil.copy(picture, tmp_path / "tables/workstation")
    for protocol in ("workstation", "default"):
        run = "synthetic_rooms/UGSCNN/fold1/seed0"
        source = ROOT / "results/recorded" / protocol / "runs" / run
        shutil.copytree(source, tmp_path / "runs" / protocol / run)
        assert main(["report", "--protocol", protocol, "--results", str(tmp_path)]) == 0
        drawn = tmp_path / "tables" / protocol / "figures/synthetic_rooms"
        shown = (drawn / "synthetic_rooms_panoramas.png").exists()
        assert shown == (protocol == "workstation")
        assert (drawn / "confusion-UGSCNN.png").exists()


def test_in_a_browser(report, results, protocol, page_of):
    write_tables(protocol, results)
    for width in WIDTHS.values():
        page, messages = page_of(report.as_uri(), width)
        assert messages == [], messages
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        rows = page.evaluate(
            "[...document.querySelector('#spherical_mnist table').rows].map("
            "r => [...r.cells].map(c => c.textContent))"
        )
        shown = pd.DataFrame(rows[1:], columns=rows[0]).set_index("model")
        table = pd.read_csv(results / "tables/default/table1.csv")
        measured = table[table.reproduced_mean.notna()]
        assert len(measured) == 6
        for row in measured.itertuples():
            cell = f"{row.reproduced_mean:.2f} ± {row.reproduced_std:.2f} ({row.n_seeds}/2)"
            assert shown.loc[row.model, f"{row.setting} corrected"] == cell
            reported = shown.loc[row.model, f"{row.setting} reported"]
            assert reported.startswith(f"{row.reported_mean:.2f}")
        images = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt.length])")
        assert images and all(wide > 0 and alt > 10 for wide, alt in images)


def test_runs_of_one_setting_alone_are_a_page(results, protocol, tmp_path):
    """No column of upright digits, so nothing to set beside rotated ones."""
    run = next(r for r in planned_runs(protocol) if (r.model, r.setting) == ("UGSCNN", "R"))
    shutil.copytree(results / "runs" / run.key, tmp_path / "runs" / run.key)
    assert main(["report", "--results", str(tmp_path)]) == 0
    page = (tmp_path / "tables/default/report.html").read_text()
    assert page.count("<summary>default/") == 1 and "upright and of rotated" not in page


def test_nothing_finished_is_a_page_too(tmp_path):
    assert main(["report", "--protocol", "paper", "--results", str(tmp_path)]) == 0
    assert "None has finished." in (tmp_path / "tables/paper/report.html").read_text()
