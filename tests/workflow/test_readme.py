"""Every command in the README is executed, in a clean copy of the project."""

import json
import re
import shutil

import pytest
import yaml
from PIL import Image

from bench.documents import BLOCK, document_faults
from data_prep.synthetic_digits import synthetic_digits
from tests.workflow.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
] + re.findall(r"`((?:snakemake --cores 1|python -m bench) [^`]+)`", README)


def test_the_two_commands_come_first():
    assert COMMANDS[:2] == ["make all", "make test"]
    assert len(README.splitlines()) < 200


def test_tables_are_the_recorded_ones():
    """Whether their lines are the recorded ones `bench.documents` checks."""
    shown = BLOCK.findall(README)
    assert [path for path, _ in shown] == [
        "results/recorded/workstation/table1.md",
        "results/recorded/workstation/table2s.md",
        "results/recorded/workstation/table3.md",
    ]
    assert all(text.count("|") > 20 for _, text in shown)
    assert document_faults(ROOT)[1] == []
    assert "WORKSTATION PROTOCOL" in shown[0][1]  # not the paper's


def test_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    for path in pictures:
        assert (ROOT / path).is_file(), path


@pytest.mark.slow
def test_library_example_classifies_rotated_digits(project):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = project.run("python", "-W", "error", "-c", example)
    assert done.returncode == 0, done.stdout
    classes = json.loads(done.stdout.split("] [")[0] + "]")
    labels = synthetic_digits(n_train=1, n_test=5).test_labels
    assert sum(a == b for a, b in zip(classes, labels, strict=True)) >= 4


@pytest.mark.slow
def test_every_command_works(project):
    """As a newcomer, but with few models and the test protocol's data under the name `default` too,
    and with `make test` only collecting: this is a test of the commands, not of their hours."""
    config = project.folder / "config"
    small = yaml.safe_load((config / "test.yaml").read_text()) | {"seeds": 1}
    small["tasks"]["spherical_mnist"]["models"] = ["UGSCNN", "PDO-eS2CNN-small"]
    small["tasks"]["qm7"]["models"] = ["MLP-random-CM", "PDO-eS2CNN"]
    small["tasks"]["synthetic_rooms"]["models"] = ["UGSCNN", "PDO-eS2CNN"]
    for protocol in ("default", "test"):
        (config / f"{protocol}.yaml").write_text(yaml.safe_dump(small | {"protocol": protocol}))
    image = synthetic_digits(n_train=1, n_test=1).test_images[0]
    Image.fromarray(image).save(project.folder / "FILE.png")
    # Or `make` would install anew, in the environment of these tests.
    ready = project.folder / ".venv/.ready"
    for name in ("requirements.lock", "requirements-torch.txt"):
        newer = ready.exists() and ready.stat().st_mtime >= (ROOT / name).stat().st_mtime
        assert newer, f"the environment is not that of {name}: run `make env`"
    for command in COMMANDS:
        done = project.run("bash", "-c", command, PYTEST_ADDOPTS="--collect-only")
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        made = {"make all": "default", "snakemake --cores 8 all --config protocol=test": "test"}
        if command in made:
            for name in ("table1.html", "report.html"):
                assert f"results/tables/{made[command]}/{name}" in done.stdout
        if command == "make all":
            assert (project.folder / "results/runs/default").is_dir()
            again = project.run("make", "all")
            assert again.returncode == 0 and "Nothing to be done" in again.stdout
    again = project.snakemake("all", "-n", "--workflow-profile", "profiles/cpu")
    assert again.returncode == 0 and "Nothing to be done" in again.stdout
    assert shutil.which("snakemake", path=f"{project.folder}/.venv/bin")
