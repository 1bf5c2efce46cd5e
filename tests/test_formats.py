"""Schemas of files: today's files pass, and wrong ones get one sentence."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors import safe_open

from eepolicy import Trace
from eepolicy.analysis.evaluation.formats import (
    JudgementLine,
    QuestionLine,
    RatingLine,
    RecordLine,
    RunFile,
    SpeechLine,
    TimingLine,
)
from eepolicy.analysis.evaluation.records import FILES, RunFolder
from eepolicy.errors import EepolicyError
from eepolicy.fitting.formats import CheckpointHeader, RepliesHeader, ReplyLine
from eepolicy.formats import TraceHeader, parse
from eepolicy.heads.formats import HeadsHeader
from eepolicy.io import read_json, read_jsonl
from eepolicy.loading import shipped_cards
from eepolicy.loading.formats import AudioEncoderEntry
from eepolicy.probing.formats import ProbeProgress
from eepolicy.probing.store import FolderStore
from eepolicy.speech.formats import CardFile

MODEL = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "vocab_size": 60,
    "weights": "a91915caccf57120",
}
RECORD = {
    "question": "What color is snow?",
    "policy": "static@2",
    "text": "White.",
    "ended": True,
    "layer_calls": 6,
    "readouts": 3,
    "tokens": [7, 30, 31],
    "depths": [2, 2, 2],
    "modalities": [0, 1, 1],
    "speech": "5e3b",
}
CARD = {
    "name": "toy",
    "source": "nobody/toy",
    "model_type": "llama",
    "unit": "<u{i}>",
    "text_chunk": 2,
    "speech_chunk": 5,
    "end": 3,
    "rate": 12.5,
    "sampling": {"do_sample": True, "top_p": 0.9, "top_k": 5},
}
CASES = {
    RunFile: {"identity": {"threads": 1}, "notes": {"rows": ["full"]}},
    QuestionLine: {"question": "What color is snow?", "keys": ["white", ["snow", "ice"]]},
    RecordLine: RECORD,
    SpeechLine: {"clips": [{"speech": "5e3b", "seconds": 0.08, "transcript": None}]},
    RatingLine: {"speech": "5e3b", "rater": "DistillMos", "mos": 2.5},
    TimingLine: {"question": "q", "policy": "full", "seconds": 0.5, "ttft": 0.1, "tokens": 3},
    JudgementLine: {"question": "q", "policy": "full", "score": 0.5},
    TraceHeader: {"full_depth": 20, "prefill_layer_calls": 0},
    HeadsHeader: {"kinds": ["tuned", "branch"], "depths": [1, 3], "model": MODEL, "notes": {}},
    CheckpointHeader: {
        "identity": {},
        "epoch": 1,
        "epochs_without_gain": 0,
        "metrics": {"kl": [0.5]},
    },
    RepliesHeader: {
        "model": MODEL,
        "dtype": "torch.float32",
        "layout": {"end": 3},
        "questions": 3,
        "max_new_tokens": 300,
    },
    ReplyLine: [2, [5, 6, 7]],
    ProbeProgress: {"identity": {}, "documents": 0, "readouts": 0, "seen": ""},
    CardFile: CARD,
    AudioEncoderEntry: {"start": 1, "patch": 2, "end": 3, "sizes": {"n_mels": 128}},
}


@pytest.mark.parametrize("schema", CASES, ids=lambda schema: schema.__name__)
def test_a_round_trip(schema):
    data = CASES[schema]
    read = parse(schema, data, "file")
    written = json.loads(json.dumps(read.model_dump()))
    if isinstance(data, list):
        assert written == data
    else:
        assert written["version"] == 1
        assert json.dumps(data) == json.dumps({k: written[k] for k in data})
    assert json.dumps(parse(schema, written, "file").model_dump()) == json.dumps(written)


@pytest.mark.parametrize("schema", CASES, ids=lambda schema: schema.__name__)
def test_every_key_is_needed_or_has_a_default(schema):
    data = CASES[schema]
    if isinstance(data, list):
        return
    for key, field in schema.model_fields.items():
        less = {k: v for k, v in data.items() if k != key}
        if field.is_required():
            with pytest.raises(EepolicyError, match=f"^f: the key '{key}' is missing$"):
                parse(schema, less, "f")
        else:
            parse(schema, less, "f")
    with pytest.raises(EepolicyError, match=r"^f: the key 'more' is unknown; possible keys are "):
        parse(schema, data | {"more": 1}, "f")
    with pytest.raises(EepolicyError, match=r"^f: its format has version 2; this release reads v"):
        parse(schema, data | {"version": 2, "more": 1}, "f")
    with pytest.raises(EepolicyError, match=r"^f: expected keys with values; got \[\]$"):
        parse(schema, [], "f")


@pytest.mark.parametrize(
    ("schema", "change", "sentence"),
    [
        (TraceHeader, {"full_depth": "20"}, "full_depth: expected a valid integer; got '20'"),
        (TraceHeader, {"full_depth": True}, "full_depth: expected a valid integer; got True"),
        (
            TraceHeader,
            {"full_depth": 0},
            "full_depth: expected 1 or more; got 0",
        ),
        (RecordLine, {"ended": 1}, "ended: expected a valid boolean; got 1"),
        (JudgementLine, {"score": 1.5}, "score: expected 1 or less; got 1.5"),
        (
            SpeechLine,
            {"clips": [{"speech": "5e3b", "seconds": -1.0, "transcript": None}]},
            "clips[0].seconds: expected 0 or more; got -1.0",
        ),
        (RecordLine, {"tokens": [7, "30", 31]}, "tokens[1]: expected a valid integer; got '30'"),
        (
            RecordLine,
            {"depths": [2]},
            "expected one depth and one modality per token; got 3 tokens, 1 depths, 3 modalities",
        ),
        (HeadsHeader, {"depths": [3, 1]}, "expected ascending depths; got [3, 1]"),
        (
            HeadsHeader,
            {"depths": [1, 1], "kinds": ["tuned"] * 2},
            "expected one kind for each depth",
        ),
        (
            HeadsHeader,
            {"model": MODEL | {"vocab_size": None}},
            "model.vocab_size: expected a valid integer; got None",
        ),
        (ProbeProgress, {"seen": "abc"}, "seen: expected text that matches pattern"),
        (CardFile, {"unit": 1.5}, "unit: expected a valid string or a valid integer; got 1.5"),
        (
            CardFile,
            {"unit": "<u>"},
            "unit: expected a token with {i} for its number, or an id; got '<u>'",
        ),
        (CardFile, {"speech_chunk": "x" * 99}, f"got '{'x' * 56}..."),
    ],
)
def test_an_error_names_the_file_and_the_wrong_value(schema, change, sentence):
    with pytest.raises(EepolicyError) as caught:
        parse(schema, CASES[schema] | change, "file, line 3")
    assert str(caught.value).startswith("file, line 3: ")
    assert sentence in str(caught.value)


def test_wrong_reply_lines():
    for line, sentence in (
        ([1, [2, "3"]], "r, line 2: tokens: expected a valid integer; got '3'"),
        ([3, [2]], "r, line 2: expected a prompt of at most 1 tokens; got 3"),
        (5, "r, line 2: expected keys with values; got 5"),
    ):
        with pytest.raises(EepolicyError, match=f"^{sentence}$"):
            parse(ReplyLine, line, "r, line 2")


def test_the_shipped_heads_have_no_version():
    file = Path(str(files("eepolicy") / "loading" / "pocket_model" / "heads.safetensors"))
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["heads"])
    assert "version" not in header
    read = parse(HeadsHeader, header, "heads")
    assert (read.version, sorted({*read.depths})) == (1, list(range(20)))
    assert read.model.model_dump() == header["model"]


def test_a_saved_trace_fits_its_schema(pocket, tmp_path):
    trace = pocket.generate("What color is snow?", max_new_tokens=5).trace
    trace.save(tmp_path / "trace")
    with safe_open(tmp_path / "trace", "np") as opened:
        header = parse(TraceHeader, json.loads(opened.metadata()["trace"]), "trace")
    assert header.full_depth == Trace.load(tmp_path / "trace").full_depth == 20


def test_a_new_run_folder_fits_its_schemas(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({"threads": 1})
    folder.note(rows=["full"])
    for kind in FILES:
        folder.append([parse(kind, CASES[kind], "line")])
    run = parse(RunFile, read_json(tmp_path / "run" / "run.json"), "run.json")
    assert (run.identity, run.notes) == ({"threads": 1}, {"rows": ["full"]})
    for kind, name in FILES.items():
        [line] = read_jsonl(tmp_path / "run" / name)
        assert line == CASES[kind]
        assert folder.lines(kind) == [parse(kind, line, name)]


def test_a_new_probe_folder_fits_its_schema(tmp_path):
    FolderStore(tmp_path / "probe", {"depths": [1, 2]})
    progress = parse(ProbeProgress, read_json(tmp_path / "probe" / "probe.json"), "probe.json")
    assert progress.identity == {"depths": [1, 2]}


def test_replies_take_the_sampling_options_of_every_card():
    """CosyVoice has an option with options inside."""
    for card in shipped_cards().values():
        header = CASES[RepliesHeader] | {"sampling": card.sampling}
        assert parse(RepliesHeader, header, "replies").sampling == card.sampling
