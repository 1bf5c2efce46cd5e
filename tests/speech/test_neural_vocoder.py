"""The neural vocoder on random small networks: alone, in batches, in a stream, in a file."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eepolicy import EepolicyError
from eepolicy.heads.fingerprint import digest
from eepolicy.speech.mel import MELS, griffin_lim
from eepolicy.speech.neural_vocoder import VocoderNetwork
from eepolicy.speech.units import UNIT_SAMPLES, Units


@pytest.fixture(scope="module")
def units() -> Units:
    """Random units, and a random network with all parts of speech."""
    torch.manual_seed(0)
    network = VocoderNetwork(width=16, blocks=2, order=6).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.requires_grad_(False)
    network.write.weight *= 0.2
    network.write.bias[[2, 8]] = -4.0  # gains of both filters as in speech
    return Units(torch.randn(50, 4 * MELS) * 2 - 5, network)


def codes(seed: int, length: int) -> torch.Tensor:
    return torch.randint(50, (length,), generator=torch.Generator().manual_seed(seed))


def test_decoding_is_deterministic(units):
    first = units.decode(codes(0, 30))
    assert first.shape == (30 * UNIT_SAMPLES,)
    assert torch.equal(first, units.decode(codes(0, 30)))
    assert torch.isfinite(first).all()
    assert 0.01 < first.abs().max() <= 1
    assert not torch.equal(first, units.decode(codes(1, 30)))


@settings(max_examples=10)
@given(st.integers(0, 99), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_rows_decode_alike_alone_and_in_a_batch(units, seed, lengths):
    rows = [codes(seed + i, length) for i, length in enumerate(lengths)]
    for row, sound in zip(rows, units.decode_batch(rows), strict=True):
        # rounding of products of other sizes: measured 2e-6; pulses turn it into up to 5e-5
        torch.testing.assert_close(sound, units.decode(row), rtol=0, atol=1e-3)


@settings(max_examples=15)
@given(st.integers(0, 99), st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_a_stream_equals_the_whole_waveform(units, seed, sizes):
    row = codes(seed, sum(sizes))
    pieces = list(units.stream(row.split(sizes)))
    assert all(len(piece) for piece in pieces)
    joined = torch.cat([torch.zeros(0), *pieces])
    # as above; the phase of the pulses adds up rounding over the reply
    torch.testing.assert_close(joined, units.decode(row), rtol=0, atol=1e-3)


def test_a_stream_needs_the_look_ahead_and_no_more(units):
    row = codes(0, 20)
    counts = []

    def fed():
        for i in range(20):
            counts.append(i + 1)
            yield row[i : i + 1]

    streamed = 0
    for piece in units.stream(fed()):
        streamed += len(piece)
        assert streamed >= (counts[-1] - units.look_ahead) * UNIT_SAMPLES
        assert streamed <= counts[-1] * UNIT_SAMPLES
    later = row.clone()
    later[units.look_ahead + 1 :] = 0  # units beyond the look-ahead change nothing
    first = slice(0, UNIT_SAMPLES)
    assert torch.equal(units.decode(later)[first], units.decode(row)[first])


def test_a_vocoder_round_trips_through_a_file(units, tmp_path):
    units.save(tmp_path / "units.safetensors")
    again = Units.load(tmp_path / "units.safetensors")
    assert repr(again) == repr(units)
    assert repr(again.network) == "VocoderNetwork(16, 2, 6)"
    for name, tensor in units.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], tensor.bfloat16().float())
    assert digest(again.network) != digest(units.network)  # rounded to bfloat16
    again.save(tmp_path / "units.safetensors")
    assert digest(Units.load(tmp_path / "units.safetensors").network) == digest(again.network)


def test_without_a_network_it_is_griffin_lim(units):
    plain = Units(units.codebook)
    frames = units.codebook[codes(0, 5)].reshape(-1, MELS)
    assert torch.equal(plain.decode(codes(0, 5)), griffin_lim(frames))
    assert len(plain.decode_batch([codes(0, 5), codes(0, 0)])[1]) == 0
    with pytest.raises(EepolicyError, match="Griffin-Lim needs all units at once"):
        plain.stream([codes(0, 5)])


def test_unknown_units_are_refused(units):
    with pytest.raises(EepolicyError, match="units are 0 to 49; got 3 to 50"):
        units.decode(torch.tensor([3, 50]))
    with pytest.raises(EepolicyError, match="units are 0 to 49"):
        list(units.stream([torch.tensor([3]), torch.tensor([-1])]))


def test_the_pitch_is_that_of_the_sound():
    """A network whose filters pass all: the pulses of the sound are one period apart."""
    network = VocoderNetwork(width=16, blocks=2, order=6).eval().requires_grad_(False)
    network.write.weight.zero_()
    network.write.bias.zero_()
    network.write.bias[0], network.write.bias[1] = 0.3, 9.0  # pitch, and voiced
    spoken = Units(torch.randn(50, 4 * MELS), network)
    pitch = spoken.pitch(codes(0, 25))
    assert pitch.shape == (25, 4)
    wave = spoken.decode(codes(0, 25)).double()[4000:12000]
    wave -= wave.mean()
    products = torch.stack([wave[:-lag] @ wave[lag:] for lag in range(60, 200)])
    period = 60 + int(products.argmax())
    assert pitch.unique().numel() == 1
    assert 16000 / period == pytest.approx(pitch[0, 0].item(), rel=0.01)
    network.write.bias[1] = -9.0
    assert spoken.pitch(codes(0, 25)).isnan().all()


def test_pitch_of_no_units_and_without_a_network(units):
    assert units.pitch(codes(0, 0)).shape == (0, 4)
    assert units.pitch(codes(0, 3)).shape == (3, 4)
    assert Units(units.codebook).pitch(codes(0, 3)) is None
    with pytest.raises(EepolicyError, match="units are 0 to 49"):
        units.pitch(torch.tensor([50]))
