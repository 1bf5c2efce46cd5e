"""From the authors' checkpoint folders to the paper's sixteen rows, at tiny scale and offline."""

from __future__ import annotations

import csv
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import soundfile
from loading import test_glm4_voice, test_step_audio2

from eepolicy import EepolicyError, parse_policy
from eepolicy.analysis.evaluation import llm_judge as judging
from eepolicy.analysis.evaluation.llm_judge import LlmJudge
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.scoring import is_right
from eepolicy.analysis.evaluation.spark_table2 import ROWS, head_depths
from eepolicy.analysis.evaluation.tasks import _keys, read_task, synthesized


def test_tasks_as_they_are_published(tmp_path):
    trivia = {"value": "Paris", "aliases": ["Paris", "City of Light"]}
    published = {
        "alpacaeval": [{"instruction": "Name a tree.", "output": "Oak."}],
        "triviaqa": [{"question": "Capital of France?", "answer": trivia}],
        "webquestions": [{"question": "Who?", "answers": ["Ann", "Ann Lee"]}, {"question": "Who?"}],
        "own": [{"question": "Two plus two?", "keys": ["two", "four"], "audio": "a.wav"}],
    }
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    tasks = {}
    for name, rows in published.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
        tasks[name] = read_task(file)
    assert tasks["alpacaeval"][0]["keys"] is None
    assert tasks["triviaqa"][0]["keys"] == [["Paris", "Paris", "City of Light"]]
    assert len(tasks["webquestions"]) == 1  # it occurs twice
    assert tasks["own"][0] == {
        "question": "Two plus two?",
        "keys": ["two", "four"],
        "task": "own",
        "audio": str(tmp_path / "a.wav"),
    }
    with (tmp_path / "llama.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("Questions", "Answer"), ("What is H2O?", "water")])
    assert read_task(tmp_path / "llama.csv", "llamaquestions")[0]["task"] == "llamaquestions"
    assert read_task(tmp_path / "llama.csv")[0]["keys"] == ["water"]
    array = np.array(["Ann", "Ann Lee"], dtype=object)  # as Parquet gives lists
    assert _keys({"answers": array}) == [["Ann", "Ann Lee"]]
    assert _keys({"answer": {"value": "Ann", "aliases": array}}) == [["Ann", "Ann", "Ann Lee"]]
    assert _keys({"answer": 4}) == _keys({"Answer": "4"}) == ["4"]
    assert _keys({"answer": ""}) is None
    if find_spec("pyarrow"):
        pd.DataFrame({"question": ["Who?"], "answers": [["Ann"]]}).to_parquet(
            tmp_path / "w.parquet"
        )
        assert read_task(tmp_path / "w.parquet")[0]["keys"] == [["Ann"]]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.jsonl", '{"ask": "Who?"}', "row 1 of .* has no question"),
        (
            "a.jsonl",
            '{"question": "Who?", "audio": "none.wav"}',
            "names the sound none.wav, which is missing",
        ),
        ("a.jsonl", "no json", "cannot be read"),
        ("a.jsonl", "", "contains no question"),
        ("a.json", '{"Data": []}', "is not a list of rows; got {'Data'"),
        ("a.txt", "", "a task file is .jsonl"),
    ],
)
def test_a_task_that_cannot_be_read_is_an_error(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(EepolicyError, match=match):
        read_task(tmp_path / name)


def test_a_program_synthesizes_the_questions(tmp_path):
    script = tmp_path / "say.py"
    script.write_text(
        "import sys, numpy, soundfile\n"
        "soundfile.write(sys.argv[2], numpy.ones(160 * len(sys.argv[1])) / 2, 16_000)\n"
    )
    command = f"{sys.executable} {script} {{text}} {{file}}"
    questions = [{"question": q, "audio": a} for q, a in (("Who; $(ls)?", None), ("It?", "it.wav"))]
    first, second = synthesized(questions, command, tmp_path / "questions")
    assert soundfile.info(first["audio"]).frames == 160 * len("Who; $(ls)?")
    assert second["audio"] == "it.wav"
    script.unlink()  # existing files are reused
    assert synthesized(questions[:1], command, tmp_path / "questions") == [first]
    with pytest.raises(EepolicyError, match="did not synthesize the question 'Me'"):
        synthesized([{"question": "Me"}], command, tmp_path / "questions")
    with pytest.raises(EepolicyError, match=r"contains \{text\} and \{file\}"):
        synthesized(questions, "flite", tmp_path / "questions")


def test_data_sets_on_the_hub(monkeypatch):
    def load_dataset(identity, config, split):
        assert (identity, config, split) == ("some/qa", "rc", "validation")
        return [{"question": "Who?", "answer": {"value": "Ann", "aliases": ["Lee"]}}]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    [question] = read_task("hf:some/qa:rc:validation", "triviaqa")
    assert question["keys"] == [["Ann", "Lee"]]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EepolicyError, match="pip install datasets"):
        read_task("hf:some/qa")


