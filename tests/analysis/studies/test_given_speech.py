"""Text inside given speech: units of words, ranks and a planted effect, on spoken examples."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from conftest import LAYOUT, tiny
from loading.test_glm_speech_tokenizer import home

import eepolicy
from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.evaluation.spoken_examples import SpokenExample, read_spoken_examples
from eepolicy.analysis.stats import bootstrap
from eepolicy.analysis.studies import given_speech
from eepolicy.analysis.studies.given_speech import given_words, text_in_given_speech
from eepolicy.speech.audio import write_audio
from eepolicy.speech.word_times import WordTime

__all__ = ["home"]  # a fixture

SENTENCES = ("Snow is white and cold.", "The sky is blue at noon.", "A dog can bark and run.")
#: units of a word, and of the pause after it
LENGTHS, PAUSE = (3, 4, 5, 3, 4, 6), 1


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """No test here is about the width of an interval."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)


@pytest.fixture(scope="module")
def data(pocket, tmp_path_factory):
    """Sentences of random units, spoken by the vocoder, with the times of their words."""
    folder, rows = tmp_path_factory.mktemp("examples"), []
    generator = torch.Generator().manual_seed(0)
    for number, sentence in enumerate(SENTENCES):
        entries, at = [], 2
        for word, length in zip(sentence.split(), LENGTHS, strict=False):
            # a time inside of a unit does not decide: its middle does
            entries.append({"word": word, "start": 0.04 * at + 0.01, "end": 0.04 * (at + length)})
            at += length + PAUSE
        units = torch.randint(pocket.layout.num_units, (at,), generator=generator)
        write_audio(folder / f"{number}.wav", pocket.vocoder.decode(units))
        rows.append({"audio": f"{number}.wav", "words": entries})
    file = folder / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def examples(data):
    return read_spoken_examples(data)


def owners(example: SpokenExample, units: int) -> list[int]:
    """Number of the word of each unit, by a plain loop; -1 for none."""
    numbers = []
    for unit in range(units):
        middle = (unit + 0.5) * 0.04
        own = [n for n, word in enumerate(example.words) if word.start <= middle < word.end]
        numbers.append(own[0] if own else -1)
    return numbers


def test_units_of_words_and_ranks_are_those_of_plain_loops(pocket, examples):
    study = text_in_given_speech(pocket, examples)
    assert study.counts["examples"] == 3
    assert study.counts["words"] == 17
    positions, vocabulary, checked = study.positions, pocket.tokenizer.get_vocab(), 0
    for document, example in enumerate(examples):
        units = pocket.vocoder.encode(example.wave)
        owner = owners(example, len(units))
        own = positions[positions.document == document]
        assert own.word.tolist() == [number for number in owner if number >= 0]
        # the ranks are those of the logit lens of the stock model where the unit is predicted
        ids = torch.cat([torch.tensor([1, 2]), 1024 + units])[None]
        with torch.no_grad():
            states = pocket.model(ids, output_hidden_states=True).hidden_states[9][0]
            logits = pocket.model.lm_head(pocket.model.model.norm(states))[:, :1024]
        at = [1 + unit for unit, number in enumerate(owner) if number >= 0]
        for row, where in zip(own.itertuples(), at, strict=True):
            word = example.words[row.word].word.strip(".")
            token = vocabulary.get(f"Ġ{word}", vocabulary.get(f"Ġ{word.lower()}"))
            rank = study.ranks["spoken"][8, row.Index]
            assert (token is None) == (rank < 0)
            if token is not None:
                plain = 1 + int((logits[where] > logits[where, token]).sum())
                assert abs(rank - plain) <= 1
                checked += 1
    assert checked > 40
    assert "a word of another example" in study.table()
    assert "read out at one depth" not in study.table()
    assert len(study.figure().axes) == 2


