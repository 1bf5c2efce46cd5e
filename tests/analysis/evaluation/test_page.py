"""The data of the report page, and the page's HTML, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from example_record import RECORD
from hypothesis import given
from hypothesis import strategies as st
from page_example import POLICIES, SCRIPT, Margins, example, replies, speech_key, write_sound

from eepolicy.analysis.evaluation import page as page_module
from eepolicy.analysis.evaluation.columns import COLUMNS
from eepolicy.analysis.evaluation.page import SOUND_QUESTIONS, page_data
from eepolicy.analysis.evaluation.page_plot import MARKERS, axes, bokeh_script, markers
from eepolicy.analysis.evaluation.page_questions import by_difference, difference, reply
from eepolicy.analysis.evaluation.page_sound import BARS, read_sound, waveform
from eepolicy.analysis.evaluation.page_template import render, script_json
from eepolicy.analysis.style import FURTHER_MARKERS, OTHER_MARKERS


def test_the_document_has_rows_questions_and_sound(tmp_path):
    given = example(tmp_path)
    data = page_data(given)
    json.dumps(data, allow_nan=False)
    assert [row["policy"] for row in data["rows"]] == list(POLICIES)
    assert data["rows"][1]["verdict"] == "verdict of static@16"
    wer = data["rows"][1]["values"]["wer"]
    assert wer["value"] == pytest.approx(100 * given.rows[1]["wer"])
    assert wer["diff_high"] == pytest.approx(100 * given.rows[1]["wer_diff_high"])
    assert wer["text"]["value"] == "16.0"
    assert [q["question"] for q in data["questions"]] == list(given.replies)
    # the sound of the questions with the largest differences, once each
    order = by_difference(given.replies)[:SOUND_QUESTIONS]
    for question in data["questions"]:
        inside = [r["sound"] in data["sounds"] for r in question["replies"] if r["sound"]]
        assert all(inside) if question["question"] in order else not any(inside)
    assert len(data["sounds"]) == SOUND_QUESTIONS * len(POLICIES) - 1
    assert data["questions"][1]["replies"][1]["file"] is None  # it has no file


def test_sound_in_the_page_is_the_sound_of_the_file(tmp_path):
    given = example(tmp_path, questions=2)
    data = page_data(given)
    shown = data["questions"][1]["replies"][2]
    assert shown["duration"] == 1.0
    media_type, encoded = data["sounds"][shown["sound"]].split(";base64,")
    assert media_type == "data:audio/mpeg"
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    loudest = np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave)
    assert loudest == pytest.approx(200 + 20 + 10, abs=2)
    assert len(wave) / rate == pytest.approx(1.0, abs=0.1)
    # a second time, encoded files are read
    for file in (tmp_path / "page").iterdir():
        file.write_bytes(b"kept")
    kept = base64.b64encode(b"kept").decode()
    assert {url.split(",")[1] for url in page_data(given)["sounds"].values()} == {kept}


def test_differences_count_word_errors_first():
    same, transcripts, errors = RECORD, replace(RECORD, transcript="a c"), replace(RECORD, errors=2)
    tokens = replace(RECORD, tokens=[2] * 6)
    assert difference([same, same]) == (0, 0, 0)
    assert difference([same, errors]) == (2, 0, 0)
    assert difference([same, transcripts, tokens]) == (0, 1, 1)
    questions = {"t": [same, tokens], "s": [same, same], "e": [same, errors], "u": [same, tokens]}
    assert by_difference(questions) == ["e", "t", "u", "s"]
    unheard = [
        replace(RECORD, transcript=None, errors=None, text=text) for text in ("a", "A.", "b")
    ]
    assert difference(unheard) == (0, 1, 0)


def test_differing_questions_are_marked(tmp_path):
    data = page_data(example(tmp_path, questions=6))
    assert [q["differs"] for q in data["questions"]] == [False, True, True] * 2
    assert data["first"] == data["questions"][5]["id"]


@given(st.lists(st.tuples(st.integers(1, 80), st.integers(0, 1)), max_size=30))
def test_a_reply_keeps_depths_and_modalities(tokens):
    depths, modalities = [d for d, _ in tokens], [m for _, m in tokens]
    record = replace(RECORD, tokens=[1] * len(tokens), depths=depths, modalities=modalities)
    shown = reply(record, 0, None, {1: "a"})
    pairs = zip(shown["depths"][::2], shown["depths"][1::2], strict=True)
    assert [int(a + b, 36) for a, b in pairs] == depths
    drawn = [i % 2 for i, width in enumerate(shown["spans"]) for _ in range(width)]
    assert drawn == modalities
    assert shown["tokens"] == ["a"] * modalities.count(0)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    secret = write_sound(tmp_path / "elsewhere", "q", "full", 300)
    folder = tmp_path / "run"
    inside = write_sound(folder, "q", "full", 500)
    name = f"{speech_key('q', 'static@16')}.flac"
    (folder / "audio" / name).symlink_to(secret)
    assert read_sound(folder, name) is None
    assert read_sound(folder, inside.name) is not None
    assert read_sound(folder, "../../elsewhere/audio/" + secret.name) is None
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "audio").symlink_to(secret.parent)
    assert read_sound(linked, secret.name) is None


@pytest.mark.parametrize("content", [b"", b"garbage", b"RIFF\x24\0\0\0WAVEfmt ", None])
def test_an_unreadable_wave_does_not_stop_the_page(content, tmp_path):
    given = example(tmp_path, questions=1)
    (question,) = given.replies
    file = tmp_path / "audio" / f"{speech_key(question, 'static@16')}.flac"
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    data = page_data(given)
    assert [r["sound"] is None for r in data["questions"][0]["replies"]] == [
        False,
        True,
        *[False] * 2,
    ]
    assert "static@16" in render(data)


def test_waveforms_rise_with_the_sound():
    wave = np.concatenate([np.zeros(4800), 100 * np.ones(4800), -200 * np.ones(4800)])
    drawn = waveform(wave.astype(np.int16))
    assert len(drawn) == BARS
    assert (drawn[0], drawn[BARS // 2], drawn[-1]) == ("0", "h", "z")
    assert waveform(np.stack([wave, wave], 1)) == drawn
    assert waveform(np.zeros(3, np.int16)) == "000"


def test_non_finite_numbers_become_null(tmp_path):
    given = example(tmp_path, questions=1)
    given.rows[1]["wer_high"] = float("inf")
    (records,) = given.replies.values()
    records[0] = replace(records[0], seconds=float("nan"), mos=None)
    data = json.loads(script_json(page_data(given)))
    assert data["questions"][0]["replies"][0]["seconds"] is None
    assert data["rows"][1]["values"]["wer"]["high"] is None


def test_axes_are_what_was_measured(tmp_path):
    options = axes(example(tmp_path, questions=1).rows, COLUMNS, Margins())
    costs = [axis["name"] for axis in options["cost"]]
    assert costs == ["speedup", "seconds", "speech_depth", "layer_calls"]
    assert [axis["better"] for axis in options["cost"]] == ["higher", *["lower"] * 3]
    margins = {axis["name"]: axis["margin"] for axis in options["quality"]}
    assert "mos" not in margins  # nobody rated
    assert margins["wer"] == 2.0
    assert margins["accuracy_speech"] == margins["accuracy_text"] == 5.0


def test_every_marker_of_the_figures_has_one_in_the_page():
    assert {*FURTHER_MARKERS, *OTHER_MARKERS} <= {*MARKERS}
    assert len({name for name, _ in MARKERS.values()}) == len(MARKERS)
    sweep = [f"static@{depth}" for depth in range(4, 18)]
    assert len({(m["colour"], m["marker"]) for m in markers(sweep)}) == len(sweep)


def test_the_page_keeps_its_size(tmp_path, monkeypatch):
    given = example(tmp_path)
    whole = page_data(given)
    monkeypatch.setattr(page_module, "MAX_BYTES", 60_000)
    small = page_data(given)
    assert len(json.dumps([small["questions"], small["sounds"]])) < 60_500
    assert 0 < len(small["sounds"]) < len(whole["sounds"])
    monkeypatch.setattr(page_module, "MAX_BYTES", 9_000)
    smaller = page_data(given)
    assert smaller["left_out"] == 15 - len(smaller["questions"]) > 0
    assert smaller["sounds"] == {}
    # what differs most stays
    assert smaller["first"] in {question["id"] for question in smaller["questions"]}


def test_model_text_cannot_close_a_script_element(tmp_path):
    data = page_data(example(tmp_path, questions=2))
    page = render(data)
    assert "</script" not in bokeh_script()
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == page.count("<script") == page.count("</script") == 4
    assert json.loads(scripts[0]) == data
    assert SCRIPT not in page
    rest = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:|#)', rest)  # it needs no other file


def test_replies_of_the_example_differ():
    assert len({difference(records) for records in replies(6).values()}) > 2
