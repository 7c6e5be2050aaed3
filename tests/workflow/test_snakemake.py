"""Real Snakemake runs of the test protocol in a clean copy of the project."""

import base64
import json
import os
import signal
import subprocess
import time

import pandas as pd
import pytest
import yaml

from bench.config import load_protocol, planned_runs
from bench.registry import models_of
from bench.tables import COLUMNS
from tests.conftest import tiny_protocol
from tests.workflow.conftest import OFFLINE, ROOT, Project, jobs, with_qm7

pytestmark = pytest.mark.slow

RUNS = len(planned_runs(load_protocol(ROOT / "config/test.yaml")))
MORE_EPOCHS = ("protocol=test", "tasks={spherical_mnist: {model: {UGSCNN: {train: {epochs: 2}}}}}")


@pytest.fixture(scope="module")
def finished(project):
    """The test protocol, run whole."""
    done = project.snakemake("all")
    assert done.returncode == 0, done.stdout
    return project, done.stdout


def test_tables_are_made_and_named_at_the_end(finished):
    project, output = finished
    for suffix in ("csv", "md", "tex", "html"):
        path = project.folder / f"results/tables/test/table1.{suffix}"
        assert path.stat().st_size > 300
        assert str(path) in output
    for name in ("table2s", "table3"):
        others = pd.read_csv(project.folder / f"results/tables/test/{name}.csv")
        assert (others.n_seeds == 2).all() and others.reproduced_mean.notna().all()
    table = pd.read_csv(project.folder / "results/tables/test/table1.csv")
    assert list(table.columns) == COLUMNS
    assert set(table.protocol) == {"test"} and (table.n_seeds == 2).all()
    assert set(table.setting) == {"N/N", "N/R", "R/R", "Omni"}
    claims = pd.read_csv(project.folder / "results/reference/paper_tables.csv")
    small = claims[claims.model == "PDO-eS2CNN-small"].set_index("split")["mean"]
    mine = table[table.model == "PDO-eS2CNN-small"].set_index("setting")["reported_mean"]
    assert mine.to_dict() == small.to_dict()
    assert "not MNIST" in (project.folder / "results/tables/test/table1.md").read_text()
    figures = project.folder / "results/tables/test/figures/synthetic_rooms"
    assert (figures / "synthetic_rooms_panoramas.png").stat().st_size > 10_000


def test_table_agrees_with_the_runs(finished):
    project, _ = finished
    table = pd.read_csv(project.folder / "results/tables/test/table1.csv")
    row = table[(table.model == "UGSCNN") & (table.setting == "N/R")].iloc[0]
    values = [
        json.loads(path.read_text())["test"]["N/R"]["accuracy_percent"]
        for path in project.folder.glob("results/runs/test/*/UGSCNN/N/seed*/metrics.json")
    ]
    sample = pd.Series(values)
    assert row.reproduced_mean == pytest.approx(sample.mean(), abs=1e-3)
    assert row.reproduced_std == pytest.approx(sample.std(ddof=1), abs=1e-3)


def test_runs_come_from_the_clean_commit(finished):
    project, _ = finished
    for path in project.folder.glob("results/runs/**/provenance.json"):
        facts = json.loads(path.read_text())
        assert facts["git_dirty"] is False and len(facts["git_commit"]) == 40


def test_mlflow_has_every_run(finished):
    project, _ = finished
    script = (
        "import mlflow; mlflow.set_tracking_uri('sqlite:///results/mlflow.db');"
        "r = mlflow.search_runs(search_all_experiments=True);"
        "k = r['tags.kind']; print('counts', (k == 'parent').sum(), (k == 'seed').sum(),"
        " (r[k == 'seed'].status == 'FINISHED').sum(), (k == 'table').sum())"
    )
    out = project.run("python", "-c", script, MLFLOW_DISABLE_TELEMETRY="true").stdout
    tasks = load_protocol(ROOT / "config/test.yaml").tasks
    parents = sum(len(models_of(task)) for task in tasks)
    assert f"counts {parents} {RUNS} {RUNS} {len(tasks)}" in out, out  # seeds; finished; tables


