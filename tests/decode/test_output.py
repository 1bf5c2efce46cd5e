"""How a notebook shows a reply."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import pytest
import soundfile
import torch
from conftest import LAYOUT, tiny

from eepolicy import HookedModel


class Voice:
    """Two samples a unit."""

    def decode(self, units):
        return torch.linspace(-0.5, 0.5, 2 * len(units))


@pytest.fixture(scope="module")
def output():
    model = HookedModel(tiny("llama"), LAYOUT, vocoder=Voice())
    return model.generate(torch.arange(5, 15), "static@2", max_new_tokens=30)


def test_the_player_plays_the_speech(output):
    [sound] = re.findall(
        '<audio controls src="data:audio/wav;base64,([^"]*)">', output._repr_html_()
    )
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
    assert rate == output.sampling_rate
    assert torch.allclose(torch.from_numpy(wave).float(), output.audio, atol=1e-4)


def test_the_text_is_escaped(output):
    shown = replace(output, text="<script>alert('1') & \"2\"</script>")._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(&#x27;1&#x27;) &amp; &quot;2&quot;&lt;/script&gt;" in shown
    assert "mean depth" in shown


def test_without_speech_there_is_no_player(output):
    assert "<audio" not in replace(output, vocoder=None)._repr_html_()
    assert "<audio" not in replace(output, units=output.units[:0])._repr_html_()
    assert "(no text)" in replace(output, text=None)._repr_html_()
