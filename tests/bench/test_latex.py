"""Tables as LaTeX: complete, escaped, and no wider than a page."""

import re
import shutil
import subprocess

import pytest

from bench.config import parse_protocol, planned_runs
from bench.errors import ConfigError
from bench.frames import notes
from bench.latex import latex
from bench.tables import build_table
from bench.typesetting import write_tables
from tests.bench.test_tables import put
from tests.conftest import tiny_protocol

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


@pytest.fixture
def protocol():
    return parse_protocol(tiny_protocol(seeds=2, notice="5 % of A_B"))


@pytest.fixture
def text(tmp_path, protocol) -> str:
    for run in planned_runs(protocol):
        put(tmp_path, run, value=98.0 + run.seed, caveats=["A remark of 3 % & more."])
    write_tables(protocol, tmp_path)
    return (tmp_path / "tables/tiny/table1.tex").read_text()


def rows_of(text: str) -> list[list[str]]:
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    lines = [line.removesuffix(r" \\") for line in body.strip().splitlines()]
    return [[cell.strip() for cell in line.split(" & ")] for line in lines]


def test_a_float_with_caption_and_label(text):
    for part in (r"\begin{table*}", r"\toprule", r"\label{tab:spherical-mnist-tiny}"):
        assert text.count(part) == 1
    caption = re.search(r"\\caption\{(.*)\}\n", text)[1]
    assert "5 \\% of A\\_B" in caption and "[1] A remark of 3 \\% \\& more." not in caption
    assert "A remark of 3 \\% \\& more." in caption
    assert "±" not in text and "†" not in text


def test_every_row_has_a_cell_for_every_column(text):
    columns = re.search(r"\\begin\{tabular\}\{l(r+)\}", text)[1]
    rows = rows_of(text)
    assert len(rows) == 8 and {len(row) for row in rows} == {1 + len(columns)}
    settings = re.findall(r"\\multicolumn\{(\d)\}\{c\}\{([^}]+)\}", text)
    assert settings == [("2", "N/N"), ("2", "N/R"), ("2", "R/R"), ("2", "Omni")]
    (small,) = (row for row in rows if row[0] == "PDO-eS2CNN-small")
    assert small[2] == r"99.44 $\pm$ 0.06"
    assert small[3].startswith(r"98.50 $\pm$ 0.71 [")


def test_missing_seeds_are_said(tmp_path, protocol):
    run = planned_runs(protocol)[0]
    put(tmp_path, run)
    table = build_table(protocol, "spherical_mnist", tmp_path)
    (row,) = (
        r for r in rows_of(latex(table, "t", "c", "l", [], notes(table))) if r[0] == run.model
    )
    assert "98.00 (1/2)" in row and row.count("--") >= 1


def test_a_choice_of_rows_and_columns(tmp_path, protocol):
    for run in planned_runs(protocol):
        put(tmp_path, run)
    chosen = {"models": ["S2CNN", "UGSCNN"], "settings": ["N/R"]}
    write_tables(protocol, tmp_path, out=tmp_path / "mine", **chosen)
    text = (tmp_path / "mine/table1.tex").read_text()
    assert [row[0] for row in rows_of(text)] == ["S2CNN", "UGSCNN"]
    assert re.findall(r"\\multicolumn\{\d\}\{c\}\{([^}]+)\}", text) == ["N/R"]
    with pytest.raises(ConfigError, match=r"unknown row 'S2CN': did you mean 'S2CNN'"):
        write_tables(protocol, tmp_path, out=tmp_path / "none", models=["S2CN"])
    with pytest.raises(ConfigError, match=r"unknown column 'N/X'"):
        write_tables(protocol, tmp_path, out=tmp_path / "none", settings=["N/X"])
    assert not (tmp_path / "none").exists()


def test_special_signs(tmp_path, protocol):
    table = build_table(protocol, "spherical_mnist", tmp_path)
    text = latex(table, r"a\b {c} ~d^e #$&_%", "c", "l", [], notes(table))
    assert r"a\textbackslash{}b \{c\} \textasciitilde{}d\textasciicircum{}e \#\$\&\_\%" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_it_compiles_and_fits_the_page(tmp_path, text):
    (tmp_path / "paper.tex").write_text(DOCUMENT % text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
