"""Text inside speech: simulated effects are detected, others are not; words, units, tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from eepolicy import Document, EepolicyError, probe
from eepolicy.analysis.stats import bootstrap
from eepolicy.analysis.studies import TextInSpeech, Workspace, text_in_speech
from eepolicy.analysis.studies.spoken_words import (
    PARTS,
    THIRDS,
    TOKENS,
    align_replies,
    control_tokens,
    errors_by_word,
    exit_depths,
    read_out,
    spoken_token,
    text_words,
    unit_table,
    with_given,
    word_errors_at,
)
from eepolicy.analysis.tables import read_table
from eepolicy.io import write_text
from eepolicy.speech.audio import resampled
from eepolicy.speech.word_times import WordTime, words_of_units

DEPTHS = np.array([2, 4, 6, 8])
REPLIES, UNITS = 40, 25


class FakeWhisper:
    """Words of equal length over the whole wave; transcripts are empty."""

    def align(self, wave, text):
        words = text.split()
        edges = np.linspace(0, len(wave) / 16_000, len(words) + 1) + 0.075
        return [WordTime(w, a, b) for w, a, b in zip(words, edges[:-1], edges[1:], strict=True)]

    def transcribe(self, wave):
        return ""


def simulated(seed: int, effect: float, harm: float) -> TextInSpeech:
    """A study of made-up replies that differ from each other.

    Args:
        seed: seed.
        effect: added to the recall of the spoken word at depths 6 and 8.
        harm: subtracted from the substitution rate of readable words.
    """
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(REPLIES), UNITS)
    base = rng.uniform(0.05, 0.35, REPLIES)[document]  # a reply's own level: units are clustered
    ranks = {}
    for name in TOKENS:
        more = effect * (DEPTHS >= 6) if name == "spoken" else np.zeros(len(DEPTHS))
        hit = rng.random((len(DEPTHS), len(document))) < base + more[:, None]
        ranks[name] = np.where(hit, 3, 300)
        ranks[name][:, rng.random(len(document)) < 0.1] = -1
    number = np.tile(np.arange(UNITS), REPLIES)
    positions = pd.DataFrame(
        {
            "document": document,
            "word": number // 5,
            "third": np.array(THIRDS)[number % 5 * 3 // 5],
            "part": np.array(PARTS)[number % 3],
            "since": (number % 5).astype(float),
            "until": 5.0 - number % 5,
        }
    )
    exits = pd.concat(
        [positions[["document", "word"]].drop_duplicates().assign(depth=8)],
        ignore_index=True,
    )
    level = rng.uniform(0.3, 0.5, REPLIES)[exits.document]
    exits["readable"] = (rng.random(len(exits)) < 0.5).astype(float)
    wrong = rng.random(len(exits)) < level - harm * exits.readable
    exits["substituted"], exits["deleted"] = wrong.astype(float), 0.0
    mass = rng.random(ranks["spoken"].shape)
    return TextInSpeech(
        DEPTHS, positions, ranks, ranks["spoken"], mass, exits, {"replies": REPLIES}
    )


@pytest.fixture
def few_resamples(monkeypatch):
    """Fewer resamples, which suffice for intervals of many simulated studies."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)


def excludes_zero(interval) -> bool:
    return bool(interval.low > 0 or interval.high < 0)


def test_a_known_effect_is_detected(few_resamples):
    detected = []
    for seed in range(8):
        study = simulated(seed, effect=0.15, harm=0.25)
        gain = study.gain("spoken", "other")
        assert gain[3].value == pytest.approx(0.15, abs=0.09)
        detected.append((excludes_zero(gain[3]), study.exit_rates().iloc[0].difference_high < 0))
    assert (np.mean(detected, 0) >= 0.9).all()


def test_without_an_effect_nothing_is_detected(few_resamples):
    """A 95 % interval may exclude no difference in one study of twenty, and not in many more."""
    wrong = np.zeros(2)
    for seed in range(60):
        study = simulated(seed, effect=0.0, harm=0.0)
        row = study.exit_rates().iloc[0]
        wrong += (
            excludes_zero(study.gain("spoken", "other")[3]),
            row.difference_low > 0 or row.difference_high < 0,
        )
    assert (wrong <= 9).all()


