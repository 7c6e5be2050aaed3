"""What is there decides what is planned: runs and tables of another configuration are made again,
whoever made them and wherever they come from."""

import json
import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import tiny_protocol
from tests.workflow.conftest import ROOT, Project, jobs

pytestmark = pytest.mark.slow

LITTLE = ("protocol=little",)
RUNS = "results/runs/little/spherical_mnist/UGSCNN/N"
TABLES = "results/tables/little"


def write_protocol(folder: Path, name: str, **changes) -> dict:
    """Write config/<name>.yaml: two runs of a small network on a few synthetic digits."""
    tree = tiny_protocol(protocol=name, seeds=2) | changes
    digits = tree["tasks"]["spherical_mnist"]
    digits |= {"models": ["UGSCNN"], "settings": ["N"]}
    digits["data"] |= {"n_train": 60, "n_test": 20}
    digits["train"]["epochs"] = 1
    (folder / f"config/{name}.yaml").write_text(yaml.safe_dump(tree))
    return tree


def two_epochs(folder: Path) -> None:
    """Change the configuration of both runs."""
    path = folder / "config/little.yaml"
    path.write_text(path.read_text().replace("epochs: 1", "epochs: 2"))


def dates(folder: Path) -> dict[str, int]:
    """Return the modification time of every file of the results."""
    return {str(p): p.stat().st_mtime_ns for p in (folder / "results").rglob("*") if p.is_file()}


def planned(project: Project, *targets: str, config: tuple[str, ...] = LITTLE) -> dict[str, int]:
    """Return the jobs of a dry run, by rule; it changes nothing."""
    before = dates(project.folder)
    done = project.snakemake("-n", *targets, config=config)
    assert done.returncode == 0, done.stdout
    assert jobs(done.stdout) or "Nothing to be done" in done.stdout, done.stdout
    assert dates(project.folder) == before
    return jobs(done.stdout)


@pytest.fixture(scope="module")
def by_hand(project):
    """Tables of two protocols, made by hand before anything was trained."""
    for name in ("little", "other"):
        write_protocol(project.folder, name)
        done = project.run("python", "-m", "bench", "tables", "--protocol", name)
        assert done.returncode == 0, done.stdout
    project.commit()
    return project


@pytest.fixture(scope="module")
def finished(by_hand):
    """The protocol `little`, run whole."""
    done = by_hand.snakemake("all", config=LITTLE)
    assert done.returncode == 0, done.stdout
    return by_hand, done.stdout


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the project and its results, without Snakemake's records."""
    project, _ = finished
    copied = Project(tmp_path / "copy")
    for folder in ("results", "data", "config"):
        shutil.copytree(project.folder / folder, copied.folder / folder, dirs_exist_ok=True)
    return copied


@pytest.mark.parametrize("target", ["all", f"{TABLES}/table1.md"])
def test_tables_made_by_hand_do_not_stop_training(by_hand, target):
    plan = planned(by_hand, target)
    assert (plan["train"], plan["tables"]) == (2, 1)


def test_protocols_do_not_overwrite_each_other(finished):
    project, output = finished
    table = pd.read_csv(project.folder / TABLES / "table1.csv")
    assert (table[table.setting == "N/N"].n_seeds == 2).all()
    other = project.folder / "results/tables/other"
    assert set(pd.read_csv(other / "table1.csv").protocol) == {"other"}
    assert "protocol other" in (other / "table1.md").read_text()
    for name in ("table1.md", "report.html"):
        assert f"{project.folder}/{TABLES}/{name}\n" in output
    assert (project.folder / TABLES / "figures/spherical_mnist/training.png").exists()
    assert {path.name for path in (project.folder / "results").iterdir()} == {
        *("logs", "recorded", "reference", "runs", "tables")
    }
    assert planned(project, "all") == {}


@pytest.mark.parametrize("target", ["all", f"{TABLES}/table1.md"])
def test_a_deleted_run_is_trained_again(copy, target):
    shutil.rmtree(copy.folder / RUNS / "seed1")
    plan = planned(copy, target)
    assert (plan["train"], plan["tables"]) == (1, 1)


