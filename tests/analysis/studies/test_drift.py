"""Divergences against scipy and loops; drift against what the contracts say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pickled_workers
import pytest
import torch
from conftest import LAYERS, LAYOUT, tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from eepolicy import HookedModel
from eepolicy.analysis.stats.bootstrap import mean_differences, means, paired_difference, ratio
from eepolicy.analysis.stats.clustered import sums
from eepolicy.analysis.stats.divergences import (
    divergences,
    edit_share,
    first_difference,
    warped_distance,
)
from eepolicy.analysis.studies.base import BatchOptions
from eepolicy.analysis.studies.drift import drift
from eepolicy.analysis.studies.drift_meter import state_drift
from eepolicy.workers import WorkerConfig


@given(st.integers(0, 500))
def test_divergences_are_scipys(seed):
    generator = torch.Generator().manual_seed(seed)
    seen, full = 3 * torch.randn(2, 4, 30, generator=generator)
    measured = divergences(seen, full, k=5)
    q, p = (x.double().softmax(-1).numpy() for x in (seen, full))
    np.testing.assert_allclose(measured["kl"], entropy(p, q, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(measured["js"], jensenshannon(p, q, axis=-1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(measured["tv"], np.abs(p - q).sum(-1) / 2, rtol=1e-5)
    assert measured["top1"].tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()
    best = [{*np.argsort(-x)[:5]} for x in p], [{*np.argsort(-x)[:5]} for x in q]
    assert measured["top_k"].tolist() == [len(a & b) / 5 for a, b in zip(*best, strict=True)]


@given(st.integers(0, 500))
def test_divergences_have_their_bounds(seed):
    generator = torch.Generator().manual_seed(seed)
    seen, full = 10 * torch.randn(2, 4, 30, generator=generator)
    measured, turned = divergences(seen, full), divergences(full, seen)
    assert (measured["kl"] >= 0).all()
    assert (measured["js"] <= np.log(2) + 1e-9).all()
    assert (measured["tv"] <= 1 + 1e-9).all()
    for name in ("js", "tv", "top1", "top_k"):
        np.testing.assert_allclose(measured[name], turned[name], atol=1e-12)
    same = divergences(full, full)
    assert max(same["kl"].max(), same["js"].max(), same["tv"].max()) < 1e-15


def test_sequences():
    assert edit_share([1, 2, 3, 4], [1, 3, 4, 5]) == 0.5
    assert edit_share([], []) == 0
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, 4))
def test_warping_is_the_cheapest_of_all_paths(seed, rows, columns):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(rows, 3)), rng.normal(size=(columns, 3))
    near = np.linalg.norm(first[:, None] - second[None], axis=-1)

    def paths(i, j):
        if (i, j) == (0, 0):
            return [[(0, 0)]]
        return [
            [*path, (i, j)]
            for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1))
            if a >= 0 and b >= 0
            for path in paths(a, b)
        ]

    cheapest = min(paths(rows - 1, columns - 1), key=lambda p: sum(near[at] for at in p))
    expected = sum(near[at] for at in cheapest) / len(cheapest)
    assert warped_distance(first, second) == pytest.approx(expected, abs=1e-6)
    assert warped_distance(first, first) == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 200))
def test_means_over_documents_are_those_of_ratio(seed):
    rng = np.random.default_rng(seed)
    document = np.sort(rng.integers(0, 8, 50))
    values = rng.normal(size=(3, 50))
    values[1, rng.random(50) < 0.3] = np.nan
    totals, counts = sums(values, document)
    measured = means(totals, counts)
    other = sums(values + rng.normal(size=50), document)
    gain = mean_differences(other, (totals, counts))
    for i in range(3):
        alone = ratio(totals[:, i], counts[:, i])
        assert measured.value[i] == pytest.approx(np.nanmean(values[i]))
        assert measured.low[i] == pytest.approx(alone.low)
        assert measured.high[i] == pytest.approx(alone.high)
        pair = paired_difference((other[0][:, i], totals[:, i]), (other[1][:, i], counts[:, i]))
        assert gain.value[i] == pytest.approx(pair.value)
        assert (gain.low[i], gain.high[i]) == pytest.approx((pair.low, pair.high))


class Words:
    """A tokenizer for the tiny models."""

    def __call__(self, text, add_special_tokens):
        return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

    def decode(self, ids):
        return ""


QUESTIONS = ["cat", "a horse", "it", "snow"]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_catch_up_leaves_no_drift_behind(family):
    hooked = HookedModel(tiny(family), layout=LAYOUT, tokenizer=Words())
    runs = [("spark:triple@3", "catch_up"), ("spark:triple@3", "propagate"), ("full", "catch_up")]
    measured = drift(hooked, QUESTIONS, runs, BatchOptions(size=4, max_new_tokens=24))
    exact = measured.speech("spark:triple@3", "catch_up")
    whole = exact.since_refresh == 0
    assert 0 < whole.sum() < len(exact)
    # measured 2e-10 nats, 2e-6 of the norm: float32
    assert exact[whole].kl.max() < 1e-8
    assert exact.state.max() < 2e-5
    assert exact.drift_kl.max() < 1e-8
    assert (exact[whole].top1 == 1).all()
    # a shallow readout differs from full depth, but its hidden state is exact
    assert exact[~whole].kl.mean() > 1e-3
    rough = measured.speech("spark:triple@3", "propagate")
    assert rough[rough.since_refresh == 0].kl.mean() > 1e-5
    assert (rough[rough.since_refresh == 0].drift_kl == rough[rough.since_refresh == 0].kl).all()
    # states are exact below the exit, and not above it
    assert rough[rough.depth == 3].state.max() < 2e-5
    assert rough[(rough.depth == LAYERS) & (rough.chunk > 1)].state.mean() > 1e-3
    full = measured.replies[measured.replies.policy == "full"]
    assert (full.same == 1).all()
    assert (full.edit_share == 0).all()
    assert full.first_difference.isna().all()
    table = measured.table().splitlines()
    assert len(table) == 2 + len(runs)
    rows = measured.to_pandas()
    assert list(zip(rows.policy, rows.fill, strict=True)) == runs
    assert rows.refresh_kl[1] == pytest.approx(rough[rough.since_refresh == 0].kl.mean())
    assert rows.exit_top1[0] == pytest.approx(exact[~whole].top1.mean())
    assert rows.same[2] == 1
    by = measured.by("phase", "kl", "spark:triple@3", "catch_up")
    assert by.value[0] == pytest.approx(exact[exact.phase == 0].kl.mean(), abs=1e-12)
    assert (by.low <= by.value + 1e-12).all()
    assert (by.value <= by.high + 1e-12).all()
    assert by.tokens.sum() == len(exact)


@pytest.mark.parametrize("family", ["qwen2"])
def test_state_drift_is_the_full_model_on_the_same_tokens(stock, hooked):
    """Against logits of the stock model, and of its hidden states at the exit."""
    prompt = torch.arange(6)
    out = hooked.generate(
        prompt,
        "spark:even@3",
        max_new_tokens=25,
        record={"statistics": (), "hidden_states": "all", "dtype": torch.float32},
    )
    measured = state_drift(hooked, out)
    with torch.no_grad():
        whole = stock(torch.cat([prompt, out.tokens])[None], output_hidden_states=True)
        logits = whole.logits[0, 5:-1]
        early = hooked.lens.logits(whole.hidden_states[3][0, 5:-1], 3)
    shallow = out.trace.depth == 3
    expected = divergences(early[shallow], logits[shallow])
    for name, values in expected.items():
        np.testing.assert_allclose(measured[shallow][name], values, rtol=1e-3, atol=1e-6)


def test_the_figure_shows_the_measured_values():
    hooked = HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Words())
    runs = [("spark:even@3", "catch_up"), ("spark:even@3", "mask")]
    measured = drift(hooked, QUESTIONS, runs, BatchOptions(max_new_tokens=40))
    [ax] = measured.figure("kl").axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    for fill in ("catch_up", "mask"):
        expected = measured.by("phase", "kl", "spark:even@3", fill).value
        np.testing.assert_allclose(lines[fill].get_ydata(), expected)


def make_model() -> HookedModel:
    return HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Words())


def test_workers_measure_what_one_process_measures(monkeypatch):
    runs = [("spark:even@3", "catch_up"), ("spark:even@3", "mask")]
    alone = drift(make_model(), QUESTIONS, runs, BatchOptions(size=2, max_new_tokens=30))
    monkeypatch.setattr(WorkerConfig, "start", pickled_workers.start)
    options = BatchOptions(size=2, max_new_tokens=30, workers=2, load=make_model)
    spread = drift(make_model(), QUESTIONS, runs, options)
    assert len(alone.tokens) > 100
    pd.testing.assert_frame_equal(spread.tokens, alone.tokens, check_exact=True)
    pd.testing.assert_frame_equal(spread.replies, alone.replies, check_exact=True)