def test_the_tables_and_the_figure_show_the_effect():
    study = simulated(1, effect=0.3, harm=0.1)
    hits = study.ranks["spoken"][3]
    known = hits >= 0
    frame = study.to_pandas().set_index("depth")
    assert frame.text_mass[8] == pytest.approx(study.text_mass[3].mean())
    assert frame.spoken[8] == pytest.approx((hits[known] <= 10).mean())
    both = known & (study.ranks["next"][3] >= 0)
    plain = (hits[both] <= 10).mean() - (study.ranks["next"][3][both] <= 10).mean()
    assert frame.over_next[8] == pytest.approx(plain)
    early = known & (study.positions.third == THIRDS[0]).to_numpy()
    level = study.level("spoken", (study.positions.third == THIRDS[0]).to_numpy())
    assert level.value[3] == pytest.approx((hits[early] <= 10).mean())
    onset = study.onset()
    at = known & (study.positions.since == 2).to_numpy()
    assert onset.loc[8, 2] == pytest.approx((hits[at] <= 10).mean())
    at = (study.positions.until == 1).to_numpy() & (study.ranks["next"][3] >= 0)
    assert onset.loc[8, -1] == pytest.approx((study.ranks["next"][3][at] <= 10).mean())
    assert onset[8].isna().all()  # no word has nine units
    rates = study.exit_rates().set_index("depth")
    here = study.exits[study.exits.depth == 8]
    assert rates.if_readable[8] == pytest.approx(100 * here.substituted[here.readable == 1].mean())
    assert rates.excess[8] == 0
    table = study.table()
    assert f"| {THIRDS[1]} |" in table
    assert f"| {PARTS[2]} |" in table
    figure = study.figure()
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    np.testing.assert_allclose(
        lines["the word being spoken"].get_xdata(), 100 * study.level("spoken").value
    )


