"""Codecs of transformers as vocoders, against their own `decode` and `encode`."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import torch
from conftest import LAYOUT, tiny
from small_codec import small_codec

from eepolicy import EepolicyError, HookedModel
from eepolicy.heads.fingerprint import digest
from eepolicy.speech import codecs
from eepolicy.speech.codecs import load_codec
from eepolicy.speech.vocoders import decode_at

RATES = {"xcodec2": (16_000, 320), "neucodec": (24_000, 480)}


@pytest.fixture(scope="module", params=list(RATES))
def codec(request, tmp_path_factory):
    """The stock codec, the vocoder that reads it from a folder, and its rates."""
    stock = small_codec(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    stock.save_pretrained(folder)
    return stock, load_codec(folder), RATES[request.param]


def direct(stock, units) -> torch.Tensor:
    """The waveform that transformers gives."""
    with torch.no_grad():
        return stock.decode(audio_codes=units[None, None]).audio_values[0, 0]


def test_the_waveform_is_that_of_transformers(codec):
    stock, vocoder, (rate, samples) = codec
    assert (vocoder.sampling_rate, vocoder.unit_samples, vocoder.num_codes) == (rate, samples, 64)
    torch.manual_seed(1)
    rows = [torch.randint(0, 64, (n,)) for n in (17, 1, 0, 17, 5)]
    waves = vocoder.decode_batch(rows)
    for units, wave in zip(rows, waves, strict=True):
        assert wave.shape == (samples * len(units),)
        if len(units):
            # rounding; measured 8e-7 at a largest sample of 0.3
            torch.testing.assert_close(wave, direct(stock, units), rtol=0, atol=1e-5)
    assert vocoder.decode(rows[2]).shape == (0,)
    assert len(decode_at(vocoder, rows[0])) == 17 * 320
    elsewhere = dataclasses.replace(vocoder, device="cuda:1")
    assert digest(elsewhere) == digest(vocoder)  # a run can continue on another GPU


def test_decoding_part_of_the_units_gives_another_sound(codec):
    """The reason why this vocoder has no `stream`."""
    _, vocoder, (_, samples) = codec
    units = torch.arange(40)
    part = vocoder.decode(units[:30])
    whole = vocoder.decode(units)
    assert (whole[: 5 * samples] - part[: 5 * samples]).abs().max() > 0.1 * whole.abs().max()
    model = HookedModel(tiny("llama"), LAYOUT, vocoder=vocoder)
    with pytest.raises(EepolicyError, match="which attends to all units of a reply"):
        model.stream_audio(torch.arange(5))


def test_a_recording_is_encoded_as_by_transformers(codec):
    stock, vocoder, _ = codec
    torch.manual_seed(2)
    wave = 0.1 * torch.randn(3300)
    # by hand: eleven units of 20 ms; two frames of 10 ms a unit, of 25 ms each
    padded = torch.cat([wave, torch.zeros(3520 - 3300)])
    from transformers import SeamlessM4TFeatureExtractor

    framed = torch.cat([torch.zeros(160), padded, torch.zeros(160)]).numpy()
    features = SeamlessM4TFeatureExtractor()(framed, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        codes = stock.encode(padded[None, None], features["input_features"]).audio_codes
    assert vocoder.encode(wave).tolist() == codes.flatten().tolist()
    assert vocoder.encode(wave.double()).tolist() == codes.flatten().tolist()
    assert len(codes.unique()) > 2
    assert len(vocoder.encode(padded)) == 12  # the authors add a unit to whole ones
    for wrong in (wave[None], wave[:0], torch.arange(5)):
        with pytest.raises(EepolicyError, match="one channel of floats"):
            vocoder.encode(wrong)


def test_a_pickled_vocoder_reloads_its_codec(codec):
    stock, vocoder, _ = codec
    there = pickle.loads(pickle.dumps(vocoder))
    assert there == vocoder
    assert not there._loaded
    units = torch.arange(6)
    torch.testing.assert_close(there.decode(units), direct(stock, units), rtol=0, atol=1e-5)


def test_units_outside_the_codebook_are_refused(codec):
    _, vocoder, _ = codec
    for units in (torch.tensor([3, 64]), torch.tensor([-1])):
        with pytest.raises(EepolicyError, match="units are 0 to 63; got"):
            vocoder.decode(units)


def test_other_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(EepolicyError, match="has no config of a codec"):
        load_codec(tmp_path / "none")
    tiny("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(EepolicyError, match="the model type 'llama'; the codec of this model is x"):
        load_codec(tmp_path / "llama")
    stock = small_codec("neucodec")
    folder = tmp_path / "codec"
    stock.save_pretrained(folder)
    with pytest.raises(EepolicyError, match="type 'neucodec'; the codec of this model is xcodec2"):
        load_codec(folder, codec="xcodec2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(
        EepolicyError, match=r"lacks \d+ weights, such as acoustic_decoder.layers.2"
    ):
        load_codec(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(EepolicyError, match="cannot be loaded"):
        load_codec(folder)
    monkeypatch.setattr(codecs, "CONFIG_MAPPING", {})  # an older transformers
    with pytest.raises(EepolicyError, match=r"codec neucodec needs transformers 5\.17 or newer"):
        load_codec(folder)
