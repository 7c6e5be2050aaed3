"""The audit finds every contradiction, and none in what is recorded."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

from bench import audit as audits
from bench.__main__ import main
from bench.audit import audit
from bench.config import load_protocol, parse_protocol, planned_runs
from bench.documents import document_faults
from bench.engine import train
from bench.errors import RunError
from bench.record import record, recorded_folder, write_recorded_tables
from bench.run_checks import checked_metrics
from bench.source_tree import NoCommit
from bench.tables import build_table
from tests.conftest import tiny_protocol

ROOT = Path(__file__).parents[2]
COMMIT = 40 * "a"


def protocol():
    tree = tiny_protocol(seeds=2)
    tree["tasks"]["spherical_mnist"] |= {"models": ["UGSCNN"], "settings": ["N"]}
    return parse_protocol(tree)


@pytest.fixture(scope="session")
def trained(tiny_data, tmp_path_factory) -> Path:
    """Results of a small protocol, run and recorded as if from a clean commit."""
    results = tmp_path_factory.mktemp("results")
    for run in planned_runs(protocol()):
        train(run, results, tiny_data, torch.device("cpu"), track=False)
        path = results / "runs" / run.key / "provenance.json"
        facts = json.loads(path.read_text()) | {"git_commit": COMMIT, "git_dirty": False}
        path.write_text(json.dumps(facts))
    record(protocol(), results)
    return results


@pytest.fixture
def results(trained, tmp_path, monkeypatch) -> Path:
    """A copy that a test may tamper with."""
    monkeypatch.setattr(audits, "ancestors", lambda: {COMMIT})
    shutil.copytree(trained, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def folder(results) -> Path:
    return recorded_folder(results, planned_runs(protocol())[0].key)


def faults(results: Path) -> list[str]:
    return audit(results, root=results).faults


def edit(path: Path, *keys: str, to: object) -> None:
    """Change one entry of a JSON file."""
    tree = json.loads(path.read_text())
    branch = tree
    for key in keys[:-1]:
        branch = branch[key]
    branch[keys[-1]] = to
    path.write_text(json.dumps(tree))


def test_sound_results_have_no_fault(results):
    found = audit(results, root=results)
    assert found.faults == [] and found.notes == []
    assert (found.runs, found.tables) == (4, 4)  # two seeds, finished and recorded


SCORE = ("test", "N/N", "accuracy_percent")


@pytest.mark.parametrize("value", [99.99, 9999.0, -1.0])
def test_an_altered_score_is_found(results, folder, value):
    """And nothing else is said: no table is made of such a run."""
    edit(folder / "metrics.json", *SCORE, to=value)
    (only,) = faults(results)
    assert only.startswith(f"{folder}/metrics.json: N/N accuracy_percent is {value}, its predicti")


@pytest.mark.parametrize(
    ("file", "keys", "value", "reason"),
    [
        ("metrics.json", SCORE, None, "N/N.accuracy_percent: input should be a valid number"),
        ("metrics.json", SCORE, "98", "N/N.accuracy_percent: input should be a valid number"),
        ("metrics.json", SCORE, math.nan, "N/N.accuracy_percent: input should be a finite number"),
        ("metrics.json", ("test", "N/N"), 98.0, "N/N: input should be a valid dictionary"),
        ("metrics.json", ("validation",), None, "validation: input should be a valid dictionary"),
        ("provenance.json", ("data",), {}, "data.card: field required"),
        ("provenance.json", ("resumed_from",), "x", "resumed_from: input should be a valid list"),
    ],
)
def test_an_entry_of_another_kind_is_one_line(results, folder, file, keys, value, reason):
    edit(folder / file, *keys, to=value)
    (only,) = faults(results)
    assert only.startswith(f"{folder / file}: ") and reason in only and "\n" not in only


@pytest.mark.parametrize(
    ("file", "keys", "value", "reason"),
    [
        ("metrics.json", ("parameters",), 1, "1 parameters, the network has"),
        ("metrics.json", ("parameters",), -5, "-5 parameters"),
        ("metrics.json", ("best_epoch",), 7, "best_epoch is 7, by history.csv it is"),
        ("metrics.json", ("epochs",), 9, "9 epochs, 2 are configured"),
        ("metrics.json", ("status",), "fine", "its status is 'fine'"),
        ("metrics.json", ("validation", "accuracy_percent"), 100.5, "history.csv has"),
        ("metrics.json", ("validation",), {}, "validation accuracy_percent is None"),
        ("metrics.json", ("test",), {}, "it has scores of nothing"),
        ("metrics.json", ("status",), "diverged", "it has scores, and the run diverged"),
        ("metrics.json", ("config_hash",), "0", "config_hash is not that of config.yaml"),
        ("metrics.json", ("run",), "tiny/other", "it is of tiny/other"),
        ("provenance.json", ("config_sha256",), "0", "config_sha256 is not that of config.yaml"),
        ("provenance.json", ("config", "seed"), 3, "its configuration is not that of config.yaml"),
        ("provenance.json", ("data", "card"), {}, "the card says source = None"),
        ("provenance.json", ("data", "card", "edition"), "published", "edition = 'published'"),
        ("provenance.json", ("data", "card", "seed"), 5, "the card says seed = 5"),
        ("provenance.json", ("data", "card", "source"), "QM7", "the card says source = 'QM7'"),
        ("provenance.json", ("data", "card", "sha256", "test_N.npy"), "0", "is not what"),
        ("provenance.json", ("data", "card", "sha256"), {}, "no SHA-256 of any file"),
        ("provenance.json", ("data", "card", "approximation"), "x", "and no caveat says so"),
        ("provenance.json", ("data", "counts", "N/N"), 39, "40 samples of N/N, the set has 39"),
        ("provenance.json", ("git_dirty",), True, "does not come from a clean commit"),
        ("provenance.json", ("git_commit",), 40 * "b", "is not in the history"),
    ],
)
def test_an_altered_entry_is_found(results, folder, file, keys, value, reason):
    edit(folder / file, *keys, to=value)
    assert any(str(folder.parent) in fault and reason in fault for fault in faults(results))


def test_files_of_another_run_are_found(results, folder):
    other = folder.with_name("seed1")
    for name in ("metrics.json", "provenance.json", "config.yaml"):
        kept = (folder / name).read_bytes()
        shutil.copy(other / name, folder / name)
        assert any(fault.startswith(str(folder)) for fault in faults(results)), name
        (folder / name).write_bytes(kept)


def test_junk_predictions_and_other_targets_are_found(results, folder):
    with np.load(folder / "predictions.npz") as file:
        arrays = {name: file[name] for name in file.files}
    (folder / "predictions.npz").write_bytes(b"junk")
    assert any("predictions.npz: it cannot be read" in fault for fault in faults(results))
    # The same score of other digits.
    swapped = {name: np.roll(array, 1) for name, array in arrays.items()}
    np.savez(folder / "predictions.npz", **swapped)
    assert any("targets of N/N are not those of" in fault for fault in faults(results))


def without_scores(metrics: dict) -> dict:
    return metrics | {"status": "diverged", "test": {}, "validation": {}}


def test_a_run_cannot_be_said_to_have_diverged(results, folder):
    """To leave a bad seed out of the mean."""
    path = folder / "metrics.json"
    path.write_text(json.dumps(without_scores(json.loads(path.read_text()))))
    assert f"{folder}/predictions.npz: it is there, and the run diverged" in faults(results)
    for name in ("predictions.npz", "weights.safetensors"):
        (folder / name).unlink()
    assert f"{folder}/history.csv: its epochs are not 1 to 1" in faults(results)


def test_a_run_that_diverged_is_sound(results, tiny_data):
    """One as the engine leaves it: no scores, no row of the epoch in which it diverged."""
    tree = tiny_protocol(protocol="wild")
    tree["tasks"]["spherical_mnist"] |= {"models": ["UGSCNN"], "settings": ["N"]}
    tree["tasks"]["spherical_mnist"]["train"]["learning_rate"] = 1e30
    (run,) = planned_runs(parse_protocol(tree))
    metrics = train(run, results, tiny_data, torch.device("cpu"), track=False)
    assert metrics["status"] == "diverged"
    assert audit(results, ["wild"], root=results).faults == []


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("validation_accuracy_percent", "9999.0", "it has validation_accuracy_percent 9999.0"),
        ("validation_accuracy_percent", "-1.0", "it has validation_accuracy_percent -1.0"),
        ("train_loss", "nan", "it has train_loss nan"),
        ("epoch", "3", "its epochs are not 1 to 2"),
        ("seconds", "much", "it cannot be read"),
    ],
)
def test_an_impossible_history_is_found(results, folder, column, value, reason):
    history = pd.read_csv(folder / "history.csv", dtype=str)
    history.loc[0, column] = value
    history.to_csv(folder / "history.csv", index=False)
    (only,) = faults(results)
    assert only.startswith(f"{folder}/history.csv: {reason}")


def test_a_run_in_the_folder_of_another_is_found(results, folder):
    """A whole run of seed 1 as seed 0, and one of this protocol below another one's name."""
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("seed1"), folder)
    key = planned_runs(protocol())[1].key
    assert f"{folder}/config.yaml: it is of {key}" in faults(results)
    other = results / "recorded/other"
    shutil.copytree(results / "recorded/tiny", other)
    place = other / "runs" / Path(key).relative_to("tiny")
    assert f"{place}/config.yaml: it is of {key}" in faults(results)


