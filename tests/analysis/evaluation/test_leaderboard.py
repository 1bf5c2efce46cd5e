"""The leaderboard, from run folders made by hand."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from board_example import IDENTITY, ROWS, example
from page_example import SCRIPT

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.formats import RecordLine
from eepolicy.analysis.evaluation.leaderboard import (
    HEADINGS,
    Leaderboard,
    file_lines,
    page_document,
)
from eepolicy.analysis.evaluation.leaderboard_runs import read_runs, run_folders
from eepolicy.analysis.evaluation.leaderboard_time import (
    SECONDS_PER_REPLY,
    estimated_seconds,
    replies_left,
)
from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.analysis.evaluation.records import FILES, RunFolder
from eepolicy.heads.files import read_notes
from eepolicy.loading.pocket import pocket_folder

#: the best first: not worse by speed, the untimed one last; then worse
ORDER = ["static@14", "static@16", "full", "static@8", "static@4"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with one run, and a folder that is none."""
    folder = tmp_path_factory.mktemp("results")
    example(folder / "ours")
    (folder / "notes").mkdir()
    return folder


@pytest.fixture
def board(results):
    return Leaderboard(tuple(read_runs([results])))


def test_rows_that_are_not_worse_come_first_by_speed(board):
    lines = board.lines()
    assert [line[0] for line in lines] == ORDER
    assert [line[1] for line in lines] == ["not worse"] * 2 + ["baseline", "not worse", "worse"]
    # every reply has two words: full depth has no error and static@4 has two
    assert lines[-1][2] == "+100.0 [+100.0, +100.0]"
    assert [line[3].split()[0] for line in lines] == ["2.00", "1.25", "1.00", "not", "4.00"]
    assert {line[4] for line in lines} == {"20.00"}  # 120 layer calls for 6 tokens
    assert lines[0][5] == "0.50"  # half a second for a second of speech


def test_undecided_rows_come_before_worse_rows(tmp_path):
    rows = {"full": (0, 1.0), "static@4": (2, 0.2), "static@14": (1, 0.5)}  # 50 points: the margin
    board = Leaderboard(tuple(read_runs([example(tmp_path / "run", rows)])))
    assert [(line[0], line[1]) for line in board.lines()] == [
        ("full", "baseline"),
        ("static@14", "undecided"),
        ("static@4", "worse"),
    ]


def test_rows_of_two_folders_share_one_table(results, tmp_path):
    theirs = example(tmp_path / "theirs", {"full": (0, 2.0), "mine.py:Mine()": (0, 0.4)})
    board = Leaderboard(tuple(read_runs([results, theirs])))
    names = [line[0] for line in board.lines()]
    assert names[0] == "mine.py:Mine() in theirs"
    assert names.count("full in ours") == names.count("full in theirs") == 1
    assert len(names) == len(ROWS) + 2
    assert board.notes() == []
    text = board.markdown("board.html")
    assert "| `mine.py:Mine()` in `theirs` | not worse |" in text
    assert max(line.count(" | ") + 1 for line in text.splitlines()) <= len(HEADINGS) == 6
    document = page_document(board)
    assert document["columns"][0]["name"] == "folder"
    assert document["rows"][0]["values"]["folder"]["value"] == "theirs"
    assert document["rows"][0]["verdict"].startswith("theirs: ")
    json.dumps(document, allow_nan=False)


def test_differences_between_folders_are_noted(results, tmp_path):
    other = example(tmp_path / "other", first=1, heads="another")
    board = Leaderboard(tuple(read_runs([results, other])))
    assert board.notes()[0].startswith("The folders have different exit heads and questions")
    assert [line[3] for line in board.run_lines()] == ["24, set 1", "24, set 2"]
    assert board.notes()[0] in board.markdown("board.html")
    assert board.notes()[0] in board.page()


def test_a_run_is_described(board, tmp_path):
    [line] = board.run_lines()
    assert line == [
        "ours",
        "llama, 20 layers, 0123456789abcdef",
        IDENTITY["heads"],
        "24",
        "float32 on cpu, torch 2.13.0",
        "0.0 [0.0, 0.0]",
    ]
    assert "`ours`: Quality: replies were decoded in batches of 50" in board.markdown("x.html")
    model = read_notes(pocket_folder() / "heads.safetensors")["model"]
    folder = example(tmp_path / "run", {"full": (0, 1.0)}, questions=2, model=model)
    assert read_runs([folder])[0].model.startswith("pocket, 20 layers, ")
    # a folder of which less is known
    folder = RunFolder(tmp_path / "bare")
    folder.open({})
    for name in FILES.values():
        if (tmp_path / "run" / name).exists():
            shutil.copy(tmp_path / "run" / name, folder.path)
    assert Leaderboard(tuple(read_runs([folder.path]))).run_lines()[0][1:3] == ["unknown", "–"]


