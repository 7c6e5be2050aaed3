"""Tables from run folders: closed-form statistics, missing and diverged seeds, formats."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from bench.config import ProtocolConfig, RunConfig, load_protocol, parse_protocol, planned_runs
from bench.errors import RunError
from bench.frames import by_setting, long, meaning, notes, origins, wide
from bench.prepared import grid_of
from bench.provenance import command as run_command
from bench.record import record
from bench.registry import TASKS, columns_of, models_of
from bench.tables import COLUMNS, build_table, read_reported
from bench.tasks import TASK_CLASSES
from bench.typesetting import write_tables
from tests.conftest import tiny_protocol

ROOT = Path(__file__).parents[2]
VALUES = {0: 98.0, 1: 99.0, 2: 98.5}


FACTS = {"cpu": "abacus", "gpu": None, "precision": "float32"}
FACTS |= {"git_commit": 40 * "a", "git_dirty": False}
DIGITS = 10_000


def put(results, run, status="finished", value=98.0, config_hash=None, **facts):
    """Write the folder of a run of digits or molecules with this score in every column."""
    folder = results / "runs" / run.key
    folder.mkdir(parents=True, exist_ok=True)
    metric = TASKS[run.task].metric
    if metric == "accuracy_percent":
        targets = np.zeros(DIGITS, np.uint8)
        predictions = (np.arange(DIGITS) >= round(value * DIGITS / 100)).astype(np.uint8)
    else:
        targets, predictions = np.zeros(4), np.full(4, value)
    scores = TASK_CLASSES[run.task].score(predictions, targets)
    columns = columns_of(run.task, run.setting)
    finished, length = status == "finished", run.train.epochs - (status == "diverged")
    metrics = {"run": run.key, "status": status, "parameters": 61658, "config_hash": run.hash}
    metrics |= {"epochs": run.train.epochs, "best_epoch": 1}
    metrics |= {"validation": {metric: 50.0} if finished else {}}
    metrics |= {"test": dict.fromkeys(columns, scores) if finished else {}}
    epochs = "".join(f"{epoch},0.5,50.0\n" for epoch in range(1, length + 1))
    (folder / "history.csv").write_text(f"epoch,train_loss,validation_{metric}\n{epochs}")
    names = [column.replace("/", "_") for column in columns]
    arrays = {f"{name}_predictions": predictions for name in names}
    if finished:
        np.savez(folder / "predictions.npz", **arrays, **{f"{n}_targets": targets for n in names})
    card = run.data.card(grid_of(run)) | {"sha256": {"test_N.npy": "0"}}
    data = {"card": card, "counts": dict.fromkeys(columns, len(targets))}
    facts = FACTS | facts | {"config": run.model_dump(), "config_sha256": run.hash, "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(run.model_dump()))
    (folder / "provenance.json").write_text(json.dumps(facts))
    metrics["config_hash"] = config_hash or run.hash
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def protocol():
    return parse_protocol(tiny_protocol(seeds=3, notice="LOUD NOTICE, 5 % of A_B"))


def runs_of(protocol, model, setting):
    return [r for r in planned_runs(protocol) if (r.model, r.setting) == (model, setting)]


def full(table):
    return long(table, lambda run: run.key)


def row(table, model, setting):
    return table[(table.model == model) & (table.setting == setting)].iloc[0]


def test_statistics(tmp_path, protocol):
    for run in runs_of(protocol, "UGSCNN", "N"):
        put(tmp_path, run, value=VALUES[run.seed])
    cell = row(build_table(protocol, "spherical_mnist", tmp_path), "UGSCNN", "N/R")
    assert cell.reproduced_mean == 98.5 and cell.reproduced_std == 0.5  # of 98, 98.5, 99
    assert cell.ci95_half_width == pytest.approx(4.302653 * 0.5 / math.sqrt(3), abs=1e-4)
    assert (cell.n_seeds, cell.n_planned) == (3, 3)
    assert cell.reported_mean == 35.60 and cell.params_reported == 62_000
    assert cell.params_reproduced == 61_658


@pytest.fixture
def folds():
    tree = tiny_protocol(seeds=2)
    tree["tasks"] = {"qm7": {"data": {"source": "synthetic"}, "models": ["MLP-random-CM"]}}
    protocol = parse_protocol(tree)
    return protocol, [r for r in planned_runs(protocol) if r.task == "qm7"]


def test_statistics_of_folds_are_over_folds(tmp_path, folds):
    """Means over seeds are 4, 5, 6, 7, 8; that their seeds differ, or fold 0 has one seed only,
    changes nothing."""
    protocol, runs = folds
    for run in runs:
        fold = int(run.setting[-1])
        if (fold, run.seed) != (0, 1):
            put(tmp_path, run, value=4.0 + fold + (0.5 if fold else 0.0) * (-1) ** run.seed)
    cell = build_table(protocol, "qm7", tmp_path).iloc[0]
    assert (cell.reproduced_mean, cell.n_seeds, cell.n_planned, cell.only) == (6.0, 9, 10, "")
    assert cell.reproduced_std == pytest.approx(math.sqrt(2.5), abs=1e-4)
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert cell.ci95_half_width == pytest.approx(half, abs=1e-4)
    detail = by_setting(protocol, "qm7", tmp_path)
    assert list(detail["rmse_kcal_per_mol"][:2]) == ["4.00", "5.00 ± 0.71"]
    assert list(detail["runs"]) == [1, 2, 2, 2, 2]


def test_some_folds_are_no_measurement_of_the_claim(tmp_path, folds):
    protocol, runs = folds
    for run in runs:
        if run.setting in ("fold1", "fold3"):
            put(tmp_path, run, value=5.0 + int(run.setting[-1]))
    table = build_table(protocol, "qm7", tmp_path)
    assert table.iloc[0].only == "fold1, fold3" and math.isnan(table.iloc[0].ci95_half_width)
    assert wide(table).loc[0, "5-fold reproduced"] == "7.00 ± 1.41 (4/10; fold1, fold3)"
    assert list(full(table).loc[0, ["95 % interval", "difference"]]) == ["", ""]


def test_where_runs_come_from(tmp_path, protocol):
    first, second, third = runs_of(protocol, "UGSCNN", "N")
    put(tmp_path, first)
    put(tmp_path, second, precision="bfloat16", resumed_from=[{"git_commit": 40 * "b"}])
    put(tmp_path, third, git_commit=40 * "c")
    put(tmp_path, runs_of(protocol, "S2CNN", "N")[0], gpu="gamma", status="diverged")
    found = origins(protocol, "spherical_mnist", tmp_path)
    assert found.set_index(["model", "processor", "precision"])[["runs", "commits"]].T.to_dict(
        "list"
    ) == {
        ("UGSCNN", "abacus", "float32"): [2, "aaaaaaa, ccccccc"],
        ("UGSCNN", "abacus", "bfloat16"): [1, "bbbbbbb, aaaaaaa"],
        ("S2CNN", "gamma", "float32"): [1, "aaaaaaa"],
    }
    write_tables(protocol, tmp_path)
    for suffix in ("md", "html"):
        text = (tmp_path / f"tables/tiny/table1.{suffix}").read_text()
        assert "abacus" in text and "aaaaaaa, ccccccc" in text
        assert "Columns of UGSCNN pool runs of different processors or precisions." in text


def test_what_a_table_says_of_its_intervals_and_its_runs(tmp_path, protocol, folds):
    of_molecules, runs = folds
    for run in runs:
        put(tmp_path, run)
    table = build_table(of_molecules, "qm7", tmp_path)
    said = meaning("qm7", table, origins(of_molecules, "qm7", tmp_path))
    assert "folds share training samples" in said and "pool" not in said
    put(tmp_path, runs[0], precision="bfloat16")
    assert meaning("qm7", table, origins(of_molecules, "qm7", tmp_path)).endswith(
        "Columns of MLP-random-CM pool runs of different processors or precisions."
    )
    table = build_table(protocol, "spherical_mnist", tmp_path)
    said = meaning("spherical_mnist", table, origins(protocol, "spherical_mnist", tmp_path))
    assert "from three seeds on." in said and "folds" not in said and "pool" not in said


def test_missing_diverged_and_foreign_runs_are_not_averaged(tmp_path, protocol):
    first, second, third = runs_of(protocol, "UGSCNN", "R")
    put(tmp_path, first, value=95.0)
    put(tmp_path, second, status="diverged")
    put(tmp_path, third, value=10.0, config_hash="of an older configuration")
    table = build_table(protocol, "spherical_mnist", tmp_path)
    cell = row(table, "UGSCNN", "R/R")
    assert cell.reproduced_mean == 95.0 and math.isnan(cell.reproduced_std)
    assert (cell.n_seeds, cell.n_planned, cell.diverged) == (1, 3, 1)
    write_tables(protocol, tmp_path)
    text = (tmp_path / "tables/tiny/table1.md").read_text()
    assert "95.00 (1/3, 1 diverged)" in text and "no result (0/3)" in text


def test_the_interval_of_a_percentage_ends_at_100(tmp_path, protocol):
    for run, value in zip(runs_of(protocol, "UGSCNN", "N"), (98.0, 99.0, 100.0), strict=True):
        put(tmp_path, run, value=value)
    found = full(build_table(protocol, "spherical_mnist", tmp_path)).set_index(["model", "setting"])
    assert found.loc[("UGSCNN", "N/N"), "95 % interval"] == "96.52 to 100.00"  # 99 +- 2.484


def test_two_seeds_have_no_interval(tmp_path, protocol):
    for run, value in zip(runs_of(protocol, "UGSCNN", "N")[:2], (98.0, 100.0), strict=True):
        put(tmp_path, run, value=value)
    table = build_table(protocol, "spherical_mnist", tmp_path)
    cell = row(table, "UGSCNN", "N/N")
    assert cell.reproduced_std == pytest.approx(math.sqrt(2), abs=1e-4)
    assert math.isnan(cell.ci95_half_width)
    found = full(table).set_index(["model", "setting"])
    assert found.loc[("UGSCNN", "N/N"), "95 % interval"] == ""


@pytest.mark.parametrize(
    "page", sorted((ROOT / "results/recorded").glob("*/*.md")), ids=lambda p: f"{p.parent.name}"
)
def test_recorded_pages_carry_their_protocols_notice(page):
    file = ROOT / "config" / f"{page.parent.name}.yaml"
    notice = load_protocol(file).notice if file.exists() else ""
    found = re.findall(r"^\*\*(.+)\*\*$", page.read_text(), re.MULTILINE)
    assert found == ([notice] if notice else [])


def test_recording_adds_to_what_is_recorded(tmp_path, protocol):
    first, second, third = runs_of(protocol, "UGSCNN", "N")
    with pytest.raises(RunError, match="no finished run of protocol tiny"):
        record(protocol, tmp_path)
    for run, value in ((first, 98.0), (second, 99.0)):
        put(tmp_path, run, value=value)
        assert len(record(protocol, tmp_path)) == 1
        shutil.rmtree(tmp_path / "runs")
    table = tmp_path / "recorded/tiny/table1.csv"
    cell = row(pd.read_csv(table), "UGSCNN", "N/N")
    assert (cell.reproduced_mean, cell.n_seeds, cell.n_planned) == (98.5, 2, 3)
    before = table.read_text()
    assert record(protocol, tmp_path) == [] and table.read_text() == before
    put(tmp_path, first, value=10.0)
    put(tmp_path, third, git_dirty=True)
    with pytest.raises(RunError, match="seed2 does not come from a clean commit"):
        record(protocol, tmp_path)
    assert table.read_text() == before
    assert not list((tmp_path / "recorded").glob("*/runs/*/*/*/seed2"))


def test_a_recorded_run_is_replaced_whole(tmp_path, protocol):
    """A run made again that diverged has neither predictions nor weights: those of the run before
    must not stand beside its provenance. Weights of other networks are kept of one run alone."""
    kept, other = runs_of(protocol, "UGSCNN", "N")[:2]
    for run in (kept, other):
        put(tmp_path, run, value=98.0)
        (tmp_path / "runs" / run.key / "weights.safetensors").write_bytes(b"first")
    folders = record(protocol, tmp_path)
    assert [(folder / "weights.safetensors").exists() for folder in folders] == [True, False]
    put(tmp_path, kept, status="diverged")
    (tmp_path / "runs" / kept.key / "predictions.npz").unlink()
    (tmp_path / "runs" / kept.key / "weights.safetensors").unlink()
    record(protocol, tmp_path)
    names = {"metrics.json", "provenance.json", "config.yaml", "history.csv"}
    assert {path.name for path in folders[0].iterdir()} == names
    assert (folders[1] / "predictions.npz").exists()


def test_files(tmp_path, protocol):
    for run in planned_runs(protocol):
        put(tmp_path, run, value=96.4)
    paths = write_tables(protocol, tmp_path)
    assert [p.name for p in paths] == [f"table1.{s}" for s in ("csv", "md", "tex", "html")]
    frame = pd.read_csv(tmp_path / "tables/tiny/table1.csv")
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 3 * len(models_of("spherical_mnist")) + 1  # Omni
    assert (frame.reproduced_mean == 96.4).all()
    for path in paths[1:]:
        text = path.read_text()
        assert "LOUD NOTICE" in text and "96.40" in text and "UGSCNN" in text
        assert f"snakemake --cores 8 all --configfile {tmp_path}/tables/tiny/protocol.yaml" in text
    assert load_protocol(tmp_path / "tables/tiny/protocol.yaml") == protocol
    tex = (tmp_path / "tables/tiny/table1.tex").read_text()
    shown = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
    assert r"\begin{tabular}" in shown and "±" not in shown
    assert "LOUD NOTICE, 5 \\% of A\\_B" in shown and "standard deviation over seeds" in shown


def test_the_command_is_of_the_protocol_in_config_or_of_a_file_with_it(tmp_path):
    protocol = load_protocol(ROOT / "config/ablation.yaml")
    fewer = protocol.model_copy(update={"seeds": 7})
    own = tmp_path / "tables/ablation/protocol.yaml"
    for one, options in (
        (fewer, f"--configfile {own}"),
        (protocol, "--config protocol=ablation"),
    ):
        (page,) = (path for path in write_tables(one, tmp_path) if path.suffix == ".md")
        assert f"Made by `snakemake --cores 8 all {options}`." in page.read_text()
        assert own.exists() == (one is fewer)


def test_the_command_of_a_run(protocol):
    run = planned_runs(load_protocol(ROOT / "config/ablation.yaml"))[0]
    target = f"results/runs/{run.key}/metrics.json"
    assert run_command(run) == f"snakemake --cores 2 --config protocol=ablation -- {target}"
    longer = run.train.model_copy(update={"epochs": 99})
    for other in (run.model_copy(update={"train": longer}), planned_runs(protocol)[0]):
        *words, last = shlex.split(run_command(other))
        assert words == ["python", "-m", "bench", "train", "--run"]
        assert RunConfig.model_validate_json(last) == other


def test_reported_numbers_are_all_read():
    reported = read_reported()
    assert len(reported) >= 37  # those of Shen et al.
    assert set(reported.table) == {1, 2, 3}


@pytest.fixture
def both() -> ProtocolConfig:
    """A protocol on the published edition, beside one of config/ on the corrected edition."""
    tree = tiny_protocol(seeds=2, beside="workstation")
    tree["tasks"]["spherical_mnist"] |= {"models": ["UGSCNN", "S2CNN"]}
    tree["tasks"]["spherical_mnist"]["data"] |= {"edition": "published"}
    return parse_protocol(tree)


def test_editions_have_columns_of_their_own(tmp_path, both):
    corrected = load_protocol(ROOT / "config/workstation.yaml")
    for one, values in ((both, (99.0, 99.5)), (corrected, (97.0, 98.0, 99.0))):
        for run, value in zip(runs_of(one, "UGSCNN", "N"), values, strict=True):
            put(tmp_path, run, value=value)
    table = build_table(both, "spherical_mnist", tmp_path)
    mine = table[(table.model == "UGSCNN") & (table.setting == "N/N")].set_index("edition")
    assert list(mine.index) == ["published", "corrected"]
    assert list(mine.reproduced_mean) == [99.25, 98.0] and list(mine.n_planned) == [2, 3]
    assert list(mine.protocol) == ["tiny", "workstation"]
    cells = wide(table).set_index("model")
    assert list(cells.columns[2:5]) == ["N/N reported", "N/N published", "N/N corrected"]
    assert cells.loc["UGSCNN", "N/N published"] == "99.25 ± 0.35 (2/2)"
    assert cells.loc["UGSCNN", "N/N corrected"] == "98.00 ± 1.00 (3/3)"
    assert set(cells.index) == {"UGSCNN", "S2CNN"}
    found = origins(both, "spherical_mnist", tmp_path)
    assert list(found["edition"]) == ["published", "corrected"] and list(found["runs"]) == [2, 3]
    assert "published and corrected" in meaning("spherical_mnist", table, found)


def test_molecules_have_no_edition(tmp_path, folds):
    protocol, _ = folds
    table = build_table(protocol, "qm7", tmp_path)
    assert list(table.edition) == [""] and "edition" not in full(table)
    assert list(wide(table).columns)[-1] == "5-fold reproduced"


def test_caveats_of_runs_are_footnotes(tmp_path, protocol):
    first, second, third = runs_of(protocol, "UGSCNN", "N")
    put(tmp_path, first, caveats=["Resumed, nobody knows where."])
    put(tmp_path, second, caveats=["Resumed, nobody knows where."])
    put(tmp_path, third)
    table = build_table(protocol, "spherical_mnist", tmp_path)
    table = table[table.model == "UGSCNN"]
    assert notes(table) == ["Resumed, nobody knows where."]
    cells = wide(table).set_index("model").loc["UGSCNN"]
    assert cells["N/N corrected"] == "98.00 ± 0.00 (3/3) [1]" and "[" not in cells["R/R corrected"]


def test_a_dagger_marks_what_nobody_has_read_in_the_original(tmp_path, protocol):
    table = build_table(protocol, "spherical_mnist", tmp_path)
    marked = table.set_index(["model", "setting"]).read_in_original
    cells = wide(table).set_index("model")
    for model, setting in (("UGSCNN", "N/R"), ("PDO-eS2CNN-small", "N/R")):
        has = cells.loc[model, f"{setting} reported"].endswith("†")
        assert has == (marked[model, setting] == "no")
    assert marked["UGSCNN", "N/R"] == "no" and marked["PDO-eS2CNN-small", "N/R"] == "yes"
    assert "† Reported value not read" in meaning("spherical_mnist", table, pd.DataFrame())
    ours = table[table.model.str.startswith("PDO")]
    assert "†" not in meaning("spherical_mnist", ours, pd.DataFrame())


def test_a_setting_of_one_model_is_a_column_that_says_so(tmp_path):
    tree = tiny_protocol()
    tree["tasks"]["spherical_mnist"]["models"] = ["UGSCNN", "SphereNet"]
    protocol = parse_protocol(tree)
    (run,) = runs_of(protocol, "SphereNet", "Omni")
    put(tmp_path, run, value=94.0)
    table = build_table(protocol, "spherical_mnist", tmp_path)
    assert len(table) == 3 + 4 and row(table, "SphereNet", "Omni").reproduced_mean == 94.0
    cells = wide(table).set_index("model")
    assert list(cells.columns)[-2:] == ["Omni reported", "Omni corrected"]
    assert set(cells.loc["UGSCNN", ["Omni reported", "Omni corrected"]]) == {"SphereNet only"}
    assert cells.loc["SphereNet", "Omni corrected"] == "94.00 (1/1)"


def test_claims_that_need_a_word_have_a_footnote(tmp_path, protocol):
    table = build_table(protocol, "spherical_mnist", tmp_path)
    cells = wide(table).set_index("model").loc["SphereNet"]
    assert cells["N/N reported"] == "94.40† [1]" and cells["Omni reported"] == "94.40† [2]"
    assert cells["N/R reported"] == "not reported"
    (run,) = runs_of(protocol, "SphereNet", "N")[:1]
    put(tmp_path, run, value=97.5)
    found = full(build_table(protocol, "spherical_mnist", tmp_path)).set_index(["model", "setting"])
    assert found.loc[("SphereNet", "N/N"), "difference"] == "+3.10 [1]"
    printed, own = notes(table)
    assert "own projection (column Omni)" in printed and "120 x 120 degrees" in own
    for path in write_tables(protocol, tmp_path)[1:]:
        text = path.read_text()
        assert (
            re.search(r"94\.40\S+ \[1\]", text)
            and f"[1] {printed}" in text
            and f"[2] {own}" in text
        )
    others = table[table.model != "SphereNet"]
    assert notes(others) == [] and "[1]" not in wide(others).to_string()


def test_unreadable_metrics(tmp_path, protocol):
    run = planned_runs(protocol)[0]
    put(tmp_path, run)
    (tmp_path / "runs" / run.key / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json cannot be read"):
        build_table(protocol, "spherical_mnist", tmp_path)