@pytest.mark.parametrize("seed", range(3))
def test_units_belong_to_the_word_of_their_middle(seed):
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.uniform(-0.1, 2.2, 12))
    words = [WordTime("w", a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    owner = words_of_units(words, 50, 25.0)
    for unit in range(50):
        middle = (unit + 0.5) / 25
        own = [n for n, word in enumerate(words) if word.start <= middle < word.end]
        assert owner[unit] == (own[0] if own else -1)


def test_what_each_unit_is_part_of():
    words = pd.DataFrame(
        [(0, 0, "a", 7, 1, 4), (0, 1, "b", -1, 4, 4), (0, 2, "c", 8, 5, 8), (0, 3, "c", 8, 8, 9)],
        columns=["document", "word", "text", "token", "first", "stop"],
    )
    table = unit_table(words, 10)
    assert table.word.tolist() == [-1, 0, 0, 0, -1, 2, 2, 2, 3, -1]
    assert table.spoken.tolist() == [-1, 7, 7, 7, -1, 8, 8, 8, 8, -1]
    # the next word is known before the first word and in pauses; the same word twice is left out
    assert table.next.tolist() == [7, 8, 8, 8, 8, -1, -1, -1, -1, -1]
    assert table.previous.tolist() == [-1, -1, -1, -1, -1, 7, 7, 7, -1, -1]
    assert table.since.fillna(-1).tolist() == [-1, 0, 1, 2, -1, 0, 1, 2, 0, -1]
    assert table.until.fillna(-1).tolist() == [1, 4, 3, 2, 1, 3, 2, 1, -1, -1]
    assert table.third[1:4].tolist() == list(THIRDS)


def test_controls_are_words_from_elsewhere():
    rng = np.random.default_rng(0)
    words = pd.DataFrame({"document": np.repeat(np.arange(20), 6), "word": np.tile(range(6), 20)})
    words["token"] = rng.integers(-1, 12, len(words))
    controls = control_tokens(words)
    assert (controls[["further", "other"]] >= 0).mean().min() > 0.8
    for _, row in controls.iterrows():
        own = words[words.document == row.document]
        assert row.other not in own.token[own.token >= 0].to_numpy()
        near = own.token[(own.word - row.word).abs() < 2].to_numpy()
        assert row.further == -1 or (
            row.further in own.token.to_numpy() and row.further not in near
        )
    assert controls.equals(control_tokens(words))


def test_errors_by_word():
    assert errors_by_word(["It's", "a", "dog."], "it is the dog") == [(0, 0), (1, 0), (0, 0)]
    assert errors_by_word(["The", "dog"], "") == [(0, 1), (0, 1)]
    assert np.isnan(errors_by_word(["twenty", "one"], "twenty one")).all()  # normalised to 21


def test_words_of_a_text_and_their_tokens(pocket):
    ids = torch.tensor(pocket.tokenizer(" Snow is white, not black.").input_ids)
    words = text_words(pocket, ids)
    texts = [pocket.tokenizer.decode(word).strip() for word in words]
    assert texts == ["Snow", "is", "white,", "not", "black."]
    white = pocket.tokenizer.convert_tokens_to_ids("Ġwhite")
    assert [spoken_token(pocket, word) for word in words][:3] == [-1, words[1][0], white]


def test_the_study_of_the_pocket_model(pocket, tmp_path, monkeypatch):
    monkeypatch.setattr(text_in_speech, "Whisper", FakeWhisper)
    questions = [{"question": q, "keys": []} for q in ("What color is snow?", "Is a swan brown?")]
    workspace = Workspace.open(pocket, questions, tmp_path)
    study = TextInSpeech.run(workspace)
    assert study.counts["replies"] == 2
    assert (study.exit_rates().deleted == 100).all()
    assert sorted(study.exits.depth.unique()) == exit_depths(pocket)
    assert not set(exit_depths(pocket)) & set(pocket.branches)
    # the ranks are those of the logit lens of the stock model where the unit is predicted
    row = study.positions[(study.positions.document == 1) & (study.ranks["spoken"][0] >= 0)].iloc[3]
    reply = workspace.replies[1]
    words = align_replies(pocket, workspace.replies, FakeWhisper())
    word = words[(words.document == 1) & (words.word == row.word)].iloc[0]
    units = torch.nonzero(pocket.layout.is_speech(reply.reply)).ravel()
    at = reply.prompt - 1 + int(units[int(word["first"] + row.since)])
    with torch.no_grad():
        states = pocket.model(reply.tokens[None], output_hidden_states=True).hidden_states
        logits = pocket.model.lm_head(pocket.model.model.norm(states[9][0, at]))
    rank = 1 + int((logits[: pocket.layout.text[1]] > logits[word.token]).sum())
    assert abs(study.ranks["spoken"][8, row.name] - rank) <= 1
    # read out at full depth, the units are those of the reply
    documents, positions = with_given(pocket, workspace.replies, words)
    result = probe(pocket, documents, depths=[], statistics=["top1"], hidden_states=[20])
    for document, units in read_out(pocket, result, positions, 0).items():
        assert units.tolist() == pocket.layout.units(workspace.replies[document].reply).tolist()
    again = TextInSpeech.run(Workspace.open(pocket, questions, tmp_path))
    assert again.table() == study.table()


class Faster:
    """Sound of another vocoder at 24 kHz."""

    sampling_rate = 24_000

    def __init__(self, vocoder):
        self.vocoder = vocoder

    def decode(self, units):
        return resampled(self.vocoder.decode(units), 16_000, self.sampling_rate)


def test_words_have_the_same_units_at_any_sampling_rate(pocket, monkeypatch):
    replies = [Document(pocket.generate("What color is snow?", "full").sequences[0], 5)]
    words = align_replies(pocket, replies, FakeWhisper())
    assert len(words) > 2
    monkeypatch.setattr(pocket, "vocoder", Faster(pocket.vocoder))
    pd.testing.assert_frame_equal(align_replies(pocket, replies, FakeWhisper()), words)
    units = {0: pocket.layout.units(replies[0].reply)}
    heard = []
    monkeypatch.setattr(FakeWhisper, "transcribe", lambda _, wave: heard.append(len(wave)) or "")
    word_errors_at(pocket, words, units, FakeWhisper())
    assert heard == [pytest.approx(len(pocket.vocoder.vocoder.decode(units[0])), abs=1)]


def test_words_that_look_like_missing_values_stay_words(tmp_path):
    table = pd.DataFrame({"text": ["None", "null", "NA", "nan", None], "rank": [1, 2, 3, None, 5]})
    write_text(tmp_path / "words.csv", table.to_csv(index=False))
    again = read_table(tmp_path / "words.csv")
    assert again.text[:4].tolist() == ["None", "null", "NA", "nan"]
    assert again.text.isna().tolist() == [False] * 4 + [True]
    assert again["rank"].tolist()[:3] == [1, 2, 3]
    assert again["rank"].isna().tolist() == [False] * 3 + [True, False]


def test_replies_without_words_are_refused(pocket, monkeypatch):
    monkeypatch.setattr(FakeWhisper, "align", lambda self, wave, text: [])
    reply = Document(torch.tensor([5, 638, 1030, 1031]), 1)
    words = align_replies(pocket, [reply], FakeWhisper())
    assert words.empty
    with pytest.raises(EepolicyError, match="no word of the replies"):
        with_given(pocket, [reply], words)
