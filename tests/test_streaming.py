"""Speech while it is decoded: pieces, order, cost, and what is refused."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel
from eepolicy.speech.mel import MELS
from eepolicy.speech.neural_vocoder import VocoderNetwork
from eepolicy.speech.units import Units
from eepolicy.streaming import AudioStream


@pytest.fixture(scope="module")
def model() -> HookedModel:
    """A small model that speaks through a random vocoder."""
    torch.manual_seed(0)
    network = VocoderNetwork(width=16, blocks=1, order=6).eval().requires_grad_(False)
    low, high = LAYOUT.speech
    units = Units(torch.randn(high - low, 4 * MELS) - 5, network)
    return HookedModel(tiny("llama"), LAYOUT, vocoder=units)


PROMPT = torch.arange(5, 15)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("accept", ["all", "exact"])
def test_pieces_are_the_audio_of_generate(model, chunk, accept):
    options = {"max_new_tokens": 50, "accept": accept}
    stream = model.stream_audio(PROMPT, "static@2", chunk=chunk, **options)
    assert stream.ttfa is None
    pieces = list(stream)
    expected = model.generate(PROMPT, "static@2", **options)
    assert torch.equal(stream.output.tokens, expected.tokens)
    assert stream.output.trace.depth.tolist() == expected.trace.depth.tolist()
    # rounding of products of other sizes; measured 1e-7
    torch.testing.assert_close(torch.cat(pieces), expected.audio, rtol=0, atol=1e-4)
    assert len(pieces) > 2 or chunk == 1000
    assert 0 < stream.ttfa <= stream.output.seconds
    assert list(stream) == []  # it has ended


def test_the_first_piece_needs_no_more_tokens_than_its_look_ahead(model, monkeypatch):
    from eepolicy.decode.session import DecodeSession

    steps, step = [], DecodeSession.step

    def counted(self):
        steps.append(1)
        step(self)

    monkeypatch.setattr(DecodeSession, "step", counted)
    stream = model.stream_audio(PROMPT, "full", 60, chunk=1)
    next(stream)
    tokens = model.generate(PROMPT, "full", 60).tokens
    taken = len(steps) - len(tokens)
    units = LAYOUT.units(tokens[:taken])
    assert len(units) == model.vocoder.look_ahead
    assert stream.output is None  # a stream that is not read further decodes no further


def test_seeds_and_stock_options_are_taken(model):
    options = {"do_sample": True, "temperature": 0.9, "seed": 3, "max_new_tokens": 40}
    stream = model.stream_audio(PROMPT, "static@2", **options)
    list(stream)
    assert torch.equal(stream.output.tokens, model.generate(PROMPT, "static@2", **options).tokens)


class Mute:
    """A vocoder that cannot stream."""

    def decode(self, units):
        return torch.zeros(len(units))


def test_what_cannot_stream_is_refused(model):
    mute = HookedModel(tiny("llama"), LAYOUT, vocoder=Mute())
    with pytest.raises(EepolicyError, match="needs a vocoder with a method `stream`"):
        mute.stream_audio(PROMPT)
    with pytest.raises(EepolicyError, match="answers one prompt; got 2 rows"):
        model.stream_audio([PROMPT, PROMPT])
    with pytest.raises(EepolicyError, match="`chunk` must be at least 1 unit; got 0"):
        model.stream_audio(PROMPT, chunk=0)
    with pytest.raises(EepolicyError, match=r"keeps no record: use generate\(\.\.\., record="):
        model.stream_audio(PROMPT, record=True)
    plain = HookedModel(tiny("llama"), LAYOUT, vocoder=Units(model.vocoder.codebook))
    with pytest.raises(EepolicyError, match="Griffin-Lim needs all units at once"):
        plain.stream_audio(PROMPT)


def test_a_stream_that_failed_has_no_reply(model):
    def pieces():
        yield torch.zeros(3)
        raise RuntimeError("no unit")

    stream = AudioStream(pieces(), 16_000, 0.0, lambda: "a reply")
    next(stream)
    with pytest.raises(RuntimeError, match="no unit"):
        next(stream)
    assert list(stream) == []
    assert stream.output is None
