"""Speech recognition with a stand-in for Whisper, and (slow) with Whisper on the pocket model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.scoring import normalized, word_errors
from eepolicy.speech import asr
from eepolicy.speech.windows import is_repetition, pack_windows
from eepolicy.speech.word_times import WordTime

SECOND = 16_000


@given(st.lists(st.integers(0, 20 * SECOND), max_size=30), st.integers(1, 5))
def test_each_clip_is_in_one_batch(lengths, batch_size):
    batches, long = pack_windows(lengths, 10, batch_size)
    short = [i for batch in batches for i in batch]
    assert short == [i for i, n in enumerate(lengths) if n <= 9 * SECOND]
    assert long == [i for i, n in enumerate(lengths) if n > 9 * SECOND]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_without_a_short_window_all_clips_are_long():
    assert pack_windows([0, SECOND, 40 * SECOND], None) == ([], [0, 1, 2])


@pytest.mark.parametrize(("window", "batch_size"), [(1, 8), (31, 8), (10, 0)])
def test_wrong_windows_are_refused(window, batch_size):
    with pytest.raises(EepolicyError, match="must be"):
        pack_windows([SECOND], window, batch_size)


class StandIn:
    """Stands for faster-whisper's model: a clip is transcribed as its loudness in percent."""

    frames_per_second = 100
    supported_languages = ("en",)

    def __init__(self):
        self.model = SimpleNamespace(n_mels=80, generate=self.generate)
        self.batches: list[tuple[int, int]] = []  # windows and frames of each call
        self.long: list[int] = []
        self.repeats = self.unlikely = False

    def feature_extractor(self, wave):
        return np.full((80, len(wave) // 160 + 1), np.abs(wave).max(), np.float32)

    def encode(self, features):
        self.batches.append((len(features), features.shape[2]))
        return features

    def generate(self, features, prompts, **options):
        assert len(prompts) == len(features)
        return [
            SimpleNamespace(
                sequences_ids=[[round(100 * float(row.max()))] * (50 if self.repeats else 1)],
                scores=[-3.0],
                no_speech_prob=0.9 if self.unlikely else 0.1,
            )
            for row in features
        ]

    def transcribe(self, wave, **options):
        assert options["without_timestamps"] is False
        self.long.append(len(wave))
        words = (f" long {round(100 * float(np.abs(wave).max()))}", " end")
        return (SimpleNamespace(text=word) for word in words), None


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    model = StandIn()
    tokenizer = SimpleNamespace(
        sot_sequence=[0],
        no_timestamps=1,
        language_code="en",
        decode=lambda ids: " " + " ".join(map(str, ids)),
    )
    monkeypatch.setattr(asr, "_source", lambda _: "somewhere")
    monkeypatch.setattr(asr, "_load", lambda *_, **__: model)
    monkeypatch.setattr(asr, "_tokenizer", lambda *_: tokenizer)
    return model


def clip(loudness: float, seconds: float = 2) -> torch.Tensor:
    return torch.full((int(seconds * SECOND),), float(loudness))


def test_transcripts_keep_the_order_of_the_clips(stand_in):
    """Short, long and silent clips in turn; short ones in batches of windows of ten seconds."""
    clips = [clip(0.1), clip(0.2, 40), clip(0), clip(0.3, 9), clip(0.4, 9.1), clip(0.5), clip(0.6)]
    texts = asr.Whisper(batch_size=3).transcribe_clips(clips)
    assert texts == ["10", "long 20 end", "", "30", "long 40 end", "50", "60"]
    assert stand_in.batches == [(3, 1000), (1, 1000)]
    assert stand_in.long == [40 * SECOND, int(9.1 * SECOND)]


def test_silence_is_not_given_to_whisper(stand_in):
    whisper = asr.Whisper()
    assert whisper.transcribe(clip(0, 30)) == whisper.transcribe(clip(9e-4, 30)) == ""
    assert whisper.transcribe(torch.zeros(0)) == ""
    assert not stand_in.batches
    assert not stand_in.long
    assert whisper.transcribe(clip(0.01)) == "1"


def test_a_repetition_is_transcribed_again(stand_in):
    stand_in.repeats = True
    assert asr.Whisper().transcribe(clip(0.1)) == "long 10 end"


def test_an_unlikely_transcript_without_speech_is_dropped(stand_in):
    stand_in.unlikely = True
    assert asr.Whisper().transcribe(clip(0.1)) == ""


def test_other_models_have_no_short_window(stand_in):
    whisper = asr.Whisper("some/model")
    assert whisper.transcribe(clip(0.1)) == "long 10 end"
    assert whisper.name == "Whisper model (float32)"
    assert asr.Whisper("some/model", window=20).transcribe(clip(0.1)) == "10"


def test_words_are_aligned_in_a_window_of_the_clip(stand_in):
    """The pieces are joined to words; the text is the given one."""

    def find_alignment(tokenizer, texts, encoded, frames):
        assert texts == [["so", "it's"]]
        pieces = ((" so", 0.1, 0.4), (" it", 0.4, 0.5), ("'s", 0.5, 0.7), (".", 0.7, frames / 100))
        return [[{"word": w, "start": a, "end": b} for w, a, b in pieces]]

    stand_in.find_alignment = find_alignment
    whisper = asr.Whisper()
    whisper._tokenizer.encode = lambda text: text.split()
    words = [WordTime("so", 0.1, 0.4), WordTime("it's.", 0.4, 0.7)]
    assert whisper.align(clip(0.1), "so  it's\n") == words
    assert whisper.align(clip(0.1, 20), "so it's") == words
    assert stand_in.batches == [(1, 1000), (1, 3000)]
    assert whisper.align(clip(0), "so it's") == whisper.align(clip(0.1), " ") == []
    with pytest.raises(EepolicyError, match=r"at most 30 seconds; got 31\.0"):
        whisper.align(clip(0.1, 31), "so it's")


@pytest.mark.parametrize(
    "wave",
    [torch.zeros(2, 8), torch.zeros(8, dtype=torch.int16), torch.tensor([0.5, float("nan")])],
    ids=["two channels", "integers", "not a number"],
)
def test_wrong_waves_are_refused(stand_in, wave):
    with pytest.raises(EepolicyError, match="wave"):
        asr.Whisper().transcribe(wave)


def test_a_failing_device_is_named(stand_in, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Library libcublas.so.12 is not found")

    monkeypatch.setattr(stand_in, "encode", fail)
    with pytest.raises(EepolicyError, match=r"libcublas.*device='cpu'"):
        asr.Whisper().transcribe(clip(0.1))


@pytest.fixture(scope="module")
def whisper() -> asr.Whisper:
    if asr.missing_asr():
        pytest.skip(asr.missing_asr())
    return asr.Whisper(device="cpu")


def test_real_silence_and_noise(whisper):
    """Whisper transcribes 30 seconds of silence as "you"."""
    assert whisper.transcribe(torch.zeros(30 * SECOND)) == ""
    assert whisper.name == "Whisper tiny.en (float32)"
    with pytest.raises(EepolicyError, match="language 'de'"):
        asr.Whisper(language="de")


@pytest.fixture(scope="module")
def replies(pocket) -> list[tuple[str, torch.Tensor]]:
    """Text and speech of replies of the pocket model."""
    import eepolicy

    questions = [q["question"] for q in eepolicy.held_out("test")[:26]]
    outputs = [o for i in range(0, 26, 8) for o in pocket.generate(questions[i : i + 8])]
    return [(output.text, output.audio) for output in outputs]


def error_rate(texts, transcripts) -> float:
    counts = [word_errors(*pair) for pair in zip(texts, transcripts, strict=True)]
    errors, words = map(sum, zip(*counts, strict=True))
    return errors / words


@pytest.mark.slow
def test_a_long_clip_keeps_its_sentences(whisper, replies):
    """Over 60 seconds; without timestamps a third of the words is lost."""
    texts, waves = zip(*replies, strict=True)
    joined = torch.cat([torch.cat([wave, torch.zeros(SECOND // 5)]) for wave in waves])
    assert len(joined) > 60 * SECOND
    alone = error_rate(texts, whisper.transcribe_clips(waves))
    together = error_rate([" ".join(texts)], [whisper.transcribe(joined)])
    assert together < alone + 0.05


@pytest.mark.slow
def test_aligned_words_are_on_the_right_side_of_a_pause(whisper, replies):
    short = [(text, wave) for text, wave in replies if len(wave) < 3 * SECOND][:6]
    for (first, one), (second, two) in zip(short[::2], short[1::2], strict=True):
        words = whisper.align(torch.cat([one, torch.zeros(SECOND), two]), f"{first} {second}")
        assert [word.word for word in words] == [*first.split(), *second.split()]
        assert all(word.start <= word.end for word in words)
        pause = len(one) / SECOND + 0.5
        before = len(first.split())
        assert all(word.start < pause for word in words[:before])
        assert all(word.end > pause for word in words[before:])
        assert all(word.start > pause for word in words[before + 1 :])


@pytest.mark.slow
def test_a_transcript_does_not_depend_on_other_clips(whisper, replies):
    waves = [wave for _, wave in replies[:12]]
    forwards = whisper.transcribe_clips(waves)
    assert whisper.transcribe_clips(waves[::-1]) == forwards[::-1]
    assert [whisper.transcribe(wave) for wave in waves[:4]] == forwards[:4]
    padded = asr.Whisper(device="cpu", window=None).transcribe_clips(waves)
    same = [normalized(a) == normalized(b) for a, b in zip(forwards, padded, strict=True)]
    assert np.mean(same) > 0.5  # measured 0.83
    assert not any(map(is_repetition, forwards))