def test_snakemake_report_shows_tables_and_figures(finished, page_of):
    """Made and read without network: what its page needs comes with Snakemake."""
    project, _ = finished
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    path = project.folder / "results/snakemake.html"
    command = ("snakemake", "--report", "results/snakemake.html", "--config", "protocol=test")
    done = project.run(*command, **nowhere)
    assert done.returncode == 0 and "WARN" not in done.stdout.upper(), done.stdout
    page, messages = page_of(path.as_uri())
    page.get_by_text("These numbers mean nothing.").wait_for()  # the protocol's notice

    page.get_by_text("Tables", exact=True).click()
    row = page.get_by_role("row").filter(has=page.get_by_role("cell", name="1", exact=True))
    row.locator("[iconname=eye]").click()
    table = page.frame_locator("iframe").locator("table").first
    cells = table.evaluate("t => [...t.rows].map(r => [...r.cells].map(c => c.textContent))")
    shown = pd.DataFrame(cells[1:], columns=cells[0]).set_index("model")
    for row in pd.read_csv(project.folder / "results/tables/test/table1.csv").itertuples():
        number = f"{row.reproduced_mean:.2f} ± {row.reproduced_std:.2f} (2/2)"
        assert shown.loc[row.model, f"{row.setting} corrected"] == number

    page.get_by_text("Results", exact=True).click()
    page.get_by_text("Figures", exact=True).click()
    page.get_by_text("spherical_mnist", exact=True).click()
    page.get_by_role("row").filter(has_text="training").locator("[iconname=eye]").click()
    image = page.locator("img[src*='training.png']")
    image.wait_for()
    content = base64.b64decode(image.get_attribute("src").split("base64,")[1])
    file = project.folder / "results/tables/test/figures/spherical_mnist/training.png"
    assert content == file.read_bytes() and image.evaluate("i => i.naturalWidth") > 300
    # Its style sheet's advice to its authors, and a text that it logs.
    known = ("cdn.tailwindcss.com should not be used in production", '<div class="document">')
    assert [message for message in messages if not message.startswith(known)] == []


def test_second_run_does_nothing(finished):
    project, _ = finished
    assert "Nothing to be done" in project.snakemake("all").stdout


def test_editing_code_or_comments_retrains_nothing(finished):
    project, _ = finished
    for name in ("pdo/networks.py", "bench/engine.py", "workflow/rules/train.smk", "Snakefile"):
        path = project.folder / name
        path.write_text(path.read_text() + "\n# a remark\n")
    rule = project.folder / "workflow/rules/train.smk"
    rule.write_text(rule.read_text().replace("python -m bench train", "python  -m bench train"))
    assert "Nothing to be done" in project.snakemake("all", "-n").stdout
    project.restore()


def test_switching_tracking_retrains_nothing(finished):
    project, _ = finished
    planned = jobs(
        project.snakemake("all", "-n", config=("protocol=test", "tracking=false")).stdout
    )
    assert planned and "train" not in planned


def test_a_changed_config_reruns_its_runs_only(finished):
    project, _ = finished
    planned = jobs(project.snakemake("all", "-n", config=MORE_EPOCHS).stdout)
    assert planned["train"] == 4  # UGSCNN: two settings, two seeds
    assert "prepare_spherical_mnist" not in planned
    target = "results/runs/test/spherical_mnist/UGSCNN/N/seed1/metrics.json"
    before = {p: p.stat().st_mtime_ns for p in project.folder.glob("results/runs/**/metrics.json")}
    done = project.snakemake(target, config=MORE_EPOCHS)
    assert done.returncode == 0 and jobs(done.stdout)["train"] == 1, done.stdout
    changed = [
        str(p.relative_to(project.folder)) for p in before if p.stat().st_mtime_ns != before[p]
    ]
    assert changed == [target]
    assert json.loads((project.folder / target).read_text())["epochs"] == 2
    # and back: the table must not use a run of another configuration
    done = project.snakemake("all")
    assert done.returncode == 0 and jobs(done.stdout)["train"] == 1, done.stdout


def test_recording_needs_a_clean_commit(finished):
    """One run is made again while a file is edited; recording is all or nothing."""
    project, _ = finished
    run = "results/runs/test/spherical_mnist/UGSCNN/N/seed1/metrics.json"
    edited = project.folder / "pdo/networks.py"
    edited.write_text(edited.read_text() + "\n# a remark\n")
    assert project.snakemake("--force", run).returncode == 0
    done = project.run("python", "-m", "bench", "record", "--protocol", "test")
    assert done.returncode == 1
    assert "UGSCNN/N/seed1 does not come from a clean commit" in done.stdout.splitlines()[-1]
    assert not (project.folder / "results/recorded/test").exists()
    project.commit()
    assert project.snakemake("--force", run).returncode == 0
    assert project.snakemake("all").returncode == 0
    done = project.run("python", "-m", "bench", "record", "--protocol", "test")
    assert done.returncode == 0 and f"{RUNS} runs recorded" in done.stdout
    recorded = project.folder / "results/recorded/test"
    assert (recorded / "table1.csv").read_bytes() == (
        project.folder / "results/tables/test/table1.csv"
    ).read_bytes()
    assert len(list(recorded.glob("runs/*/*/*/*/provenance.json"))) == RUNS