def test_a_planted_effect_is_found(examples):
    """The state of each unit is set to the token of its word: the next unit's readout has it."""
    model = eepolicy.load("pocket")
    documents, words = given_words(model, examples)
    head, embedding = model.model.lm_head.weight, model.model.get_input_embeddings().weight
    planted: dict[int, int] = {}
    expected = []
    with torch.no_grad():
        for number, (document, example) in enumerate(zip(documents, examples, strict=True)):
            ids = document.reply.tolist()
            tokens = words[words.document == number].token.tolist()
            of_unit = [tokens[o] if o >= 0 else -1 for o in owners(example, len(ids))]
            for unit, token in zip(ids, of_unit, strict=True):
                if token >= 0 and unit not in planted:
                    planted[unit] = token
                    embedding[unit] = 1000 * head[token]
            before = [-1, *(planted.get(unit, -1) for unit in ids[:-1])]
            expected += [p == t for p, t in zip(before, of_unit, strict=True) if t >= 0]
    study = text_in_given_speech(model, examples)
    spoken = study.ranks["spoken"][0]
    assert (spoken[spoken >= 0][expected] <= 10).mean() > 0.9
    assert np.mean(expected) > 0.5
    assert study.level("spoken").value[0] >= np.mean(expected) - 0.1
    assert study.gain("spoken", "other").low[0] > 0.2


def test_words_of_a_spoken_question_of_glm(home):
    model = eepolicy.load(home / "glm-4-voice-9b")
    wave = 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    words = (WordTime("a", 0.0, 0.4), WordTime("b", 0.4, 1.5))
    [document], table = given_words(model, [SpokenExample("row 1", wave, words)])
    before, _ = model.prompt_format.encode_affixes(is_spoken=True)
    start = model.tokenizer.convert_tokens_to_ids("<|begin_of_audio|>")
    assert document.tokens[: document.prompt].tolist() == [*before, start]
    units = torch.cat(model.audio_encoder.encoder.encode(wave))
    assert document.reply.tolist() == (model.layout.speech[0] + units).tolist()
    # 12.5 units a second: 0.4 s are five of the 19
    assert table[["first", "stop"]].values.tolist() == [[0, 5], [5, 19]]


def test_a_word_has_the_token_of_its_spelling_or_of_its_lower_case(pocket):
    words = [WordTime(w, i / 4, (i + 1) / 4) for i, w in enumerate(["white,", "SNOW", "xylem"])]
    [document], table = given_words(pocket, [SpokenExample("row 1", torch.zeros(16_000), words)])
    expected = [pocket.tokenizer.convert_tokens_to_ids(t) for t in ("Ġwhite", "Ġsnow")]
    assert table.token.tolist() == [*expected, -1]
    assert document.prompt == 2


def test_what_has_no_units_is_refused(pocket, examples):
    mute = HookedModel(tiny("qwen2"), LAYOUT, pocket.tokenizer)
    with pytest.raises(EepolicyError, match="this model has none: take the pocket model, GLM-4-V"):
        text_in_given_speech(mute, examples)
    short = SpokenExample("row 4 of data.csv", torch.zeros(100), examples[0].words)
    with pytest.raises(EepolicyError, match=r"^row 4 of data\.csv: a unit needs 640 samples"):
        text_in_given_speech(pocket, [short])


def test_the_command_line(pocket, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(given_speech, "load", lambda *_, **__: pocket)
    threads = str(torch.get_num_threads())
    arguments = ["given_speech", str(data), str(tmp_path), "--threads", threads]
    monkeypatch.setattr(sys, "argv", arguments)
    given_speech.main()
    written = {name: tmp_path / f"given-speech.{name}" for name in ("md", "csv", "svg")}
    assert written["md"].read_text() == capsys.readouterr().out
    assert written["csv"].read_text().count("\n") == 1 + pocket.depth
    assert b"another example" in written["svg"].read_bytes()
    monkeypatch.setattr(sys, "argv", [*arguments, "--column", "words=lost"])
    with pytest.raises(SystemExit) as end:
        given_speech.main()
    assert end.value.code == 2
    assert "there is no column lost; the columns are audio, words" in capsys.readouterr().err