def test_any_alias_is_right():
    keys = [["Paris", "the City of Light"]]
    assert is_right("It is the city of light!", keys)
    assert is_right("Paris.", keys)
    assert not is_right("Parisian", keys)
    assert not is_right("London", keys)


@pytest.fixture
def server():
    """A judge that says yes where the answer is long enough, and rates by its words."""
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        failing = 0

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"body": body, "key": self.headers["Authorization"], "path": self.path})
            if Handler.failing or self.headers["Authorization"] == "Bearer wrong":
                self.send_response(401 if not Handler.failing else 503)
                Handler.failing = max(0, Handler.failing - 1)
                self.end_headers()
                return
            prompt = body["messages"][0]["content"]
            reply = next(x for x in prompt.splitlines() if x.startswith("Its answer"))
            said = reply.split(":", 1)[1].strip()
            has_answer = "The right answer, of which" in prompt
            verdict = "Yes." if has_answer else str(min(10, len(said.split())))
            verdict = "No" if has_answer and "wrong" in said else verdict
            verdict = "hm" if "odd" in said else verdict
            out = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(out)

        def log_message(self, *_):
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    served.requests, served.handler = requests, Handler
    served.url = f"http://127.0.0.1:{served.server_port}/v1"
    yield served
    served.shutdown()


def test_the_judge(server, monkeypatch):
    monkeypatch.setattr(judging, "PAUSE", 0.01)
    known, open_ended = {"question": "Who?", "keys": [["Ann", "Lee"]]}, {"question": "A tree?"}
    judge = LlmJudge(server.url, "some-model", key="secret")
    assert judge.judge(known, "Ann, I think") == 1.0
    assert judge.judge(known, "wrong") == 0.0
    assert judge.judge(open_ended, "an oak of course") == 0.4
    assert (judge.judge(known, " "), judge.judge(open_ended, "")) == (0.0, 0.1)
    first = server.requests[0]
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert first["body"]["model"] == "some-model"
    assert "Ann / Lee" in first["body"]["messages"][0]["content"]
    assert "secret" not in repr(judge)
    server.handler.failing = 2  # the request is repeated
    assert judge.judge(known, "Ann") == 1.0
    before = len(server.requests)
    with pytest.raises(EepolicyError, match="does not answer: HTTP Error 401"):
        LlmJudge(server.url, "some-model", key="wrong").judge(known, "Ann")
    assert len(server.requests) == before + 1  # a refused request is not repeated
    assert judge.judge(known, "odd") is None  # a response without a score does not stop a run
    judge.judge(known, "Ann", is_transcript=False)
    prompts = [a["body"]["messages"][0]["content"] for a in server.requests]
    assert "in writing" in prompts[-1]
    assert "as heard by speech recognition" in prompts[0]