def test_an_unfinished_run_says_so(tmp_path):
    folder = RunFolder(example(tmp_path / "run", questions=4))
    lines = folder.lines(RecordLine)
    (folder.path / "records.jsonl").unlink()
    folder.append(lines[:-1])
    assert read_runs([folder.path])[0].number == "3 of 4"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "{", "run.json"),
        ("run.json", '{"identity": {"heads": 3}, "notes": {}}', "identity: heads: expected a"),
        ("run.json", '{"identity": {}, "notes": {"rows": "full"}}', "notes: rows: expected"),
        ("run.json", '{"identity": {}, "notes": {"margins": {"wer": 900}}}', "margin of wer"),
        ("run.json", '{"identity": {}, "notes": {"margins": {"x": 1}}}', "'margins.x' is unknown"),
        ("records.jsonl", '{"question": 1}\n', "records.jsonl, line 1"),
        ("records.jsonl", "", "contains no records"),
        ("timings.jsonl", '{"question": "q0"}\n{}\n', "timings.jsonl, line 1"),
    ],
)
def test_a_damaged_folder_gives_one_sentence(tmp_path, file, text, message):
    folder = example(tmp_path / "run", questions=2)
    (folder / file).write_text(text)
    with pytest.raises(EepolicyError, match=re.escape(message)) as error:
        read_runs([folder])[0].rows  # noqa: B018
    assert str(folder) in str(error.value) or "margin of wer" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(EepolicyError, match=r"there is no folder .*missing: give folders"):
        run_folders([tmp_path / "missing"])
    with pytest.raises(EepolicyError, match=r"nor a folder in it has the run\.json"):
        run_folders([tmp_path])
    folder = RunFolder(example(tmp_path / "run", {"static@4": (0, 1.0)}, questions=2))
    with pytest.raises(EepolicyError, match="no reply at full depth yet"):
        load_comparison(folder.path)


def test_folders_are_read_once_and_have_names(results, tmp_path):
    assert len(run_folders([results, results / "ours"])) == 1
    other = tmp_path / "other" / "ours"
    shutil.copytree(results / "ours", other)
    names = [run.name for run in read_runs([results, other])]
    assert names == [f"{results.name}/ours", "other/ours"]
    third = tmp_path / "third" / "other" / "ours"
    shutil.copytree(results / "ours", third)
    with pytest.raises(EepolicyError, match="two folders have the name other/ours"):
        read_runs([other, third])


def test_reading_runs_no_python_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    row = f"{file}:Mine()"
    folder = example(tmp_path / "run", {"full": (0, 1.0), row: (0, 0.5)}, questions=3)
    board = Leaderboard(tuple(read_runs([folder])))
    assert row in board.page()
    assert row in board.markdown("board.html")
    assert not (tmp_path / "ran").exists()


def test_text_of_a_folder_is_escaped_in_pages(tmp_path):
    row = f"a|b`c {SCRIPT}"
    heads = f"{SCRIPT}|x"
    folder = example(tmp_path / "run", {"full": (0, 1.0), row: (0, 0.5)}, questions=3, heads=heads)
    board = Leaderboard(tuple(read_runs([folder])))
    page = board.page()
    assert SCRIPT not in page
    assert len(re.findall(r"<script", page)) == 2  # the data, and the package's own
    assert "bokeh" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert row in [r["policy"] for r in data["rows"]]
    text = board.markdown("board.html")
    assert rf"| `` a\|b`c {SCRIPT} `` |" in text
    for line in text.splitlines():
        if SCRIPT in line:
            assert line.startswith("|")
            assert SCRIPT not in re.sub(r"(`+).*?\1", "", line)


def test_the_page_has_all_measured_columns(board):
    data = page_document(board)
    names = [column["name"] for column in data["columns"]]
    assert {"wer", "speedup", "calls_per_token", "real_time_factor", "ttft"} < set(names)
    assert "judge_score" not in names
    assert [row["policy"] for row in data["rows"]] == ORDER
    assert all(set(names) <= set(row["values"]) for row in data["rows"])


def test_every_file_of_a_folder_is_described(board):
    lines = file_lines()
    assert [name for name, _ in lines] == list(FILES.values())
    assert all(len(content) > 10 for _, content in lines)
    text = board.markdown("board.html")
    assert all(f"| `{name}` | {content} |" in text for name, content in lines)


def test_the_time_is_that_of_missing_replies(tmp_path):
    questions = [{"question": f"q{i}"} for i in range(5)]
    rows = ("full", "static@16", "static@12, fill=mask")
    assert replies_left(RunFolder(tmp_path / "new"), questions, rows) == 15
    folder = RunFolder(example(tmp_path / "run", {"full": (0, 1.0), "static@16": (0, 1.0)}, 4))
    assert replies_left(folder, questions, rows) == 15 - 8
    assert estimated_seconds(7, 2.0) == pytest.approx(14 * SECONDS_PER_REPLY)


@pytest.mark.parametrize(
    ("heads", "most"),
    [("TunedLens(depths 1 to 19) 0", 20), ("FittedHead(depths 0 to 19) 0", 40), ("Branch 0", 40)],
)
def test_layers_of_a_branch_count_as_depth(tmp_path, heads, most):
    """The pocket model's heads are of several kinds; some are branches."""
    for depth in (most, most + 1):
        path = example(tmp_path / str(depth), questions=2, heads=heads)
        file = path / "records.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        number = next(i for i, line in enumerate(lines) if line.get("depths"))
        lines[number]["depths"][-1] = depth
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        if depth > most:
            with pytest.raises(EepolicyError, match=f"depths must be 0 to {most}; got {depth}"):
                load_comparison(path)
        else:
            assert load_comparison(path).policies[0] == "full"
