"""A run names the commit of its own code, or says why it cannot: small projects, each with the
comparing module in it, asked in a process of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASK = "import json; from bench.source_tree import git_state; print(json.dumps(git_state()))"
FILES = {
    ".gitignore": "/results/*\n!/results/reference/\n/data/\nsecret.py\n",
    "bench/__init__.py": "",
    "bench/source_tree.py": (ROOT / "bench/source_tree.py").read_text(),
    "bench/data.py": "LEVEL = 3\n",
    "pdo/__init__.py": "",
    "pdo/kernels.py": "STEP = 1\n",
    "config/test.yaml": "seeds: 1\n",
    "requirements.lock": "torch==1\n",
    "README.md": "A project.\n",
    "docs/tutorial.py": "print(1)\n",
    "tests/__init__.py": "",
    "results/reference/tables.csv": "1,2\n",
}


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    command = ["git", "-C", folder, *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def committed(folder: Path, files: dict[str, str]) -> Path:
    write(folder, files)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


@pytest.fixture
def project(tmp_path) -> Path:
    """A clean clone."""
    return committed(tmp_path / "project", FILES)


def state(folder: Path, before: str = "", **environment: str) -> dict:
    """Return what the code in a folder says of itself, after the statements `before`."""
    command = [sys.executable, "-c", before + "\n" + ASK]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def clean(folder: Path) -> dict:
    head = git(folder, "rev-parse", "HEAD")
    return {"git_commit": head, "git_dirty": False, "git_problem": None}


def dirty(folder: Path, problem: str) -> dict:
    """The expected state; `{}` in the problem stands for the commit."""
    head = git(folder, "rev-parse", "HEAD")
    return {"git_commit": head, "git_dirty": True, "git_problem": problem.format(head[:7])}


CHANGED = "the working tree differs from commit {} in pdo/kernels.py"


def test_a_clean_clone(project):
    assert state(project) == clean(project)


def test_a_changed_file_is_named_staged_or_not(project):
    (project / "pdo/kernels.py").write_text("STEP = 2\n")
    assert state(project) == dirty(project, CHANGED)
    git(project, "add", "--all")
    assert state(project) == dirty(project, CHANGED)


@pytest.mark.parametrize("bit", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_the_index_hides_is_one(project, bit):
    git(project, "update-index", bit, "pdo/kernels.py")
    (project / "pdo/kernels.py").write_text("STEP = 2\n")
    assert git(project, "status", "--porcelain") == ""
    assert state(project) == dirty(project, CHANGED)


def test_a_change_that_a_filter_takes_back_is_one(project):
    """Git's own comparison sees the filtered content."""
    git(project, "config", "filter.back.clean", "sed s/2/1/")
    (project / ".git/info/attributes").write_text("kernels.py filter=back\n")
    (project / "pdo/kernels.py").write_text("STEP = 2\n")
    assert git(project, "diff", "--stat") == ""
    assert state(project) == dirty(project, CHANGED)


def test_same_content_is_no_change(project):
    os.utime(project / "pdo/kernels.py")
    (project / "pdo/kernels.py").chmod(0o755)
    assert state(project) == clean(project)


@pytest.mark.parametrize("name", ["config/test.yaml", "requirements.lock", "bench/data.py"])
def test_a_missing_file_is_a_change(project, name):
    (project / name).unlink()
    assert state(project)["git_problem"].endswith(f" in {name}")


def test_many_changes_are_counted(project):
    for name in FILES:
        if name != "bench/source_tree.py":
            (project / name).unlink()
    expected = "the working tree differs from commit {} in .gitignore, bench/__init__.py, "
    expected += "bench/data.py (and 4 more)"
    assert state(project) == dirty(project, expected)


def test_files_that_decide_no_number_may_change(project, tmp_path):
    for name in ("README.md", "docs/tutorial.py", "tests/__init__.py"):
        (project / name).write_text("another text\n")
    (tmp_path / "disk/data").mkdir(parents=True)
    shutil.move(project / "results", tmp_path / "disk/results")
    for name in ("results", "data"):  # kept on another disk
        (project / name).symlink_to(tmp_path / "disk" / name)
    assert " results/reference/tables.csv" in git(project, "status", "--porcelain")
    assert state(project) == clean(project)


UNTRACKED = "commit {} does not have the modules "


@pytest.mark.parametrize(
    "name",
    [
        "torch.py",
        "numpy/__init__.py",
        "secret.py",  # git ignores it
        "numpy.abi3.so",
        "bench/data/__init__.py",
        "bench/tasks.py",
        "pdo/kernels/__init__.py",
        "pdo/kernels.pyc",
    ],
)
def test_a_module_that_the_commit_does_not_have_is_named(project, name):
    write(project, {name: ""})
    assert state(project) == dirty(project, UNTRACKED + name)


