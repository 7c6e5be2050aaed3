"""Runs and tables of another configuration are told from those of the present one."""

import json

import pytest

from bench.__main__ import main
from bench.config import load_protocol, parse_protocol, planned_runs, shipped
from bench.errors import RunError
from bench.outdated import is_made_of, is_outdated, made_of
from bench.run_folder import read_metrics
from bench.tables import tables_folder
from tests.bench.test_tables import put
from tests.conftest import tiny_protocol, tiny_run
from tests.workflow.conftest import ROOT


@pytest.fixture
def protocol():
    return parse_protocol(tiny_protocol())


def test_a_run_is_outdated_if_its_metrics_are_of_another_configuration(tmp_path):
    run, other = tiny_run(), tiny_run(epochs=3)
    assert run.key == other.key and run.hash != other.hash
    assert not is_outdated(tmp_path, run)  # it has not ended
    for status in ("finished", "diverged"):
        put(tmp_path, run, status=status)
        assert not is_outdated(tmp_path, run) and is_outdated(tmp_path, other)
    assert read_metrics(tmp_path, run)["status"] == "diverged"
    assert read_metrics(tmp_path, other) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"config_hash"', "\xff"])
def test_metrics_that_cannot_be_read_are_named(tmp_path, content):
    run = tiny_run()
    path = tmp_path / "runs" / run.key / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    for ask in (is_outdated, read_metrics):
        with pytest.raises(RunError, match=r"metrics\.json .*: delete it") as raised:
            ask(tmp_path, run)
        assert "\n" not in str(raised.value)
    path.write_text("{}")  # of no configuration
    assert is_outdated(tmp_path, run) and read_metrics(tmp_path, run) is None


def test_tables_know_what_they_were_made_of(tmp_path, protocol, capsys):
    """A change of anything that they show is seen, whatever the dates of files say."""
    run = planned_runs(protocol)[0]
    put(tmp_path, run)
    folder = tables_folder(tmp_path, protocol)
    given = protocol.model_dump_json()
    assert not is_made_of(folder, made_of(protocol, tmp_path, None))
    assert main(["tables", "--protocol", given, "--results", str(tmp_path)]) == 0
    assert is_made_of(folder, made_of(protocol, tmp_path, None))
    assert is_made_of(folder, made_of(protocol, tmp_path, {}))
    assert not is_made_of(folder, made_of(protocol, tmp_path, {"spherical_mnist": ["gone"]}))
    for changes in ({"notice": "Note."}, {"seeds": 2}, {"base_seed": 1}):
        other = parse_protocol(tiny_protocol(**changes))
        assert not is_made_of(folder, made_of(other, tmp_path, None))
    for facts in ({"value": 97.0}, {"status": "diverged"}, {"caveats": ["Note."]}):
        put(tmp_path, run, **facts)
        assert not is_made_of(folder, made_of(protocol, tmp_path, None)), facts
    put(tmp_path, run)
    assert is_made_of(folder, made_of(protocol, tmp_path, None))
    put(tmp_path, planned_runs(protocol)[1])
    assert not is_made_of(folder, made_of(protocol, tmp_path, None))


def test_tables_that_were_not_finished_are_made_of_nothing(tmp_path, protocol, monkeypatch):
    run, folder = planned_runs(protocol)[0], tables_folder(tmp_path, protocol)
    put(tmp_path, run)
    command = ["tables", "--protocol", protocol.model_dump_json(), "--results", str(tmp_path)]
    assert main(command) == 0 and is_made_of(folder, made_of(protocol, tmp_path, None))

    def full(page):
        raise OSError("no space left")

    monkeypatch.setattr("bench.typesetting.markdown", full)
    assert main(command) == 1
    assert not is_made_of(folder, made_of(protocol, tmp_path, None))


def test_runs_of_the_protocol_beside_count(tmp_path):
    paper = load_protocol(ROOT / "config/paper.yaml")
    before = made_of(paper, tmp_path, None)
    run = next(r for r in planned_runs(shipped("corrected")) if r.task == "spherical_mnist")
    put(tmp_path, run)
    after = made_of(paper, tmp_path, None)
    assert after != before and list(after["runs"]) == [run.key]
    assert json.loads(json.dumps(after)) == after
