"""Statistics that `probe` computes on request, against naive float64 on the stock model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import CONFIGS, LAYERS, LAYOUT, plain_lens
from transformers import AutoModelForCausalLM

from eepolicy import Document, EepolicyError, HookedModel, ProbeResult, probe
from eepolicy.probing import Statistic, given_rank, given_recall, readout, run
from eepolicy.probing.statistics.flips import flips_after_settling
from eepolicy.probing.statistics.settling import deep_thinking_ratio, settling_depth

#: float32 against float64, as in test_probing.py
CLOSE = dict(rtol=1e-5, atol=2e-5)
NAMES = ("text_mass", "speech_mass", "js_deeper", "js", "top1")


def probabilities(stock, ids: torch.Tensor) -> np.ndarray:
    """Distributions of the logit lens and the last layer in float64: (depths, tokens, ids)."""
    with torch.no_grad():
        out = stock(ids[None], output_hidden_states=True)
        lens = [plain_lens(stock, h[0]) for h in out.hidden_states[1:-1]]
    return torch.stack([*lens, out.logits[0]]).double().softmax(-1).numpy()


def js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    m = (p + q) / 2
    return ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("rows", [2, 100])
def test_masses_divergences_and_ranks_equal_naive_values(hooked, stock, monkeypatch, rows):
    monkeypatch.setattr(run, "BLOCK", 7)
    monkeypatch.setattr(readout, "MAX_LOGIT_BYTES", 4 * 60 * rows)
    monkeypatch.setattr(readout, "CPU_SLICE_BYTES", 4 * 60 * max(1, rows // 2))
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(60, (19,), generator=generator)
    one = torch.randint(60, (15,), generator=generator).numpy()
    several = torch.randint(-1, 60, (15, 3), generator=generator).numpy()
    several[4] = -1
    given = {"one": one, "several": several.tolist()}
    document = Document(ids, 4, given=given)
    wanted = [*NAMES, *map(given_rank, given), given_recall("several", 20), given_rank("one", True)]
    result = probe(hooked, document, statistics=wanted)
    p = probabilities(stock, ids)[:, 3:-1]
    np.testing.assert_allclose(result.text_mass, p[..., :20].sum(-1), **CLOSE)
    np.testing.assert_allclose(result.speech_mass, p[..., 20:].sum(-1), **CLOSE)
    np.testing.assert_allclose(result.js_deeper[:-1], js(p[:-1], p[1:]), **CLOSE)
    assert np.isnan(result.js_deeper[-1]).all()
    ranks = np.full((LAYERS, 15, 3), 10**6)
    for depth, token, index in np.ndindex(ranks.shape):
        if (own := several[token, index]) >= 0:
            ranks[depth, token, index] = 1 + (p[depth, token] > p[depth, token, own]).sum()
    best = np.where((several < 0).all(-1), -1, ranks.min(-1))
    np.testing.assert_array_equal(result.rank_several, best)
    chosen = np.take_along_axis(p, one[None, :, None], -1)
    np.testing.assert_array_equal(result.rank_one, 1 + (p > chosen).sum(-1))
    np.testing.assert_array_equal(result.text_rank_one, 1 + (p[..., :20] > chosen).sum(-1))
    recall = np.where(best < 0, np.nan, best <= 20)
    np.testing.assert_array_equal(result.recall20_several, recall)
    assert result.by_modality().rank_one.notna().any()


@pytest.mark.parametrize("family", ["llama"])
def test_text_ids_after_the_speech_ids_count_as_text(stock):
    layout = dataclasses.replace(LAYOUT, speech=(20, 50), text_after=(50, 60))
    ids = torch.randint(60, (9,), generator=torch.Generator().manual_seed(5))
    document = Document(ids, given={"last": np.full(9, 57)})
    wanted = ["text_mass", "speech_mass", given_rank("last", text_only=True)]
    result = probe(HookedModel(stock, layout=layout), document, statistics=wanted)
    p = probabilities(stock, ids)
    np.testing.assert_allclose(result.speech_mass, p[..., 20:50].sum(-1), **CLOSE)
    np.testing.assert_allclose(result.text_mass, 1 - p[..., 20:50].sum(-1), **CLOSE)
    text = np.delete(p, slice(20, 50), -1)
    np.testing.assert_array_equal(result.text_rank_last, 1 + (text > p[..., 57:58]).sum(-1))


@pytest.mark.parametrize("family", ["llama"])
def test_js_deeper_compares_adjacent_probed_depths(hooked, stock):
    ids = torch.arange(9)
    p = probabilities(stock, ids)
    result = probe(hooked, ids, depths=[2, 5], statistics=["js_deeper"], compile=False)
    np.testing.assert_allclose(result.js_deeper[:-1], js(p[[1, 4]], p[[4, 5]]), **CLOSE)


def test_attention_is_that_of_the_stock_weights(family, stock, hooked, monkeypatch):
    """Every family: shared key heads, softcaps, sliding windows, learned positions."""
    monkeypatch.setattr(run, "BLOCK", 5)
    ids = torch.randint(60, (13,), generator=torch.Generator().manual_seed(5))
    eager = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
    eager.load_state_dict(stock.state_dict())
    with torch.no_grad():
        attentions = eager.eval()(ids[None], output_attentions=True).attentions
    weights = torch.stack([each[0] for each in attentions]).double()[..., :13]
    spoken = (ids >= 20).double()
    names = ("attention_text", "attention_speech")
    result = probe(hooked, Document(ids, 3), statistics=names)
    expected = (weights @ spoken).mean(1).numpy()[:, 2:-1]
    assert 0.02 < expected.mean() < 0.98
    np.testing.assert_allclose(result.attention_speech, expected, **CLOSE)
    text = (weights @ (1 - spoken)).mean(1).numpy()[:, 2:-1]
    np.testing.assert_allclose(result.attention_text, text, **CLOSE)
    some = probe(hooked, Document(ids, 3), depths=[2], statistics=names)
    np.testing.assert_array_equal(some.attention_text, result.attention_text[[1, -1]])


@pytest.mark.parametrize("family", ["llama"])
def test_reading_the_attention_changes_nothing_else(hooked):
    ids = torch.arange(12)
    plain = probe(hooked, ids, statistics=["entropy"])
    result = probe(hooked, ids, statistics=["entropy", "attention_text"])
    np.testing.assert_array_equal(plain.entropy, result.entropy)

    def largest(context):
        return context.masses.amax((-1, -2))

    own = Statistic(name="own", description="own", compute=largest, of_attention=True)
    assert (probe(hooked, ids, statistics=[own]).own >= 0.5 - 1e-6).all()


@pytest.mark.parametrize("seed", range(4))
def test_settling_and_flips_against_loops(seed):
    rng = np.random.default_rng(seed)
    depths = np.sort(rng.choice(np.arange(1, 20), 8, replace=False))
    divergence = rng.uniform(0, 0.7, (8, 60))
    divergence[-1] = 0
    divergence[:, -1] = np.nan
    top1 = rng.integers(0, 2, (8, 60))
    patience = 1 + seed % 3
    columns = {"js": divergence.T, "top1": top1.T, "token": np.zeros(60, int)}
    result = ProbeResult(depths, columns, full_depth=int(depths[-1]), vocabulary=2)
    settled, flips = result.settling_depth(0.2), result.flips(patience)
    for token in range(59):
        below = [d for d, v in zip(depths, divergence[:, token], strict=True) if v <= 0.2]
        assert settled[token] == below[0]
        for depth in range(8):
            before = top1[max(depth - patience, 0) : depth, token].tolist()
            had_settled = len(before) == patience and len(set(before)) == 1
            assert flips[depth, token] == (had_settled and top1[depth, token] != before[-1])
    assert settled[-1] == -1
    late = settled[:-1] >= math.ceil(0.7 * depths[-1])
    assert result.deep_thinking_ratio(0.2, 0.7) == late.mean()
    assert np.isnan(deep_thinking_ratio(np.array([-1]), 4))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: deep_thinking_ratio(np.array([1]), 4, 0.0), "share is above 0"),
        (lambda: flips_after_settling(np.zeros((3, 1), int), 0), "patience is at least 1"),
        (lambda: given_recall("word", 0), "k of at least 1"),
        (lambda: given_rank("two words"), "Python identifier"),
    ],
)
def test_invalid_statistic_arguments_are_refused(call, match):
    assert settling_depth(np.array([[0.4]]), np.array([3])).tolist() == [3]
    with pytest.raises(EepolicyError, match=match):
        call()


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "gives no tokens 'word', only none"),
        ({"other": [0]}, "only 'other'"),
        ({"word": [1, 2]}, r"ids of 5 readouts, .* got \(2, 1\)"),
        ({"word": np.zeros(5)}, "of torch.float64"),
        ({"word": [60] * 5}, "ids 0 to 59, or -1 for none; got 60 to 60"),
        ({"word": [[1], [1, 2], [], [], []]}, "no array of ids"),
    ],
)
def test_given_tokens_are_checked(hooked, given, match):
    document = Document(torch.arange(5), given=given)
    with pytest.raises(EepolicyError, match=match):
        probe(hooked, document, statistics=[given_rank("word")])


@pytest.mark.parametrize("family", ["llama"])
def test_a_folder_refuses_documents_with_other_given_tokens(hooked, tmp_path):
    ids, wanted = torch.arange(5), [given_rank("word")]
    document = Document(ids, given={"word": ids.numpy()})
    first = probe(hooked, document, statistics=wanted, save=tmp_path)
    again = probe(hooked, document, statistics=wanted, save=tmp_path)
    np.testing.assert_array_equal(first.rank_word, again.rank_word)
    other = Document(ids, given={"word": ids.flip(0).numpy()})
    with pytest.raises(EepolicyError, match="begun with other documents"):
        probe(hooked, other, statistics=wanted, save=tmp_path)


@pytest.mark.parametrize("family", ["llama"])
def test_statistics_unavailable_in_records_or_compiled_probes_are_refused(hooked):
    for wanted in (["attention_text"], [given_rank("word")]):
        with pytest.raises(EepolicyError, match="neither attention nor given tokens"):
            hooked.generate(torch.arange(5), record={"statistics": wanted})
    out = hooked.generate(
        torch.arange(5), "static@3", 8, record={"statistics": ["text_mass", "js_deeper"]}
    )
    ran = ~np.isnan(out.record.text_mass)
    np.testing.assert_array_equal(~np.isnan(out.record.js_deeper[:-1]), ran[1:])
    with pytest.raises(EepolicyError, match="compiled layers hide their attention"):
        probe(hooked, torch.arange(5), statistics=["attention_text"], compile=True)


def test_tokens_settle_at_the_last_layer_at_the_latest():
    """Even where its own divergence exceeds the threshold by a rounding error."""
    depths = np.array([4, 8, 12])
    assert settling_depth([[0.6], [0.4], [1e-8]], depths, 0.0).tolist() == [12]
    with pytest.raises(EepolicyError, match="0 or more; got -1"):
        settling_depth([[0.6], [0.4], [0.0]], depths, -1)