def test_the_papers_rows():
    """Against what the paper's own text says of them."""
    assert [len(rows) for rows in ROWS.values()] == [6, 10]
    for rows, full in ((ROWS["step-audio-2-mini"], 28), (ROWS["glm-4-voice"], 40)):
        assert rows[0].speech_depth == rows[0].text_depth == full
        for row in rows:
            parse_policy(row.policy).check(full)
    assert head_depths(ROWS["step-audio-2-mini"]) == (22, 25, 26, 27)
    assert head_depths(ROWS["glm-4-voice"]) == (33, 35, 36, 37, 38, 39)
    means = [sum(row.scores) / 4 for rows in ROWS.values() for row in rows]
    printed = [54.22, 50.13, 41.51, 53.22, 53.75, 55.29, 52.37, 51.48, 52.89, 50.83, 50.35, 51.94]
    printed += [48.96, 50.29, 18.43, 48.61]
    np.testing.assert_allclose(means, printed, atol=0.0051)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("step-audio-2-mini", marks=pytest.mark.slow),
        pytest.param("glm-4-voice", marks=pytest.mark.exhaustive),
    ],
)
def test_from_a_checkpoint_folder_to_the_table(name, tmp_path, run, server, monkeypatch):
    from eepolicy.speech import asr, mos

    for module, missing in ((asr, "missing_asr"), (mos, "missing_mos")):
        monkeypatch.setattr(module, missing, lambda *_: "not here")
    source = tmp_path / "source"
    source.mkdir()
    if name == "glm-4-voice":
        config = test_glm4_voice.CONFIG | {"num_layers": 40}
        test_glm4_voice.write(source, test_glm4_voice.weights(40), config)
    else:
        config = json.loads(json.dumps(test_step_audio2.CONFIG))
        config["text_config"]["num_hidden_layers"] = 28
        test_step_audio2.write(source, test_step_audio2.weights(28), config)
    (tmp_path / "a.jsonl").write_text('{"instruction": "Name a tree."}\n{"instruction": "Sing."}\n')
    answer = '{"question": "Who?", "answer": {"value": "Ann", "aliases": ["Lee"]}}'
    (tmp_path / "t.jsonl").write_text(answer + "\n")
    (tmp_path / "fit.txt").write_text("\n".join(f"Say {i}." for i in range(10)))
    arguments = ["--preset", "spark-table2", "--model", str(source), "--prompts", "2"]
    arguments += ["--task", f"alpacaeval={tmp_path / 'a.jsonl'}", "--max-new-tokens", "12"]
    arguments += ["--task", f"triviaqa={tmp_path / 't.jsonl'}", "--out", str(tmp_path / "out")]
    arguments += ["--judge-url", server.url]
    _, err = run("compare", *arguments, code=2)
    assert "give --fit-prompts" in err
    fit_prompts = ("--fit-prompts", str(tmp_path / "fit.txt"))
    out, _ = run("compare", *arguments, *fit_prompts, "--dry-run")
    assert "hours (estimate)" in out
    assert "GB (estimate)" in out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out-heads.safetensors").exists()
    out, _ = run("compare", *arguments, *fit_prompts)
    lines = [x for x in (tmp_path / "out" / "table2.md").read_text().splitlines() if "|" in x]
    assert len(lines) == 2 + len(ROWS[name])
    for row, line in zip(ROWS[name], lines[2:], strict=True):
        assert row.label in out
        cells = [c.strip() for c in line.strip("|").split("|")]
        assert cells[:2] == [row.label, f"`{row.policy}`"]
        # the two measured tasks and their mean
        assert [c.rsplit("(", 1)[1] for c in cells[2:5]] == [
            f"{x:.2f})" for x in (row.scores[0], row.scores[2], (row.scores[0] + row.scores[2]) / 2)
        ]
    records = RunFolder(tmp_path / "out").records()
    assert len(records) == 3 * len(ROWS[name])
    assert all(record.judge_score is not None for (record,) in records.values())
    assert (tmp_path / "out-heads.safetensors").is_file()
    before = len(server.requests)
    results, again = run("compare", *arguments, "--json")  # nothing is left to do
    assert {r["policy"] for r in json.loads(results)} == {row.policy for row in ROWS[name]}
    assert [x for x in again.splitlines() if x.startswith("|")] == [
        x for x in out.splitlines() if x.startswith("|")
    ]
    assert len(server.requests) == before
    (tmp_path / "out" / "table2.md").unlink()
    heads = str(tmp_path / "out-heads.safetensors")
    run("report", str(tmp_path / "out"), "--model", str(source), "--heads", heads)
    assert (tmp_path / "out" / "table2.md").read_text().splitlines()[2:4] == lines[2:4]


def test_the_preset_names_what_it_needs(run, tmp_path):
    for arguments, match in (
        (["--preset", "table3"], "presets are spark-table2"),
        (["--dry-run"], "--dry-run is for --preset"),
        (["static@3", "--preset", "spark-table2"], "has policies of its own"),
        (["--task", "file.jsonl"], "a task is given as NAME=FILE"),
        (["--preset", "spark-table2"], "this model is neither"),
        (["--preset", "spark-table2", "--seeds", "2"], "decodes as the paper: without --fill"),
        (["static@3", "--vocoder", "folder"], "--vocoder is for glm-4-voice"),
        (["--dtype", "int4"], "--dtype is auto, float32"),
    ):
        _, err = run("compare", *arguments, "--out", str(tmp_path / "out"), code=2)
        assert match in " ".join(err.split())