def test_interrupted_and_started_again(tmp_path):
    """Ctrl-C stops in seconds; the next start goes on from the checkpoint, and ends as a run that
    was not stopped, bit for bit."""
    project = Project(tmp_path)
    tree = tiny_protocol()
    tree["tasks"]["spherical_mnist"] |= {"models": ["PDO-eS2CNN-large"], "settings": ["R"]}
    tree["tasks"]["spherical_mnist"]["train"]["epochs"] = 6
    tree["tasks"]["spherical_mnist"]["data"]["n_train"] = 400
    for name in ("stopped", "straight"):
        file = project.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree | {"protocol": name}))
    config, files = ("protocol=stopped",), ("--configfile", "stopped.yaml")
    process = subprocess.Popen(
        ["snakemake", "--cores", "2", *files, "--config", *config],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    folder = project.folder / "results/runs/stopped/spherical_mnist/PDO-eS2CNN-large/R/seed0"
    deadline = time.monotonic() + 240
    while not (folder / "history.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)  # until the trainer, too, has closed its output
    assert process.returncode != 0
    assert (folder / "checkpoint.pt").exists() and not (folder / "metrics.json").exists()
    stopped_at = len(pd.read_csv(folder / "history.csv"))
    again = project.snakemake(*files, config=config)
    assert again.returncode == 0, again.stdout
    log = project.folder / "results/logs/train/stopped/spherical_mnist/PDO-eS2CNN-large/R/seed0.log"
    assert "goes on at epoch" in log.read_text()
    assert stopped_at < 6 and len(pd.read_csv(folder / "history.csv")) == 6
    straight = project.snakemake("--configfile", "straight.yaml", config=("protocol=straight",))
    assert straight.returncode == 0, straight.stdout
    (other,) = project.folder.glob("results/runs/straight/*/*/*/seed0/weights.safetensors")
    assert (folder / "weights.safetensors").read_bytes() == other.read_bytes()


@pytest.mark.parametrize("protocol", ["default", "workstation", "paper"])
def test_other_protocols_plan_without_network_or_data(project, protocol):
    """Those runs whose data cannot be had are left out: 2D-3D-S, and QM7 where it is not there."""
    runs = planned_runs(load_protocol(ROOT / f"config/{protocol}.yaml"))
    left_out = {"stanford_2d3ds"}
    for environment in (with_qm7(project.folder), OFFLINE):
        done = project.snakemake("all", "-n", config=(f"protocol={protocol}",), **environment)
        assert done.returncode == 0, done.stdout
        assert jobs(done.stdout)["train"] == sum(run.task not in left_out for run in runs)
        assert jobs(done.stdout)["fetch_mnist"] == 1
        left_out.add("qm7")


def test_unknown_protocol(project):
    done = project.snakemake("all", config=("protocol=papper",))
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "unknown protocol 'papper': did you mean 'paper'? (valid: " in done.stdout


def test_plain_snakemake_is_the_default_protocol(project):
    done = project.run("snakemake", "--cores", "8", "all", "-n")
    assert "runs/default/spherical_mnist" in done.stdout


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("seedz=1", "unknown key in configuration 'seedz': did you mean 'seeds'?"),
        ("tasks={spherical_mnst: {}}", "did you mean 'spherical_mnist'?"),
        ("tasks={spherical_mnist: {models: [UGSCN]}}", "did you mean 'UGSCNN'?"),
        (
            "tasks={spherical_mnist: {data: {level: 12}}}",
            "data.level: input should be less than or equal to 7, got '12'",
        ),
    ],
)
def test_bad_configuration_stops_before_any_job(project, key, message):
    done = project.snakemake("all", config=("protocol=test", key))
    assert done.returncode != 0
    assert message in done.stdout and "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--protocol", "papper"), "unknown protocol 'papper': did you mean 'paper'?"),
        (("--model", "UGSCN", "--setting", "N"), "unknown model 'UGSCN': did you mean 'UGSCNN'?"),
        (("--task", "qm"), "unknown task 'qm'"),
        (("--model", "UGSCNN", "--setting", "Z"), "unknown setting 'Z'"),
        (("--protocol", "{"), "--protocol is no JSON: Expecting property name"),
    ],
)
def test_bad_command_line_is_one_line(project, arguments, message):
    done = project.run("python", "-m", "bench", "train", *arguments)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1 and message in done.stdout
