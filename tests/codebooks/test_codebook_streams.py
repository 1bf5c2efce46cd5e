"""Streamed sound, records and compiled layers of models with several codebooks."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from eepolicy import EarlyExitConfig, EepolicyError
from eepolicy.codebooks import Code2WavVocoder, CodebookConfig, HookedCodebookModel, MimiVocoder
from eepolicy.testing.codebooks import csm_config, random_csm, random_qwen3_omni

PROMPT = torch.tensor([7, 3, 21, 9])
OPTIONS = dict(policy="static@2", depth_policy="spark:odd@1", codebooks="confidence<0.3@2")


@pytest.fixture(scope="module")
def stock():
    config = csm_config()
    config.codec_config.decoder_config.sliding_window = 6  # shorter than the replies here
    config.codec_config.sliding_window = 6
    return random_csm(config)


@pytest.fixture(scope="module")
def model(stock):
    return HookedCodebookModel(stock)


def frames(count, missing=False):
    """Random codes (frames, codebooks), some of them left out."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(32, (count, 5), generator=generator)
    if missing:
        counts = torch.randint(6, (count, 1), generator=generator)
        codes[torch.arange(5) >= counts] = -1
    return codes


# streams


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("missing", [False, True])
def test_pieces_of_mimi_are_the_sound_of_the_stock_codec(stock, chunk, missing):
    codes = frames(19, missing)
    vocoder = MimiVocoder(stock.codec_model)
    pieces = list(vocoder.stream(codes.split(chunk)))
    samples = int(stock.codec_model.config.sampling_rate / stock.codec_model.config.frame_rate)
    assert [len(piece) for piece in pieces] == [samples * len(c) for c in codes.split(chunk)]
    expected = vocoder.decode(codes)
    if not missing:
        with torch.no_grad():
            expected = stock.codec_model.decode(codes.T[None]).audio_values[0, 0].float()
    torch.testing.assert_close(torch.cat(pieces), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 100])
def test_a_streamed_reply_is_that_of_generate(model, chunk):
    expected = model.generate(PROMPT, max_new_tokens=11, **OPTIONS)
    stream = model.stream_audio(PROMPT, chunk=chunk, max_new_tokens=11, **OPTIONS)
    assert "not at its end" in stream._repr_html_()
    assert stream.ttfa is None
    pieces = list(stream)
    assert stream.output.codes.tolist() == expected.codes.tolist()
    torch.testing.assert_close(torch.cat(pieces), expected.audio, rtol=0, atol=1e-6)
    assert len(pieces) == {None: 4, 1: 11, 100: 1}[chunk]
    assert 0 < stream.ttfa <= stream.output.seconds
    assert "<audio" in stream._repr_html_()


def test_the_frame_that_ends_a_reply_is_not_streamed():
    stock = random_csm(csm_config(codebooks=2))
    first = stock.generate(input_ids=PROMPT[None], max_new_tokens=8)[0, :, 0].tolist()
    end = next(i for i in range(1, 8) if first[i] not in first[:i])
    stock.config.codebook_eos_token_id = first[end]
    stream = HookedCodebookModel(stock).stream_audio(PROMPT, chunk=1, max_new_tokens=8)
    assert len(list(stream)) == end
    assert stream.output.ended


def test_the_first_piece_needs_no_more_frames_than_a_chunk(model, monkeypatch):
    from eepolicy.codebooks.session import FrameSession

    steps, step = [], FrameSession.step
    monkeypatch.setattr(FrameSession, "step", lambda self: (steps.append(1), step(self)))
    next(model.stream_audio(PROMPT, chunk=2, max_new_tokens=9))
    assert len(steps) == 2


@pytest.mark.parametrize("chunk", [1, 4, 30])
def test_pieces_of_qwen3_omni_lose_no_sound(chunk):
    """As many samples as the stock vocoder of whole replies, whose pieces would be shorter."""
    code2wav = random_qwen3_omni(dtype=torch.float64).code2wav
    codes = torch.randint(32, (20, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = code2wav(codes.T[None])[0, 0].float()
    pieces = list(Code2WavVocoder(code2wav).stream(codes.split(chunk)))
    torch.testing.assert_close(torch.cat(pieces), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([PROMPT, PROMPT], {}, "answers one prompt; got 2"),
        (PROMPT, dict(chunk=0), "`chunk` must be at least 1"),
        (PROMPT, dict(record=True), "stream_audio keeps no record"),
    ],
)
def test_unsupported_streams_are_refused(model, prompt, options, message):
    with pytest.raises(EepolicyError, match=message):
        model.stream_audio(prompt, max_new_tokens=2, **options)


def test_a_codec_that_reads_later_frames_is_refused(stock):
    vocoder = MimiVocoder(random_csm().codec_model)
    vocoder.codec.config.use_causal_conv = False
    with pytest.raises(EepolicyError, match="read later frames"):
        next(vocoder.stream([frames(2)]))


# records


@pytest.mark.parametrize("fill", ["catch_up", "propagate"])
def test_a_record_has_the_layers_that_ran(model, fill):
    """With exact keys and values, a record has the values of a probe of the reply."""
    outputs = model.generate(
        [PROMPT, PROMPT[:2]], "spark:even@2", fill=fill, record=True, max_new_tokens=5
    )
    for out in outputs:
        record = out.record
        depths = out.trace.backbone.depth
        assert record.depth_used.tolist() == depths.tolist()
        assert record.next.tolist() == out.codes[:, 0].tolist()
        ran = ~np.isnan(record.entropy)  # (depths, frames)
        assert all(ran[:depth, i].all() for i, depth in enumerate(depths))
        assert not ran[:, -1][depths[-1] :].any()  # no later frame computes the last one
        read = [record.top1[depth - 1, i] for i, depth in enumerate(depths)]
        assert read == out.codes[:, 0].tolist()
        if fill == "catch_up":
            probed = model.probe(out).entropy
            np.testing.assert_allclose(record.entropy[ran], probed[ran], atol=1e-5)


def test_a_record_has_the_requested_statistics(model):
    out = model.generate(PROMPT, record={"statistics": ["entropy"], "top_k": 2}, max_new_tokens=3)
    assert out.record.statistics == ("entropy",)
    assert out.record.top_tokens.shape == (4, 3, 2)
    assert model.generate(PROMPT, max_new_tokens=2).record is None


def test_the_depth_decoder_keeps_no_record():
    with pytest.raises(EepolicyError, match="cache begins anew with each frame"):
        CodebookConfig(depth_decoder=EarlyExitConfig(record=True))


# compiled layers


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_layers_give_the_same_codes():
    model = HookedCodebookModel(random_csm(dtype=torch.float32))
    for options in ({}, OPTIONS):
        expected = model.generate(PROMPT, max_new_tokens=5, **options)
        out = model.generate(PROMPT, max_new_tokens=5, compile=True, **options)
        assert out.codes.tolist() == expected.codes.tolist()
    made = [layers.executor(True) for layers in model._compiled]
    assert all(executor.kernels for executor in made)  # not the stock layers
