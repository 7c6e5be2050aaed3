"""Tables from run folders: closed-form statistics, missing and diverged seeds, formats."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from bench.config import load_protocol, parse_protocol, planned_runs
from bench.errors import RunError
from bench.registry import models_of
from bench.tables import COLUMNS, build_table, long, notes, read_claims, wide, write_tables
from tests.conftest import tiny_protocol

ROOT = Path(__file__).parents[2]
VALUES = {0: 98.0, 1: 99.0, 2: 98.5}


def put(results, run, status="finished", value=98.0, config_hash=None):
    folder = results / "runs" / run.key
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"N": ("N/N", "N/R"), "R": ("R/R",), "Omni": ("Omni",)}[run.setting]
    test = {c: {"accuracy_percent": value} for c in columns} if status == "finished" else {}
    metrics = {"status": status, "parameters": 61658, "test": test}
    metrics["config_hash"] = config_hash or run.hash
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def protocol():
    return parse_protocol(tiny_protocol(seeds=3, notice="LOUD NOTICE"))


def runs_of(protocol, model, setting):
    return [r for r in planned_runs(protocol) if (r.model, r.setting) == (model, setting)]


def row(table, model, setting):
    return table[(table.model == model) & (table.setting == setting)].iloc[0]


def test_statistics(tmp_path, protocol):
    for run in runs_of(protocol, "UGSCNN", "N"):
        put(tmp_path, run, value=VALUES[run.seed])
    cell = row(build_table(protocol, "spherical_mnist", tmp_path), "UGSCNN", "N/R")
    assert cell.measured_mean == 98.5 and cell.measured_std == 0.5  # of 98, 98.5, 99
    assert cell.ci95_half_width == pytest.approx(4.302653 * 0.5 / math.sqrt(3), abs=1e-4)
    assert (cell.n_seeds, cell.n_planned) == (3, 3)
    assert cell.claim_mean == 35.60 and cell.params_claim == 62_000
    assert cell.params_measured == 61_658


def test_missing_diverged_and_foreign_runs_are_not_averaged(tmp_path, protocol):
    first, second, third = runs_of(protocol, "UGSCNN", "R")
    put(tmp_path, first, value=95.0)
    put(tmp_path, second, status="diverged")
    put(tmp_path, third, value=10.0, config_hash="of an older configuration")
    table = build_table(protocol, "spherical_mnist", tmp_path)
    cell = row(table, "UGSCNN", "R/R")
    assert cell.measured_mean == 95.0 and math.isnan(cell.measured_std)
    assert (cell.n_seeds, cell.n_planned, cell.diverged) == (1, 3, 1)
    write_tables(protocol, tmp_path)
    text = (tmp_path / "tables/table1.md").read_text()
    assert "95.00 (1/3, 1 diverged)" in text and "no result (0/3)" in text


def test_the_interval_of_a_percentage_ends_at_100(tmp_path, protocol):
    for run, value in zip(runs_of(protocol, "UGSCNN", "N"), (98.0, 100.0), strict=False):
        put(tmp_path, run, value=value)
    found = long(build_table(protocol, "spherical_mnist", tmp_path)).set_index(["model", "setting"])
    assert found.loc[("UGSCNN", "N/N"), "95 % interval"] == "86.29 to 100.00"  # 99 +- 12.706


@pytest.mark.parametrize(
    "page", sorted((ROOT / "results/recorded").glob("*/*.md")), ids=lambda p: f"{p.parent.name}"
)
def test_recorded_pages_carry_their_protocols_notice(page):
    file = ROOT / "config" / f"{page.parent.name}.yaml"
    notice = load_protocol(file).notice if file.exists() else ""
    found = re.findall(r"^\*\*(.+)\*\*$", page.read_text(), re.MULTILINE)
    assert found == ([notice] if notice else [])


def test_files(tmp_path, protocol):
    for run in planned_runs(protocol):
        put(tmp_path, run, value=96.4)
    paths = write_tables(protocol, tmp_path)
    assert [p.name for p in paths] == [f"table1.{s}" for s in ("csv", "md", "tex", "html")]
    frame = pd.read_csv(tmp_path / "tables/table1.csv")
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 3 * len(models_of("spherical_mnist")) + 1  # Omni
    assert (frame.measured_mean == 96.4).all()
    for path in paths[1:]:
        text = path.read_text()
        assert "LOUD NOTICE" in text and "96.40" in text and "UGSCNN" in text
        assert "snakemake --cores 8 all --config protocol=tiny" in text
    tex = (tmp_path / "tables/table1.tex").read_text()
    assert r"\begin{tabular}" in tex and "±" not in tex


def test_claims_are_all_read():
    claims = read_claims()
    assert len(claims) == 37
    assert set(claims.table) == {1, 2, 3}


def test_a_setting_of_one_model_is_a_column_that_says_so(tmp_path):
    tree = tiny_protocol()
    tree["tasks"]["spherical_mnist"]["models"] = ["UGSCNN", "SphereNet"]
    protocol = parse_protocol(tree)
    (run,) = runs_of(protocol, "SphereNet", "Omni")
    put(tmp_path, run, value=94.0)
    table = build_table(protocol, "spherical_mnist", tmp_path)
    assert len(table) == 3 + 4 and row(table, "SphereNet", "Omni").measured_mean == 94.0
    cells = wide(table).set_index("model")
    assert list(cells.columns)[-2:] == ["Omni claim", "Omni ours"]
    assert set(cells.loc["UGSCNN", ["Omni claim", "Omni ours"]]) == {"SphereNet only"}
    assert cells.loc["SphereNet", "Omni ours"] == "94.00 (1/1)"


def test_claims_that_need_a_word_have_a_footnote(tmp_path, protocol):
    table = build_table(protocol, "spherical_mnist", tmp_path)
    cells = wide(table).set_index("model").loc["SphereNet"]
    assert cells["N/N claim"] == "94.40 [1]" and cells["Omni claim"] == "94.40 [2]"
    assert cells["N/R claim"] == "not claimed"
    (run,) = runs_of(protocol, "SphereNet", "N")[:1]
    put(tmp_path, run, value=97.5)
    found = long(build_table(protocol, "spherical_mnist", tmp_path)).set_index(["model", "setting"])
    assert found.loc[("SphereNet", "N/N"), "ours - claim"] == "+3.10 [1]"
    printed, own = notes(table)
    assert "own projection (column Omni)" in printed and "120 x 120 degrees" in own
    for path in write_tables(protocol, tmp_path)[1:]:
        text = path.read_text()
        assert "94.40 [1]" in text and f"[1] {printed}" in text and f"[2] {own}" in text
    others = table[table.model != "SphereNet"]
    assert notes(others) == [] and "[1]" not in wide(others).to_string()


def test_unreadable_metrics(tmp_path, protocol):
    run = planned_runs(protocol)[0]
    put(tmp_path, run)
    (tmp_path / "runs" / run.key / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json cannot be read"):
        build_table(protocol, "spherical_mnist", tmp_path)