def test_a_recorded_run_without_metrics_is_found(results, folder):
    (folder / "metrics.json").unlink()
    assert f"{folder}/metrics.json: it is missing" in faults(results)


def test_weights_that_do_not_fit_are_found(results, folder):
    path = folder / "weights.safetensors"
    weights = load_file(path)
    name = next(name for name, value in weights.items() if value.dtype.kind == "f")
    save_file({k: v for k, v in weights.items() if k != name}, path)
    assert faults(results) == [f"{path}: {name} do not fit the network"]
    save_file(weights | {name: weights[name] * np.float32(np.nan)}, path)
    assert faults(results) == [f"{path}: {name} is not finite"]
    path.write_bytes(b"junk")
    assert any(f"{path}: it cannot be read" in fault for fault in faults(results))
    path.unlink()
    assert faults(results) == [f"{path}: it is missing"]


@pytest.mark.parametrize("suffix", ["csv", "md", "tex", "html"])
def test_an_edited_table_is_found(results, suffix):
    (path,) = (results / "recorded/tiny").glob(f"table1.{suffix}")
    path.write_text(path.read_text().replace("99.", "98.", 1))
    (only,) = faults(results)
    assert re.fullmatch(rf"{re.escape(str(path))}: line \d+ is not what its runs give", only)


