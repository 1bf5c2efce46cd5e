"""Result files: read back with parsers that do not know how they were written."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation import results_files
from eepolicy.analysis.evaluation.columns import COLUMNS, Column
from eepolicy.analysis.evaluation.results_files import (
    latex,
    markdown,
    short_columns,
    short_table,
    write_results,
)
from eepolicy.analysis.tables import LATEX_ESCAPES

#: names of policies that break careless writers
POLICIES = (
    "full",
    "spark:FEEE~@14",
    "mine.py:Own('a|b', 3)",
    "=1+1",
    "+x@3",
    "a^b_c $5 & {d} #1 100% \\alpha",
    "two\nlines `ticks`",
    "entropy<0.5@[12,16]",
)
BY_NAME = {column.name: column for column in COLUMNS}


def rows(policies=POLICIES, missing=()):
    """Rows of a table with plain values; without the missing columns."""
    found = []
    for i, policy in enumerate(policies):
        row = {"policy": policy, "prompts": 100, "seeds": 1, "verdict": f"saves {i} %; WER worse"}
        row |= {"status": "worse" if i else "baseline", "verdict_p": 0.01 if i else None}
        row |= {"verdict_needed": None, "wer_upper": 0.03}
        for column in COLUMNS:
            known = column.name not in missing
            for end, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6)):
                row[column.name + end] = value if known else None
                row[f"{column.name}_diff{end}"] = value if known and not column.relative else None
            tested = known and i > 0 and not column.relative
            row[f"{column.name}_p"] = 0.2 if tested else None
            row[f"{column.name}_needed"] = 1.4e34 if tested else None
        found.append(row)
    return found


def tables_of(text):
    """Tables of a Markdown text as lists of rows of cells, by a parser of GitHub's tables."""
    tables, cells, inside = [], [], False
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        inside = inside or token.type == "th_open"
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            tables[-1].append(cells)
        elif token.type == "table_close":
            inside = False
        elif token.type == "inline" and inside:
            cells.append("".join(child.content for child in token.children))
    return tables


def test_markdown_has_the_verdicts_first_and_at_most_six_columns():
    tables = tables_of(markdown(rows()))
    upper = tables.pop(2)
    known = [row for row in rows() if row.get("wer_upper") is not None]
    assert upper[0] == ["policy", "WER over full depth is at most, points"]
    assert [row[1] for row in upper[1:]] == [f"{100 * row['wer_upper']:+.1f}" for row in known]
    verdicts = tables[0]
    assert verdicts[0] == ["policy", "verdict"]
    assert [row[0] for row in verdicts[1:]] == [p.replace("\n", " ") for p in POLICIES]
    assert verdicts[2][1] == "saves 1 %; WER worse"
    for table in tables:
        assert len({len(row) for row in table}) == 1
        assert len(table[0]) <= 6
        assert len(table) in (len(POLICIES), len(POLICIES) + 1)
    headings = [heading for table in tables[2:] for heading in table[0][1:]]
    assert headings[: len(COLUMNS)] == [column.heading for column in COLUMNS]


def test_markdown_has_no_absurd_number():
    text = markdown(rows())
    assert "p = 0.200 (more than 10,000)" in text
    assert max(len(digits) for digits in re.findall(r"\d+", text)) < 6


def unescape(code):
    """Undo LaTeX's escapes in a cell, or fail on a character that LaTeX would not print."""
    plain, i = "", 0
    names = sorted(LATEX_ESCAPES.items(), key=lambda pair: -len(pair[1]))
    while i < len(code):
        for character, escape in names:
            if code.startswith(escape, i):
                plain, i = plain + character, i + len(escape)
                break
        else:
            assert code[i] not in "\\~^$&%#_{}", code
            plain, i = plain + code[i], i + 1
    return plain


