"""The report, opened in a browser: tables as in the CSV files, nothing asked of the network."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from bench.__main__ import main
from bench.config import RunConfig, load_protocol, planned_runs
from bench.tables import read_metrics, write_tables
from tests.workflow.conftest import ROOT

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
    return folder


@pytest.fixture(scope="module")
def protocol():
    return load_protocol(ROOT / "config/default.yaml")


@pytest.fixture(scope="module")
def report(results):
    assert main(["report", "--results", str(results)]) == 0
    return results / "report.html"


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
        table = pd.read_csv(results / "tables/table1.csv")
        measured = table[table.measured_mean.notna()]
        assert len(measured) == 6
        for row in measured.itertuples():
            cell = f"{row.measured_mean:.2f} ± {row.measured_std:.2f} ({row.n_seeds}/2)"
            assert shown.loc[row.model, f"{row.setting} ours"] == cell
            assert shown.loc[row.model, f"{row.setting} claim"].startswith(f"{row.claim_mean:.2f}")
        images = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt.length])")
        assert images and all(wide > 0 and alt > 10 for wide, alt in images)


def test_runs_of_one_setting_alone_are_a_page(results, protocol, tmp_path):
    """No column of upright digits, so nothing to set beside rotated ones."""
    run = next(r for r in planned_runs(protocol) if (r.model, r.setting) == ("UGSCNN", "R"))
    shutil.copytree(results / "runs" / run.key, tmp_path / "runs" / run.key)
    assert main(["report", "--results", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<summary>default/") == 1 and "upright and of rotated" not in page


def test_nothing_finished_is_a_page_too(tmp_path):
    assert main(["report", "--protocol", "paper", "--results", str(tmp_path)]) == 0
    assert "None has finished." in (tmp_path / "report.html").read_text()
