"""Figures of a probe: axes of the caller, units, and tokens that look like mathematics."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from eepolicy import EepolicyError, probe


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
    assert one.get_ylabel() == "entropy (nats)"
    assert one.get_xlabel() == "depth (layers)"
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
def test_what_cannot_be_drawn(result):
    with pytest.raises(EepolicyError, match="can draw agreement, entropy"):
        result.plot.heatmap("top1")
    with pytest.raises(EepolicyError, match="no document 3, only 0"):
        result.plot.heatmap(document=3)


@pytest.mark.parametrize("family", ["llama"])
def test_a_notebook_displays_figures_without_an_extension(result):
    for figure in (result.plot.layers(), result.plot.heatmap("kl")):
        again = pickle.loads(pickle.dumps(figure))
        for each in (figure, again):
            assert each._repr_png_().startswith(b"\x89PNG")