def parsed_latex(text):
    """Cells of a `tabular` of booktabs, with the checks that LaTeX makes."""
    first, *lines = text.strip().splitlines()
    (alignment,) = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", first).groups()
    assert lines.pop() == r"\end{tabular}"
    rules = [line for line in lines if line.endswith("rule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    table = []
    for line in lines:
        if line in rules:
            continue
        assert line.endswith(r" \\")
        cells = re.split(r"(?<!\\) & ", line[: -len(r" \\")])
        assert len(cells) == len(alignment)
        table.append(cells)
    return table


def test_latex_holds_the_table():
    heading, *lines = parsed_latex(latex(rows()))
    assert [unescape(h) for h in heading] == ["policy", *(c.heading for c in COLUMNS), "verdict"]
    names = [re.fullmatch(r"\\texttt\{(.*)\}", line[0]).group(1) for line in lines[::2]]
    assert [unescape(name) for name in names] == [p.replace("\n", " ") for p in POLICIES]
    assert lines[2][1] == "50.0"
    assert lines[3][1] == r"\tiny [40.0, 60.0]"
    assert lines[2][-1] == "worse"


def test_columns_of_the_latex_table_can_be_chosen(tmp_path):
    only = ("verdict", "speedup", "wer")
    heading, *lines = parsed_latex(latex(rows(), only=only))
    assert heading == ["policy", "verdict", "speed-up", r"WER, \%"]
    assert lines[2][1:] == ["worse", "0.50", "50.0"]
    write_results(rows(), tmp_path, latex_columns=only)
    assert (tmp_path / "results.tex").read_text() == latex(rows(), only=only)
    with pytest.raises(EepolicyError, match="there is no column speed; known are accuracy_speech"):
        write_results(rows(), tmp_path / "new", latex_columns=["speed"])
    assert not (tmp_path / "new").exists()


def test_latex_compiles_where_there_is_latex(tmp_path):
    """Elsewhere, `parsed_latex` makes the checks."""
    body = latex(rows(), only=("wer", "verdict"))
    assert len(parsed_latex(body)) == 1 + 2 * len(POLICIES)
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}"
    (tmp_path / "t.tex").write_text(document + r"\end{document}")
    if engine := shutil.which("pdflatex") or shutil.which("tectonic"):
        options = ["-halt-on-error"] if engine.endswith("pdflatex") else []
        subprocess.run([engine, *options, "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_no_cell_of_the_csv_file_is_a_formula(tmp_path):
    write_results(rows(), tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    for line, policy in zip(lines, POLICIES, strict=True):
        assert line["policy"].removeprefix("'") == policy
        assert not any(value.startswith(("=", "+", "@")) for value in line.values())
    assert lines[1]["verdict"] == "saves 1 %; WER worse"
    frame = pd.read_csv(tmp_path / "results.csv")
    assert frame.wer_diff.tolist() == [0.5] * len(POLICIES)


def test_parquet_has_the_table_of_the_csv_file(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="Parquet takes pyarrow: pip install pyarrow")
    table = rows(("full", "static@14"), missing=("wer",))
    write_results(table, tmp_path)
    written = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(written, pd.read_csv(tmp_path / "results.csv"), rtol=1e-15)
    assert written.wer.isna().all()
    monkeypatch.setattr(results_files, "find_spec", lambda name: None)
    (tmp_path / "without").mkdir()
    write_results(table, tmp_path / "without")
    assert (tmp_path / "without" / "results.csv").exists()
    assert not (tmp_path / "without" / "results.parquet").exists()


def test_every_file_has_the_verdict(tmp_path):
    write_results(rows(), tmp_path)
    for name in ("results.json", "results.csv", "results.md"):
        assert "saves 1 %; WER worse" in (tmp_path / name).read_text()


def test_the_short_table_answers_the_question():
    heading, baseline, *others = short_table(rows())
    assert heading[1:] == ["accuracy in speech, %", "WER, %", "speech depth", "speed-up", "verdict"]
    assert baseline[1:] == ["50.0 [40.0, 60.0]", "50.0 [40.0, 60.0]", "0.50", "0.50", "baseline"]
    assert others[0][-2:] == ["0.50 [0.40, 0.60]", "worse"]


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        ((), ["accuracy_speech", "wer", "speech_depth", "speedup"]),
        (("speedup",), ["accuracy_speech", "wer", "speech_depth", "layer_calls"]),
        (
            ("accuracy_speech", "wer", "speech_depth"),
            ["accuracy_text", "text_depth", "speedup"],
        ),
    ],
)
def test_the_short_table_leaves_out_what_was_not_measured(missing, names):
    assert [column.name for column in short_columns(rows(missing=missing))] == names


def test_optional_columns_are_hidden():
    assert "judge" not in markdown(rows(missing=("judge_score", "ttft", "tpot")))


def test_a_custom_column_appears_in_the_short_table():
    own = Column("own", "own", lambda r: 1.0, short="own")
    values = [
        row | {"own": 1.0, "own_low": 1.0, "own_high": 1.0, "own_diff": None} for row in rows()
    ]
    assert short_table(values, (own,))[1] == ["full", "1.00", "baseline"]