def test_tables_of_another_configuration_are_made_again(finished):
    """Under the same name, from the same runs, and newer than they are."""
    project, _ = finished
    path = project.folder / "config/little.yaml"
    tree = yaml.safe_load(path.read_text()) | {"seeds": 1}
    command = ("python", "-m", "bench", "tables", "--protocol", json.dumps(tree))
    assert project.run(*command).returncode == 0
    plan = planned(project, "all")
    assert plan["tables"] == 1 and "train" not in plan
    assert project.snakemake("all", config=LITTLE).returncode == 0
    table = pd.read_csv(project.folder / TABLES / "table1.csv")
    assert (table[table.setting == "N/N"].n_planned == 2).all()
    assert planned(project, "all") == {}


def test_a_run_that_was_put_in_place_is_tabulated(copy):
    """Copied here, as old as it was elsewhere."""
    assert planned(copy, "all") == {}
    path = copy.folder / RUNS / "seed0/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["test"]["N/N"]["accuracy_percent"] = 50.0
    dated = path.stat()
    path.write_text(json.dumps(metrics))
    os.utime(path, ns=(dated.st_atime_ns, dated.st_mtime_ns))
    plan = planned(copy, "all")
    assert plan["tables"] == 1 and "train" not in plan


def test_a_changed_protocol_is_seen_with_records(finished):
    project, _ = finished
    config = (*LITTLE, "tasks={spherical_mnist: {train: {epochs: 2}}}")
    plan = planned(project, "all", config=config)
    assert (plan["train"], plan["tables"]) == (2, 1)
    assert planned(project, f"{RUNS}/seed1/metrics.json", config=config)["train"] == 1
    # Other targets train nothing.
    (card,) = project.folder.glob("data/spherical_mnist/*/icosphere3-equator/card.json")
    assert planned(project, str(card.relative_to(project.folder)), config=config) == {}


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_results_on_another_disk_without_records(copy, tmp_path, executor):
    """A changed protocol trains each run once, also where each job reads the Snakefile again."""
    (copy.folder / "results").rename(tmp_path / "disk")
    (copy.folder / "results").symlink_to(tmp_path / "disk")
    assert planned(copy, "all") == {}
    two_epochs(copy.folder)
    plan = planned(copy, "all")
    assert (plan["train"], plan["tables"], plan["report"]) == (2, 1, 1)

    counting = tmp_path / "bin/python"  # every command of a rule goes through it
    counting.parent.mkdir()
    counting.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\nexec {sys.executable} "$@"\n')
    counting.chmod(0o755)
    environment = {
        "PATH": f"{counting.parent}:{copy.environment['PATH']}",
        "PYTHONPATH": str(ROOT / "tests/workflow/plugins"),
    }
    done = copy.snakemake(
        "all", "--executor", executor, "--jobs", "2", config=LITTLE, **environment
    )
    assert done.returncode == 0, done.stdout
    said = (tmp_path / "said").read_text().splitlines()
    assert sum(line.startswith("-m bench train") for line in said) == 2
    for seed in (0, 1):
        metrics = json.loads((copy.folder / RUNS / f"seed{seed}/metrics.json").read_text())
        assert metrics["epochs"] == 2
    table = pd.read_csv(copy.folder / TABLES / "table1.csv")
    assert (table[table.setting == "N/N"].n_seeds == 2).all()
    assert planned(copy, "all") == {}
    assert (copy.folder / "results").is_symlink()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_metrics_that_cannot_be_read_are_one_line(copy, content):
    (copy.folder / RUNS / "seed0/metrics.json").write_text(content)
    done = copy.snakemake("-n", "all", config=LITTLE)
    assert done.returncode != 0 and "Traceback" not in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "metrics.json" in line)
    assert line.startswith(f"{RUNS}/seed0/metrics.json ") and "delete it and run again" in line
    (copy.folder / RUNS / "seed0/metrics.json").unlink()
    assert planned(copy, "all")["train"] == 1
