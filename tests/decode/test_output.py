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

from eepolicy import DraftStatus, HookedModel, Trace
from eepolicy.decode.output_html import HEIGHT, MAX_TOKENS, depth_strip
from eepolicy.html import SPEECH_COLOUR, TEXT_COLOUR


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
    assert repr(output.trace) in shown


def test_without_speech_there_is_no_player(output):
    assert "<audio" not in replace(output, vocoder=None)._repr_html_()
    assert "<audio" not in replace(output, units=output.units[:0])._repr_html_()
    assert "(no text)" in replace(output, text=None)._repr_html_()


class WithoutPackage:
    """A vocoder whose package is not there; its message must be escaped."""

    def decode(self, units):
        raise ModuleNotFoundError("No module named '<b>'")


def test_a_vocoder_that_fails_leaves_the_rest_of_the_display(output):
    shown = replace(output, vocoder=WithoutPackage())._repr_html_()
    assert "the sound cannot be shown: ModuleNotFoundError(" in shown
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert depth_strip(output.trace) in shown
    with pytest.raises(ModuleNotFoundError):
        _ = replace(output, vocoder=WithoutPackage()).audio


def test_bars_are_as_high_as_depths(output):
    trace, strip = output.trace, depth_strip(output.trace)
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', strip)]
    assert heights == pytest.approx((HEIGHT * trace.depth / 6).tolist(), abs=0.05)
    colours = re.findall(r'<rect [^>]*fill="(#\w+)"', strip)
    assert colours == [(TEXT_COLOUR, SPEECH_COLOUR)[m] for m in trace.modality.tolist()]
    assert "token 0: text, depth 6 of 6" in strip
    assert "<circle" not in strip


def test_replacements_and_long_replies_are_marked(output):
    trace = output.trace
    status = trace.draft_status.copy()
    status[3] = DraftStatus.REPLACEMENT
    strip = depth_strip(replace(trace, draft_status=status))
    assert strip.count("<circle") == 1
    assert "dot: replaces a rejected draft" in strip
    plain = {k: v * 40 if isinstance(v, list) else v for k, v in trace.to_dict().items()}
    long = Trace.from_dict(plain)
    assert len(long) > MAX_TOKENS
    assert depth_strip(long).count("<rect") == MAX_TOKENS
    assert f"the first {MAX_TOKENS} of {len(long)} tokens" in depth_strip(long)
    assert depth_strip(trace[:0]) == ""
