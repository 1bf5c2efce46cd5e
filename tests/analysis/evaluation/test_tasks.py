"""Tasks as OpenAudioBench publishes them, and questions spoken by a program."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.scoring import is_right
from eepolicy.analysis.evaluation.tasks import read_task, synthesized


def write_csv(folder: Path, *rows: tuple[str, ...]) -> Path:
    file = folder / "task.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)
    for row in rows[1:]:
        (folder / "audios").mkdir(exist_ok=True)
        (folder / "audios" / row[-1]).write_bytes(b"")
    return file


@pytest.mark.parametrize(
    ("columns", "row", "keys"),
    [
        (("instruction",), ("Name a tree.",), None),
        (("Questions", "Answer"), ("What is H2O?", "water"), ["water"]),
        (
            ("question", "answer_normalized_aliases"),
            ("Capital of France?", "['paris', 'city of light']"),
            [["paris", "city of light"]],
        ),
        (
            ("question", "answers"),
            ("Which language?", "['Jamaican Creole', 'Jamaican English']"),
            [["Jamaican Creole", "Jamaican English"]],
        ),
        (("question", "answers"), ("Who?", "['Ann' 'Lee']"), [["Ann", "Lee"]]),
        (("question", "answers"), ("Who?", "['Ann'\n 'Lee']"), [["Ann", "Lee"]]),
        (("question", "answers"), ("Who?", '["Ann\'s", "Lee"]'), [["Ann's", "Lee"]]),
        (("question", "answers"), ("Who?", "[]"), None),
        (("question", "answers"), ("Which year?", "[1999, 2000]"), [["1999", "2000"]]),
        (("question", "answer"), ("What?", "[sic] is a word"), ["[sic] is a word"]),
    ],
)
def test_the_columns_of_openaudiobench(tmp_path, columns, row, keys):
    file = write_csv(tmp_path, (*columns, "audio_filename"), (*row, "q_0.wav"))
    [question] = read_task(file)
    assert (question["question"], question["keys"]) == (row[0], keys)
    assert question["audio"] == str(tmp_path / "audios" / "q_0.wav")


def test_one_of_the_aliases_is_right(tmp_path):
    row = ("Which language?", "['Jamaican Creole', 'Jamaican English']", "q.wav")
    [question] = read_task(write_csv(tmp_path, ("question", "answers", "audio_filename"), row))
    assert is_right("They speak Jamaican English.", question["keys"])
    assert not is_right("They speak French.", question["keys"])


def test_missing_sound_and_unread_answers_are_errors(tmp_path):
    file = write_csv(tmp_path, ("question", "audio_filename"), ("Who?", "q.wav"))
    (tmp_path / "audios" / "q.wav").unlink()
    with pytest.raises(EepolicyError, match=r"names the sound audios/q\.wav, which is missing"):
        read_task(file)
    file.write_text("question,gold_answer\nWho?,Ann\n")
    with pytest.raises(EepolicyError, match="has the field gold_answer, which is not read: call"):
        read_task(file)
    file.write_text("question,answer,answer_type\nWho?,Ann,name\n")
    assert read_task(file)[0]["keys"] == ["Ann"]


def test_lines_may_hold_any_character_of_json(tmp_path):
    rows = [{"question": "Who\u2028is\x85it?"}, {"question": "Ann?"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "t.jsonl").write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8")
    assert [q["question"] for q in read_task(tmp_path / "t.jsonl")] == [
        "Who\u2028is\x85it?",
        "Ann?",
    ]


@pytest.mark.parametrize(
    ("arguments", "question", "expected"),
    [
        ("--text={text} --out={file}", "Who?", ["--text=Who?", "--out={file}"]),
        ("--text={text} --out={file}", "-5 plus 3?", ["--text=-5 plus 3?", "--out={file}"]),
        ("{text} {file}", "-5 plus 3?", [" -5 plus 3?", "{file}"]),
        ("'say {text} now' {file}", "It's {file}?", ["say It's {file}? now", "{file}"]),
        ("{text}{text} {file}", "a {text}", ["a {text}a {text}", "{file}"]),
        ("{text} {file}", "{file} $(ls); 'x'", ["{file} $(ls); 'x'", "{file}"]),
    ],
)
def test_the_question_reaches_the_program(tmp_path, arguments, question, expected):
    script = tmp_path / "say.py"
    script.write_text(
        "import json, sys\n"
        "file = sys.argv[-1].removeprefix('--out=')\n"
        "open(file, 'w').write(json.dumps(sys.argv[1:]))\n"
    )
    command = f"{sys.executable} {script} {arguments}"
    [spoken] = synthesized([{"question": question}], command, tmp_path / "questions")
    said = json.loads(Path(spoken["audio"]).read_text())
    part_file = said[-1].removeprefix("--out=")
    assert part_file.endswith(".part.wav")
    assert said == [*expected[:-1], expected[-1].replace("{file}", part_file)]


def test_a_question_that_no_program_can_take_is_an_error(tmp_path):
    for question in ("a\0b", "\ud800"):
        with pytest.raises(EepolicyError, match="did not synthesize the question"):
            synthesized([{"question": question}], "echo {text} {file}", tmp_path / "questions")


def test_the_sound_of_a_data_set_is_read_without_decoding_it(tmp_path, monkeypatch):
    class Audio:
        def __init__(self, decode=True):
            self.decode = decode

    class Rows(list):
        features: ClassVar[dict] = {"question": object(), "speech": Audio()}

        def cast_column(self, name, kind):
            assert (name, kind.decode) == ("speech", False)
            return self

        def __iter__(self):
            return iter([{"question": "Who?", "speech": {"bytes": b"RIFF", "path": "a.flac"}}])

    module = ModuleType("datasets")
    module.Audio, module.load_dataset = Audio, lambda *_, **__: Rows()
    monkeypatch.setitem(sys.modules, "datasets", module)
    [question] = read_task("hf:some/qa", "qa", tmp_path / "sounds")
    assert Path(question["audio"]).read_bytes() == b"RIFF"
    assert question["audio"].endswith(".flac")
    assert read_task("hf:some/qa", "qa") == [question | {"audio": None}]
