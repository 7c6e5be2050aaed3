"""QM7 and 2D-3D-S cannot be had."""

import pytest

from tests.workflow.conftest import OFFLINE, jobs, with_qm7

pytestmark = pytest.mark.slow

PROTOCOL = """
protocol: offline
seeds: 1
tracking: false
tasks:
  spherical_mnist:
    data: {source: synthetic, level: 3, n_train: 60, n_test: 20}
    train: {epochs: 1, batch_size: 16}
    models: [UGSCNN]
    settings: [N]
  qm7: {}
  stanford_2d3ds: {}
"""


def test_other_tables_are_made_and_the_exit_status_is_the_protocols_choice(project):
    (project.folder / "offline.yaml").write_text(PROTOCOL)
    command = ("snakemake", "--cores", "2", "all", "--configfile", "offline.yaml")
    done = project.run(*command, **OFFLINE)
    assert done.returncode == 0, done.stdout
    assert jobs(done.stdout)["train"] == 1 and "fetch_qm7" not in jobs(done.stdout)
    tables = project.folder / "results/tables/offline"
    assert "UGSCNN" in (tables / "table1.md").read_text()
    missing = (tables / "table3.md").read_text()
    assert "DATA NOT AVAILABLE" in missing and "PDO_DATA_MIRROR is not set" in missing
    assert "quantum-machine.org/data/qm7.mat: no connection" in missing
    missing = (tables / "table2.md").read_text()
    assert "DATA NOT AVAILABLE" in missing and "terms of use" in missing and "44.60" in missing

    own = tables / "protocol.yaml"  # what the tables say they are made by
    assert f"--configfile {own.relative_to(project.folder)}`" in missing
    again = project.run(*command[:-1], str(own), "--dry-run", **OFFLINE)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout

    strict = project.run(*command, "--config", "require_data=true", **OFFLINE)
    assert strict.returncode != 0 and "data not available" in strict.stdout
    assert jobs(strict.stdout).get("train", 0) == 0
    assert (tables / "table1.md").exists() and (tables / "table3.md").exists()
    assert not (project.folder / "results/mlflow.db").exists()  # tracking: false

    planned = project.run(*command, "--dry-run", **with_qm7(project.folder))
    assert planned.returncode == 0 and "tables" in jobs(planned.stdout)  # Table 3 is out of date
