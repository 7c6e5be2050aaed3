"""CONTRIBUTING.md is followed to the letter in a copy of the project."""

import json
import re

import pytest

from tests.workflow.conftest import ROOT, Project

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
STEP = re.compile(
    r"^(?:Create `(?P<new>[^`]+)`"
    r"|In `(?P<old>[^`]+)`, (?P<how>below|in place of) `(?P<line>[^`]+)`):"
    r"[^`]*?^```\w+\n(?P<block>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def recipe(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def follow(project: Project, title: str) -> None:
    """Create the files and change the lines of a recipe, then run its commands."""
    text = recipe(title)
    steps = list(STEP.finditer(text))
    assert len(steps) == len(re.findall(r"^(?:Create|In) `", text, re.MULTILINE)) > 4
    for step in steps:
        path = project.folder / (step["new"] or step["old"])
        if step["new"]:
            assert not path.exists(), path
            path.write_text(step["block"])
            continue
        line, content = step["line"] + "\n", path.read_text()
        assert content.count(f"\n{line}") + content.startswith(line) == 1, f"{path}: {line}"
        kept = line if step["how"] == "below" else ""
        path.write_text(content.replace(line, kept + step["block"]))
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for command in commands.splitlines():
        done = project.run("bash", "-c", command)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        assert "no tests ran" not in done.stdout


@pytest.mark.slow
def test_recipe_of_a_model(project):
    follow(project, "Adding a model")
    run = project.folder / "results/runs/test/spherical_mnist/PlanarCNN/N/seed0"
    assert json.loads((run / "metrics.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_recipe_of_a_data_set(project):
    follow(project, "Adding a data set")
    table = (project.folder / "results/tables/harmonics/table4.md").read_text()
    assert "PDO-eS2CNN" in table and "1/1" in table
    run = project.folder / "results/runs/harmonics/harmonics/PDO-eS2CNN/all/seed0"
    found = json.loads((run / "metrics.json").read_text())
    assert found["test"]["all"]["accuracy_percent"] > 50  # chance: 25
    for command, said in (
        ("plan --protocol harmonics", "bench/plan.py does not know the sizes"),
        ("equivariance PDO-eS2CNN --task harmonics", "bench/rotated_signals.py has no signals"),
    ):
        done = project.run("bash", "-c", f"python -m bench {command}")
        assert done.returncode and done.stdout.startswith(f"error: {said}"), done.stdout
