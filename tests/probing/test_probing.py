"""The probe: against naive float64 on whole logits of the stock model; folders; records."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS, LAYOUT, plain_lens, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import eepolicy
from eepolicy import Document, EepolicyError, ExitHead, HookedModel, ProbeResult, probe
from eepolicy.compile.kernel_cache import KernelCache
from eepolicy.heads import TunedLens
from eepolicy.probing import STATISTICS, readout, run
from eepolicy.probing.statistics import LastLayer
from eepolicy.probing.statistics.measure import LogitStatistics

#: float32 against float64; measured over ten families and five seeds: 2.2e-6 at most (divergences)
CLOSE = dict(rtol=1e-5, atol=2e-5)


def naive(stock, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """Every statistic, (depths, tokens), from whole logits in float64, written independently.

    The stock model's own hidden states are normed in its last layer only.
    """
    with torch.no_grad():
        out = stock(ids[None], output_hidden_states=True)
        states = [h[0] for h in out.hidden_states]
        logits = [plain_lens(stock, h) for h in states[1:-1]] + [out.logits[0]]
    p = torch.stack(logits).double().softmax(-1).numpy()
    last, top1 = p[-1], p.argmax(-1)
    following = np.append(ids[1:].numpy(), -1)
    tokens = np.arange(len(ids))
    log = np.log
    mixture = (p + last) / 2
    ordered = np.sort(p, -1)

    def rank(of: np.ndarray) -> np.ndarray:
        chosen = p[:, tokens, of]
        return 1 + (p > chosen[..., None] * (1 + 1e-9)).sum(-1)

    return {
        "top1": top1,
        "entropy": -(p * log(p)).sum(-1),
        "confidence": p.max(-1),
        "margin": ordered[..., -1] - ordered[..., -2],
        "rank_last": rank(last.argmax(-1)),
        "probability_last": p[:, tokens, last.argmax(-1)],
        "rank_next": np.where(following < 0, -1, rank(following)),
        "probability_next": np.where(following < 0, np.nan, p[:, tokens, following]),
        "kl": (last * log(last / p)).sum(-1),
        "kl_reverse": (p * log(p / last)).sum(-1),
        "js": ((p * log(p / mixture)).sum(-1) + (last * log(last / mixture)).sum(-1)) / 2,
    }


def check(result: ProbeResult, expected: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        computed = getattr(result, name)
        if values.dtype.kind == "i":
            np.testing.assert_array_equal(computed, values, err_msg=name)
        else:
            np.testing.assert_allclose(computed, values, **CLOSE, err_msg=name)


def test_every_statistic_equals_the_naive_value(stock, hooked):
    ids = torch.randint(60, (23,), generator=torch.Generator().manual_seed(5))
    check(probe(hooked, ids), naive(stock, ids))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.slow
def test_every_compiled_statistic_equals_the_naive_value(hooked, stock, monkeypatch):
    """Documents of several lengths, in slices that do not divide them: few kernels serve all."""
    monkeypatch.setattr(readout, "CPU_SLICE_BYTES", 4 * 60 * 5)
    for length in (23, 40, 1, 7):
        ids = torch.randint(60, (length,), generator=torch.Generator().manual_seed(length))
        check(probe(hooked, ids, compile=True), naive(stock, ids))
        assert not hooked.compiled_executor()._kernels._refused
        assert not hooked.compiled_executor()._broken
        assert None not in hooked.compiled_executor()._kernels._calls.values()
    check(probe(hooked, ids.int(), compile=True), naive(stock, ids))
    some = ("entropy", "rank_next")
    result = probe(hooked, ids, statistics=some, compile=True)
    check(result, {name: naive(stock, ids)[name] for name in some})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("apart", [0.0, 0.003, 1.0])
def test_small_divergences_of_large_vocabularies(apart, compiled):
    """Logits far from zero, in float32; measured against float64: 1.2e-5 at most."""
    if compiled and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    generator = torch.Generator().manual_seed(1)
    q = 3 * torch.randn(6, 50_000, generator=generator) + 15
    p = q + apart * torch.randn(6, 50_000, generator=generator)
    wanted = [STATISTICS[name] for name in ("entropy", "kl", "kl_reverse", "js")]
    last, following = LastLayer.of(q), torch.arange(6)
    measured = LogitStatistics(wanted, KernelCache().run if compiled else None)
    values = measured.measure(p, last, following)
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    half = torch.logaddexp(p, q) - np.log(2)
    right = {
        "entropy": -(p.exp() * p).sum(-1),
        "kl": (q.exp() * (q - p)).sum(-1),
        "kl_reverse": (p.exp() * (p - q)).sum(-1),
        "js": ((p.exp() * (p - half)).sum(-1) + (q.exp() * (q - half)).sum(-1)) / 2,
    }
    for name, expected in right.items():
        np.testing.assert_allclose(values[name], expected, rtol=0, atol=4e-5, err_msg=name)


@settings(max_examples=15)
@given(
    family=st.sampled_from(FAMILIES),
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    left=st.booleans(),
    block=st.integers(1, 16),
    rows=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_blocks_and_padding_do_not_change_the_statistics(family, lengths, left, block, rows, seed):
    """A padded batch, in blocks and slices of any size, gives the values of its rows alone."""
    stock = tiny(family, seed)
    hooked = HookedModel(stock, layout=LAYOUT)
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(60, (n,), generator=generator) for n in lengths]
    most = max(lengths)
    ids, mask = torch.zeros(2, len(lengths), most, dtype=torch.long).unbind()
    for row, document in enumerate(documents):
        at = slice(most - len(document), most) if left else slice(0, len(document))
        ids[row, at], mask[row, at] = document, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "BLOCK", block)
        patch.setattr(readout, "MAX_LOGIT_BYTES", 4 * 60 * rows)
        patch.setattr(readout, "CPU_SLICE_BYTES", 4 * 60 * max(1, rows // 2))
        result = probe(hooked, ids, attention_mask=mask)
    assert result.document.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert result.token.tolist() == torch.cat(documents).tolist()
    for number, document in enumerate(documents):
        check(result[result.document == number], naive(stock, document))


def test_hidden_states_are_the_stock_models(stock, hooked):
    ids = torch.randint(60, (9,), generator=torch.Generator().manual_seed(5))
    result = probe(hooked, ids, hidden_states="all", distributions=[2, 6], dtype=torch.float32)
    with torch.no_grad():
        out = stock(ids[None], output_hidden_states=True)
    states = torch.stack(out.hidden_states)[:, 0]
    np.testing.assert_allclose(result.hidden_states[:-1], states[1:-1], atol=2e-5)
    logs = torch.stack([plain_lens(stock, states[2]), out.logits[0]]).log_softmax(-1)
    np.testing.assert_allclose(result.distributions, logs.detach(), atol=5e-5)
    before = states[:-1]
    cosine = torch.cosine_similarity(torch.from_numpy(result.hidden_states), before, dim=-1)
    np.testing.assert_allclose(result.cosine_previous, cosine, atol=1e-5)
    np.testing.assert_allclose(
        result.norm_previous,
        np.linalg.norm(result.hidden_states, axis=-1) / before.norm(dim=-1).numpy(),
        rtol=1e-4,
    )
    last = torch.from_numpy(result.hidden_states[-1].copy())
    cosine = torch.cosine_similarity(torch.from_numpy(result.hidden_states), last[None], dim=-1)
    np.testing.assert_allclose(result.cosine_last, cosine, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_reply_is_probed_where_it_was_predicted(hooked):
    prompt = torch.randint(60, (7,), generator=torch.Generator().manual_seed(5))
    out = hooked.generate(prompt, "spark:even@3", max_new_tokens=40)
    result = probe(hooked, out)
    assert result.next.tolist() == out.tokens.tolist()
    for name in ("modality", "chunk", "phase"):
        assert getattr(result, name).tolist() == getattr(out.trace, name).tolist()
    assert result.depth_used.tolist() == out.trace.depth.tolist()
    # the same tokens as a plain text: the same readouts, and those of the prompt
    plain = probe(hooked, torch.cat([prompt, out.tokens]))[6:-1]
    np.testing.assert_allclose(result.entropy, plain.entropy, atol=1e-5)
    # at the exit depth, the probe finds the token of the reply: catch-up is exact
    heads = result.top1[out.trace.depth - 1, np.arange(len(result))]
    assert (heads == out.tokens.numpy()).mean() > 0.97


@given(st.integers(0, 1000))
def test_saturation_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    depths = np.sort(rng.choice(np.arange(1, 20), 6, replace=False))
    top1 = rng.integers(0, 2, (12, 6))
    columns = {"top1": top1, "token": np.zeros(12, int)}
    result = ProbeResult(depths, columns, full_depth=20, vocabulary=2)
    for token in range(12):
        ids = top1[token].tolist()
        stays = next(i for i in range(6) if set(ids[i:]) == {ids[-1]})
        assert result.saturation_depth[token] == depths[stays]
        assert result.agreeing_depth[token] == depths[ids.index(ids[-1])]


@pytest.mark.parametrize("family", ["llama"])
def test_tables(hooked):
    prompt = torch.arange(5)
    out = hooked.generate(prompt, max_new_tokens=30)
    result = probe(hooked, [out, out])
    table = result.to_pandas()
    assert len(table) == LAYERS * 2 * len(out.tokens)
    row = table[(table.depth == 3) & (table.document == 1)].iloc[4]
    column = len(out.tokens) + 4
    assert row.entropy == result.entropy[2, column]
    assert row.next == out.tokens[4]
    means = result.by_modality()
    spoken = result.modality == eepolicy.Modality.SPEECH
    assert means.loc[("speech", 3), "entropy"] == pytest.approx(result.entropy[2, spoken].mean())
    assert means.loc[("text", 2), "agreement"] == result.agreement[1, ~spoken].mean()
    assert means.loc[("text", 2), "rank_last"] == np.median(result.rank_last[1, ~spoken])
    assert "speech" in str(result)
    assert {s.name for s in STATISTICS.values() if s.by_default} <= set(dir(result))
    assert (result.normalised_entropy <= 1 + 1e-6).all()


@pytest.mark.parametrize("family", ["llama"])
def test_top_tokens_are_the_likeliest(hooked, stock):
    ids = torch.randint(60, (9,), generator=torch.Generator().manual_seed(5))
    result = probe(hooked, ids, depths=[2, 5], top_k=4)
    assert result.depths.tolist() == [2, 5, 6]
    with torch.no_grad():
        logits = stock(ids[None]).logits[0].softmax(-1).topk(4)
    assert result.top_tokens[-1].tolist() == logits.indices.tolist()
    np.testing.assert_allclose(result.top_probabilities[-1], logits.values, atol=1e-5)
    np.testing.assert_array_equal(result.top_tokens[..., 0], result.top1)


@pytest.mark.parametrize("family", ["llama"])
def test_heads_are_used_below_full_depth_only(hooked):
    ids = torch.arange(8)
    zero = TunedLens.untrained(hooked.lens, range(1, LAYERS), width=32)
    for bias in (zero.at(depth).bias for depth in zero.depths):
        bias += 1.0
    fitted, plain = probe(hooked, ids, heads=zero), probe(hooked, ids)
    assert np.abs(fitted.entropy[:-1] - plain.entropy[:-1]).min(1).max() > 1e-3
    np.testing.assert_array_equal(fitted.entropy[-1], plain.entropy[-1])


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize(
    ("inputs", "options", "match"),
    [
        (torch.arange(4), {"depths": [0]}, "depths 1 to 6"),
        (torch.arange(4), {"hidden_states": [7]}, "depths 1 to 6"),
        (torch.arange(4), {"statistics": ["entropie"]}, "statistics is a list"),
        (torch.arange(4), {"statistics": "entropy"}, "statistics is a list"),
        (torch.arange(4), {"top_k": 61}, "top_k is 0 to"),
        (torch.arange(4), {"attention_mask": torch.ones(4)}, "requires ids of shape"),
        (torch.ones(2, 4).long(), {"attention_mask": torch.ones(2, 3)}, "the shape of the ids"),
        ([], {}, "nothing to probe"),
        (7, {}, "probe takes text"),
        (torch.tensor([60]), {}, "ids are 0 to 59"),
        ("text", {}, "needs a model with a tokenizer"),
        (Document(torch.arange(4), 4), {}, "shorter than its 4 tokens"),
        ({"ids": torch.arange(4)}, {}, "reads the tensor 'input_ids'"),
        (torch.arange(4), {"depths": "12"}, "depths are a list of numbers"),
        (torch.arange(4), {"dtype": torch.bfloat16}, "dtype is float16"),
    ],
)
def test_unsupported_probe_inputs_are_refused(hooked, inputs, options, match):
    with pytest.raises(EepolicyError, match=match):
        probe(hooked, inputs, **options)


@pytest.mark.parametrize("family", ["llama"])
def test_probe_accepts_encodings_and_heads_at_some_depths(hooked):
    ids = torch.tensor([[1, 2, 3], [0, 30, 40]])
    encoded = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}
    result = probe(hooked, encoded, statistics=(s for s in ("entropy",)))
    assert result.token.tolist() == [1, 2, 3, 30, 40]
    assert result.statistics == ("entropy",)
    # a text that is no reply gets its modalities from its tokens
    mixed = probe(hooked, torch.tensor([1, 2, 30, 31, 3]))
    assert mixed.modality.tolist() == [0, 1, 1, 0, 0]
    assert mixed.chunk.tolist() == [0, 1, 1, 2, 2]
    assert mixed.phase.tolist() == [0, 0, 1, 0, 1]
    # with heads at some depths, the probe reads those depths and the last layer
    some = TunedLens.untrained(hooked.lens, (2, 4), width=32)
    assert probe(hooked, ids[0], heads=some).depths.tolist() == [2, 4, 6]
    with pytest.raises(EepolicyError, match="reads out 40 of the model's 60"):
        probe(hooked, ids[0], heads=hooked.lens.restricted_to(LAYOUT.speech), statistics=["top1"])
    # properties of a result leave it unchanged
    assert len(result.words) == len(result)
    assert len(result[:2]) == 2


@pytest.mark.parametrize("family", ["llama"])
def test_ids_that_a_head_rules_out(hooked):
    class Ruling(ExitHead):
        def logits(self, hidden, depth):
            logits = hooked.lens.logits(hidden, depth)
            logits[..., :5] = -torch.inf
            return logits

    result = probe(hooked, torch.arange(10, 20), heads=Ruling())
    for name in result.statistics:
        finite = np.isfinite(np.asarray(getattr(result, name)[:-1, :-1], float))
        assert finite.all() or name in ("cosine_previous", "norm_previous"), name


@pytest.mark.parametrize("family", ["llama"])
def test_access_to_a_missing_statistic_gives_a_clear_error(hooked):
    result = probe(hooked, torch.arange(4), statistics=["entropy"])
    with pytest.raises(AttributeError, match="has no 'kl', only entropy"):
        _ = result.kl
    with pytest.raises(EepolicyError, match="can draw entropy; got kl"):
        result.plot.layers("kl")
    assert not hasattr(result, "sound")
    json.dumps(result.depths.tolist())


@pytest.mark.parametrize("family", ["llama"])
def test_figures_show_the_measured_values(hooked):
    out = hooked.generate(torch.arange(5), max_new_tokens=30)
    result = probe(hooked, out)
    figure = result.plot.layers("entropy", "agreement")
    spoken = result.modality == eepolicy.Modality.SPEECH
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    [speech] = [line for label, line in lines.items() if label.startswith("speech")]
    np.testing.assert_allclose(speech.get_ydata(), np.median(result.entropy[:, spoken], 1))
    image = result.plot.heatmap("entropy").axes[0].get_images()[0]
    np.testing.assert_allclose(np.asarray(image.get_array()), result.entropy)
    with pytest.raises(EepolicyError, match="no document 3"):
        result.plot.heatmap(document=3)