def test_a_linked_package_that_the_commit_does_not_have_is_named(project, tmp_path):
    write(tmp_path, {"other/__init__.py": ""})
    (project / "pdo/kernels").symlink_to(tmp_path / "other")
    assert state(project) == dirty(project, UNTRACKED + "pdo/kernels/__init__.py")


def test_files_that_nobody_can_import_may_lie_about(project):
    names = ("my-notes.py", "scratch/numpy.py", "pdo/__pycache__/kernels.pyc", "pdo/kernels.py~")
    write(project, dict.fromkeys(names, "1"))
    assert state(project) == clean(project)


@pytest.mark.parametrize("module", ["numpy", "colorsys"])
def test_a_library_from_elsewhere_is_named(project, tmp_path, module):
    """Of another folder, as PYTHONPATH names it; a folder of installed packages is none."""
    for folder in ("elsewhere", "lib/site-packages"):
        write(tmp_path, {f"{folder}/{module}.py": ""})
    here, there = tmp_path / "elsewhere", tmp_path / "lib/site-packages"
    problem = "modules come from neither the project nor an installed package: "
    problem += f"{module} ({here}/{module}.py)"
    assert state(project, f"import {module}", PYTHONPATH=str(here)) == dirty(project, problem)
    assert state(project, f"import {module}", PYTHONPATH=str(there)) == clean(project)


def test_a_package_of_ours_from_elsewhere_is_named(project, tmp_path):
    """Even if it is installed."""
    place = tmp_path / "site-packages"
    write(place, {"pdo/__init__.py": ""})
    before = f"import sys; sys.path.insert(0, {str(place)!r}); import pdo; del sys.path[0]"
    problem = "modules come from neither the project nor an installed package: "
    assert state(project, before) == dirty(project, f"{problem}pdo ({place}/pdo/__init__.py)")


def unknown(problem: str) -> dict:
    return {"git_commit": None, "git_dirty": None, "git_problem": problem}


def test_an_unpacked_archive_is_not_the_repository_around_it(tmp_path):
    project = tmp_path / "project"
    committed(tmp_path, {f"project/{name}": text for name, text in FILES.items()})
    problem = f"{project} is no git repository (an unpacked archive?)"
    assert state(project) == unknown(problem)
    (project / ".git").mkdir()  # git does not take it for a repository and looks further up
    problem = f"git takes {project} for a part of {tmp_path}, another repository"
    assert state(project) == unknown(problem)


def test_a_folder_of_another_owner(project, tmp_path, monkeypatch):
    """Git has a switch for its own tests that makes every owner another one."""
    script = f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {shutil.which("git")} "$@"\n'
    write(tmp_path, {"bin/git": script})
    (tmp_path / "bin/git").chmod(0o755)
    settings = {
        "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    found = state(project, **settings)
    remedy = f"git config --global --add safe.directory {project}"
    assert found == unknown(f"git refuses {project} (dubious ownership): run `{remedy}`")
    subprocess.run(remedy, shell=True, check=True, env=os.environ | settings)
    assert state(project, **settings) == clean(project)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GIT_DIR", ".git"),
        ("GIT_WORK_TREE", "."),
        ("GIT_INDEX_FILE", ".git/index"),
        ("GIT_OBJECT_DIRECTORY", "docs"),
    ],
)
def test_the_environment_does_not_lead_to_another_repository(project, tmp_path, variable, value):
    """Everything is well in the other one, or said to be."""
    other = shutil.copytree(project, tmp_path / "other")
    git(other, "update-index", "--assume-unchanged", "pdo/kernels.py")
    (project / "pdo/kernels.py").write_text("STEP = 2\n")
    assert state(project, **{variable: str((other / value).resolve())}) == dirty(project, CHANGED)


def test_a_replaced_commit_is_not_what_counts(project):
    """`git replace` shows another content under the hash of a commit."""
    first = git(project, "rev-parse", "HEAD")
    (project / "pdo/kernels.py").write_text("STEP = 2\n")
    git(project, "commit", "--all", "--quiet", "--message", "second")
    second = git(project, "rev-parse", "HEAD")
    git(project, "reset", "--quiet", "--soft", first)
    git(project, "replace", first, second)
    assert state(project) == dirty(project, CHANGED)


def test_without_git_or_a_commit(project, tmp_path):
    assert state(project, PATH="/nonexistent") == unknown("git is not installed")
    write(tmp_path / "new", FILES)
    git(tmp_path / "new", "init", "--quiet")
    problem = f"git finds no commit in {tmp_path / 'new'} (fatal: Needed a single revision)"
    assert state(tmp_path / "new") == unknown(problem)


def test_a_linked_worktree_is_a_repository(project, tmp_path):
    git(project, "worktree", "add", "--quiet", str(tmp_path / "second"))
    assert state(tmp_path / "second") == clean(project)