def test_tables_are_those_of_recorded_runs_and_no_others(results):
    folder = results / "recorded/tiny"
    (folder / "table9.md").write_text("N/N 99.99\n")
    (folder / "table1.tex").unlink()
    command = "python -m bench tables --recorded --protocol results/recorded/tiny/protocol.yaml"
    assert faults(results) == [
        f"{folder}/table1.tex: it is missing, `{command}` makes it",
        f"{folder}/table9.md: no recorded run makes it",
    ]


def test_a_run_that_is_no_longer_planned_is_a_note(results, folder):
    own = results / "recorded/tiny/protocol.yaml"
    write_recorded_tables(
        parse_protocol(protocol().model_dump() | {"seeds": 1}), results, own.parent
    )
    found = audit(results, root=results)
    assert found.faults == [] and len(found.notes) == 1
    assert found.notes[0].startswith(f"{folder.with_name('seed1')} is no run of the protocol")


def test_a_finished_run_may_come_from_a_dirty_commit(results):
    for run in planned_runs(protocol()):
        edit(results / "runs" / run.key / "provenance.json", "git_dirty", to=True)
    found = audit(results, root=results)
    assert found.faults == [] and len(found.notes) == 1
    assert found.notes[0].startswith("2 finished runs do not come from a clean commit")


def test_a_missing_history_of_commits_is_a_note(results, folder, monkeypatch):
    def refuse():
        raise NoCommit("no git here")

    monkeypatch.setattr(audits, "ancestors", refuse)
    found = audit(results, root=results)
    assert found.faults == []
    assert found.notes == ["commits of recorded runs were not checked: no git here"]
    edit(folder / "provenance.json", "git_dirty", to=True)  # that can be told without
    assert "does not come from a clean commit" in faults(results)[0]


