"""Figures of a probe: axes of the caller, units, and tokens that look like mathematics."""

from __future__ import annotations

import base64
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny
from matplotlib.figure import Figure

from eepolicy import EepolicyError, HookedModel, probe


class Names:
    """A tokenizer whose tokens break matplotlib's mathematics."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [("$$", r"$\frac$", "Ġ_^")[i % 3] for i in ids]


@pytest.fixture
def result(hooked):
    hooked.tokenizer = Names()
    return probe(hooked, torch.arange(9))


@pytest.mark.parametrize("family", ["llama"])
def test_tokens_with_dollars_are_drawn(result, tmp_path):
    figure = result.plot.heatmap("kl")
    figure.savefig(tmp_path / "heatmap.png")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == result.words
    assert {"$$", r"$\frac$"[:7]} & {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize("family", ["llama"])
def test_figures_draw_on_the_callers_axes(result):
    figure = Figure()
    one, two = figure.subplots(1, 2)
    assert result.plot.layers("entropy", ax=one) is figure
    assert one.get_ylabel() == "entropy, nats"
    assert one.get_xlabel() == "depth, layers"
    assert one.get_legend() is not None
    assert result.plot.heatmap("entropy", ax=two) is figure
    np.testing.assert_allclose(np.asarray(two.get_images()[0].get_array()), result.entropy)
    axes = Figure().subplots(1, 2)
    result.plot.layers("kl", "js", ax=list(axes))
    assert all(ax.get_lines() for ax in axes)
    default = Figure().subplots()
    result.plot.layers(ax=default)
    assert "share of tokens" in default.get_ylabel().replace("\n", " ")
    with pytest.raises(EepolicyError, match="give one ax a statistic: 2 for kl, js; got 1"):
        result.plot.layers("kl", "js", ax=default)


@pytest.mark.parametrize("family", ["llama"])
def test_statistics_and_documents_that_cannot_be_drawn_are_refused(result):
    with pytest.raises(EepolicyError, match="can draw agreement, entropy"):
        result.plot.heatmap("top1")
    with pytest.raises(EepolicyError, match="no document 3, only 0"):
        result.plot.heatmap(document=3)


@pytest.mark.parametrize("family", ["llama"])
def test_a_notebook_displays_figures_without_an_extension(result):
    own = Figure()
    assert result.plot.layers("kl", ax=own.subplots()) is own
    for figure in (result.plot.layers(), result.plot.heatmap("kl"), own):
        again = pickle.loads(pickle.dumps(figure))
        for each in (figure, again):
            assert each._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("family", ["llama"])
def test_a_notebook_shows_averages_and_a_heatmap(result):
    shown = result._repr_html_()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", shown)
    rows = [cells[i : i + 7] for i in range(0, len(cells), 7)]
    table = result.by_modality()
    assert [row[:2] for row in rows] == [["text", str(d)] for d in range(1, 7)]
    assert [row[3] for row in rows] == [f"{value:.3f}" for value in table.entropy]
    [picture] = re.findall(r'src="data:image/png;base64,([^"]*)"', shown)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert "entropy of document 0" in shown


def test_a_notebook_shows_a_probe_without_statistics_to_draw():
    model = HookedModel(tiny("llama"))
    shown = probe(model, torch.arange(9), statistics=("top1",))._repr_html_()
    assert "ProbeResult(6 of 6 depths, 9 tokens" in shown
    assert "<img" not in shown


class Undecodable:
    """A tokenizer that raises."""

    def convert_ids_to_tokens(self, ids):
        raise OSError("no vocabulary")


@pytest.mark.parametrize("family", ["llama"])
def test_a_notebook_shows_the_parts_of_a_probe_that_can_be_shown(result):
    nothing = result[:0]
    assert "6 of 6 depths, 0 tokens () of 0 documents" in nothing._repr_html_()
    assert len(nothing.by_modality()) == len(nothing.summary()) == 0
    shown = replace(result, tokenizer=Undecodable())._repr_html_()
    assert "<table" in shown
    assert "the heatmap cannot be shown" in shown