def test_a_copy_without_history_is_a_note(results, monkeypatch):
    monkeypatch.setattr(audits, "ancestors", lambda: {40 * "c"})
    found = audit(results, root=results)
    assert found.faults == [] and "the repository has none of them" in found.notes[0]


def test_tables_and_record_refuse_what_the_audit_would(results):
    run = planned_runs(protocol())[0]
    folder = results / "runs" / run.key
    edit(folder / "metrics.json", *SCORE, to=99.99)
    for action in (
        lambda: build_table(protocol(), "spherical_mnist", results),
        lambda: record(protocol(), results),
        lambda: checked_metrics(folder, run),
    ):
        with pytest.raises(RunError, match=r"metrics\.json: N/N accuracy_percent is 99\.99"):
            action()


def test_command(results, folder, capsys, monkeypatch):
    monkeypatch.setattr(audits, "document_faults", lambda root: (0, []))
    assert main(["audit", "--results", str(results)]) == 0
    assert capsys.readouterr().out == "4 runs, 4 tables and 0 quotes checked: no fault\n"
    edit(folder / "metrics.json", *SCORE, to=99.99)
    assert main(["audit", "--results", str(results), "tiny"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert "is 99.99, its predictions give" in out[0] and out[-1].endswith("faults")
    assert main(["audit", "--results", str(results), "tini"]) == 1
    assert "unknown protocol in" in (error := capsys.readouterr().err) and "'tiny'" in error


def test_everything_recorded_in_this_repository():
    found = audit(ROOT / "results", root=ROOT)
    assert found.faults == []
    recorded = list((ROOT / "results/recorded").rglob("metrics.json"))
    assert found.runs >= len(recorded) > 130 and found.tables >= 40 and found.quotes >= 20


PAGE = """# Page
<!-- from results/recorded/x/table1.md -->
| a | 98.31 |
<!-- /from -->
[98.31 ± 0.10](results/recorded/x/table1.md) and [97.5](results/recorded/x/metrics.json)
and [a table](results/recorded/x/table1.md), [98.31 of | a |](results/recorded/x/table1.md),
![picture](results/recorded/x/table1.md), [N/N 97.5 %](results/recorded/x/metrics.json).
"""


@pytest.fixture
def pages(tmp_path) -> Path:
    (tmp_path / "results/recorded/x").mkdir(parents=True)
    (tmp_path / "results/recorded/x/table1.md").write_text(
        "| a | 98.31 |\n98.31 ± 0.10\n98.31 of | a |\n"
    )
    (tmp_path / "results/recorded/x/metrics.json").write_text('{"test": {"N/N": 97.4999}}')
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path


def test_sound_quotes(pages):
    assert document_faults(pages) == (5, [])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("| a | 98.31 |", "| a | 98.41 |", "a line copied from"),
        ("[98.31 ±", "[98.32 ±", "98.32 ± 0.10 does not stand in"),
        ("[98.31 ± 0.10]", "[8.31]", "8.31 does not stand in"),
        ("[97.5]", "[97.6]", "97.6 does not stand in"),
        ("[a table](results/recorded/x/table1", "[a](results/recorded/x/none", "does not exist"),
        ("from results/recorded/x/table1.md", "from results/gone.md", "does not exist"),
        ("[98.31 of", "[98.31 for", "98.31 for | a | does not stand in"),
        ("[N/N 97.5 %]", "[N/N 97.4 %]", "N/N 97.4 % does not stand in"),
        ("![picture](results/recorded/x/table1.md)", "![x](results/recorded/x.png)", "not exist"),
        ("<!-- /from -->", "", "a copied block has no beginning or no end"),
    ],
)
def test_wrong_quotes_are_found(pages, old, new, reason):
    assert old in PAGE
    (pages / "README.md").write_text(PAGE.replace(old, new))
    _, found = document_faults(pages)
    assert len(found) == 1 and found[0].startswith("README.md: ") and reason in found[0]


def test_protocols_of_ones_own_are_recorded_with_their_file(results):
    own = results / "recorded/tiny/protocol.yaml"
    assert load_protocol(own) == protocol()
    command = "python -m bench tables --recorded --protocol results/recorded/tiny/protocol.yaml"
    assert f"Made by `{command}`." in (results / "recorded/tiny/table1.md").read_text()
    assert yaml.safe_load(own.read_text())["protocol"] == "tiny"
