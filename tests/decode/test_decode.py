"""Decoding against the stock model: tokens, keys and values, depths, layer calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS, LAYOUT, layers_of, plain_lens, tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LogitsProcessor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from eepolicy import (
    ChunkClock,
    Confidence,
    EepolicyError,
    Entropy,
    ExitHead,
    ExitPolicy,
    FullDepth,
    HookedModel,
    Margin,
    Modality,
    Oracle,
    Patience,
    Random,
    Saturation,
    SparK,
    Static,
)
from eepolicy.decode.batch import Batch, BatchOptions
from eepolicy.decode.measure import NUM_POSITIONS
from eepolicy.decode.rebatch import MIN_SAVING, LayerCosts, NeverRebatch, ShareRebatch
from eepolicy.decode.step import run_step
from eepolicy.policies import Step, parse_policy

PROMPT = torch.tensor([1, 7, 30, 12, 2])
PROMPTS = [torch.tensor(p) for p in ([1, 7, 30, 12, 2], [1, 9], [44, 3, 21, 8, 40, 50, 6], [5])]

# Largest differences measured over 400 random cases of test_keys_and_values_after_a_catch_up, 20 a
# family and precision: keys and values 1.5e-5 in float32 (OLMo 2), 5e-15 in float64; logits less.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
# Eager attention takes the softmax in float32 whatever the model's precision is. A step and the
# whole sequence have different shapes, and whether their softmaxes round alike depends on the width
# of the processor's vectors. Measured in float64: 2e-15 with AVX-512, 1.9e-6 with AVX2 and without
# vectors.
EAGER_TOLERANCE = {torch.float32: 1e-4, torch.float64: 2e-5}


class RandomDepths(ExitPolicy):
    """Any depth at any position, from a seed: exits pending at many layers at once."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        return "RandomDepths"

    def depths(self, step: Step) -> torch.Tensor:
        return torch.randint(1, step.full_depth + 1, step.phase.shape, generator=self.generator)


def test_full_depth_is_stock_generate(stock, hooked):
    lengths = []
    for seed in range(6):
        prompt = torch.randint(60, (4 + seed,), generator=torch.Generator().manual_seed(seed))
        expected = stock.generate(
            prompt[None],
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=60,
            do_sample=False,
        )[0, len(prompt) :]
        out = hooked.generate(prompt, FullDepth(), max_new_tokens=60)
        assert out.tokens.tolist() == expected.tolist()
        assert out.ended == (out.tokens[-1] == LAYOUT.end)
        lengths.append(len(expected))
    assert sum(lengths) > 100  # random models that end at once would test nothing


def test_a_batch_at_full_depth_is_stock_generate(stock, hooked):
    """Ragged prompts, padded on the left."""
    width = max(map(len, PROMPTS))
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in PROMPTS])
    mask = torch.stack([torch.arange(width) >= width - len(p) for p in PROMPTS]).long()
    for sampling in ({}, {"temperature": 0.8}, {"temperature": 1.3, "top_p": 0.9}):
        torch.manual_seed(11)
        expected = stock.generate(
            ids, attention_mask=mask, max_new_tokens=40, do_sample=bool(sampling), **sampling
        )[:, width:]
        seed = {"seed": 11} if sampling else {}
        outs = hooked.generate(PROMPTS, max_new_tokens=40, **sampling, **seed)
        for out, row in zip(outs, expected.tolist(), strict=True):
            end = row.index(LAYOUT.end) + 1 if LAYOUT.end in row else len(row)
            assert out.tokens.tolist() == row[:end]


@pytest.mark.parametrize(
    "policy",
    [
        "spark:triple@2",
        "spark:odd@4",
        "static@3",
        "entropy<2.5@2",
        "text=patience:2@1,speech=saturation>0.5@[1,3]",
        "text=static@5,speech=margin>0.1@[2,4]",
        "text=saturation>0.5@[2,4],speech=entropy<2.5@[2,4]",
        "oracle@1",
        "random:4.0@2",
    ],
)
def test_a_row_does_not_depend_on_its_neighbours(stock, hooked, policy):
    together = hooked.generate(PROMPTS, policy, max_new_tokens=40)
    for prompt, out in zip(PROMPTS, together, strict=True):
        alone = hooked.generate(prompt, policy, max_new_tokens=40)
        assert out.tokens.tolist() == alone.tokens.tolist()
        for name, value in vars(alone.trace).items():
            if name != "prefill_layer_calls":  # together, prompts go along if all rows let them
                assert np.array_equal(getattr(out.trace, name), value), name


@pytest.mark.parametrize(
    "options", [{"fill": "propagate"}, {"fill": "mask"}, {"max_pending": 2}], ids=str
)
def test_a_row_does_not_depend_on_its_neighbours_with_other_fills(stock, hooked, options):
    policy = "text=static@5,speech=margin>0.1@[2,4]"
    together = hooked.generate(PROMPTS, policy, max_new_tokens=40, **options)
    for prompt, out in zip(PROMPTS, together, strict=True):
        alone = hooked.generate(prompt, policy, max_new_tokens=40, **options)
        assert out.tokens.tolist() == alone.tokens.tolist()
        for name in ("depth", "layer_calls", "layer_positions", "filled", "readouts"):
            assert np.array_equal(getattr(out.trace, name), getattr(alone.trace, name)), name


@pytest.mark.parametrize("rebatch", ["always", 0.5, 1.0, "auto"])
@pytest.mark.parametrize(
    "policy", ["random:4.0@2", "text=static@5,speech=margin>0.1@[2,4]", "entropy<2.5@2"]
)
def test_rebatching_changes_costs_only(hooked, policy, rebatch):
    """Tokens and depths stay; with "always" all rows of a step run equally deep."""
    alone = hooked.generate(PROMPTS, policy, max_new_tokens=40)
    together = hooked.generate(PROMPTS, policy, max_new_tokens=40, rebatch=rebatch)
    for left, right in zip(together, alone, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        for name in ("depth", "readouts", "since_refresh"):
            assert np.array_equal(getattr(left.trace, name), getattr(right.trace, name)), name
    if rebatch == "always":
        steps = min(len(out.trace) for out in together)
        calls = np.stack([out.trace.layer_calls[:steps] for out in together])
        assert (calls == calls[0]).all()


class ByPlace(ExitPolicy):
    """A depth for each place in the reply."""

    def __init__(self, depths: list[int]) -> None:
        self.table = torch.tensor(depths)

    def depths(self, step: Step) -> torch.Tensor:
        return self.table[step.position]


def plain_loop(model, prompt: list[int], depths: list[int], way: str) -> list[int]:
    """Greedy early exit, one token at a time, written without the package, for Llama and Qwen2.

    A layer that did not run stores nothing with `mask`, so that its part of the stock cache is
    simply shorter; with `propagate` it stores what it makes of the exit's hidden state.
    """
    inner, cache, tokens, hidden = model.model, DynamicCache(), list(prompt), None
    depths = [LAYERS] * (len(prompt) - 1) + depths
    for place, depth in enumerate(depths):
        hidden = inner.embed_tokens(torch.tensor([[tokens[place]]]))
        cos, sin = inner.rotary_emb(hidden, torch.tensor([[place]]))
        for layer in inner.layers[:depth]:
            hidden = layer(
                hidden,
                attention_mask=None,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=(cos, sin),
            )
        for index, layer in enumerate(inner.layers):
            if index >= depth and way == "propagate":
                normed = layer.input_layernorm(hidden)
                keys, values = (
                    project(normed).view(1, 1, -1, layer.self_attn.head_dim).transpose(1, 2)
                    for project in (layer.self_attn.k_proj, layer.self_attn.v_proj)
                )
                cache.update(apply_rotary_pos_emb(keys, keys, cos, sin)[1], values, index)
        if place >= len(prompt) - 1:
            tokens.append(int(model.lm_head(inner.norm(hidden))[0, -1].argmax()))
            if tokens[-1] == LAYOUT.end:
                break
    return tokens[len(prompt) :]


@settings(max_examples=15)
@given(
    family=st.sampled_from(["llama", "qwen2"]),
    seed=st.integers(0, 10_000),
    depths=st.lists(st.integers(1, LAYERS), min_size=1, max_size=25),
    way=st.sampled_from(["propagate", "mask"]),
)
def test_other_fills_equal_a_plain_loop(family, seed, depths, way):
    model = tiny(family, seed % 7)
    with torch.no_grad():
        expected = plain_loop(model, PROMPT.tolist(), depths, way)
    hooked = HookedModel(model, layout=LAYOUT)
    out = hooked.generate(PROMPT, ByPlace(depths), max_new_tokens=len(depths), fill=way)
    assert out.tokens.tolist() == expected
    assert out.trace.layer_calls.tolist() == depths[: len(expected)]
    skipped = [LAYERS - d for d in depths[: len(expected)]]
    assert out.trace.filled.tolist() == (skipped if way == "propagate" else [0] * len(skipped))


@pytest.mark.parametrize("cap", [1, 3])
def test_max_pending_limits_pending_positions(stock, hooked, cap):
    policy = RandomDepths(5)
    ids = torch.randint(60, (3, 20), generator=torch.Generator().manual_seed(cap))
    batch = Batch(hooked, [0, 2, 1], 20, BatchOptions(max_pending=cap))
    step = Step(*torch.ones(5, 3, dtype=torch.long), full_depth=LAYERS)
    most = 0
    with torch.no_grad():
        batch.prefill(ids[:, :3])
        for column in range(3, 20):
            run_step(batch, ids[:, column : column + 1], [0, 1, 2], policy, step)
            most = max(most, *(batch.num_pending(row) for row in range(3)))
    assert most == cap
    free = hooked.generate(PROMPT, Static(2, on="both"), max_new_tokens=30)
    capped = hooked.generate(PROMPT, Static(2, on="both"), max_new_tokens=30, max_pending=cap)
    assert capped.trace.depth.tolist() == free.trace.depth.tolist() == [2] * len(free.tokens)
    assert capped.tokens.tolist() == free.tokens.tolist()
    assert capped.trace.layer_calls.sum() > free.trace.layer_calls.sum()


@settings(max_examples=40)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    share=st.none() | st.floats(0, 1),
)
def test_keys_and_values_after_a_catch_up(family, seed, lengths, dtype, share):
    """Whatever exits happened, after a catch-up each row's cache is the stock model's."""
    model = tiny(family, seed % 7, dtype=dtype)
    hooked = HookedModel(model, layout=LAYOUT)
    eager = model.config._attn_implementation == "eager"
    tolerance = (EAGER_TOLERANCE if eager else TOLERANCE)[dtype]
    generator = torch.Generator().manual_seed(seed)
    padding = [max(lengths) - n for n in lengths]
    ids = torch.randint(60, (len(lengths), max(lengths) + 9), generator=generator)
    rebatch = NeverRebatch() if share is None else ShareRebatch(share)
    batch = Batch(hooked, padding, ids.shape[1], BatchOptions(rebatch=rebatch))
    policy, rows = RandomDepths(seed), list(range(len(lengths)))
    with torch.no_grad():
        batch.prefill(ids[:, : max(lengths) - 1])
        for column in range(max(lengths) - 1, ids.shape[1] - 1):
            step = Step(*torch.ones(5, len(rows), dtype=torch.long), full_depth=LAYERS)
            run_step(batch, ids[:, column : column + 1], rows, policy, step)
        taken = run_step(batch, ids[:, -1:], rows, FullDepth(), step)
        assert taken.depth == [LAYERS] * len(rows)
        for row, empty in enumerate(padding):
            assert batch.num_pending(row) == 0
            whole, cache = ids[row : row + 1, empty:], DynamicCache()
            expected = model(whole, past_key_values=cache, use_cache=True).logits[0, -1]
            torch.testing.assert_close(taken.logits[row], expected, rtol=0, atol=tolerance)
            for index, theirs in enumerate(cache.layers):
                keys, values = batch.cache.layer(index, ids.shape[1])
                for ours, stocks in ((keys, theirs.keys), (values, theirs.values)):
                    torch.testing.assert_close(
                        ours[row, :, empty:], stocks[0], rtol=0, atol=tolerance
                    )


class LayerCounter:
    """Counts layer calls by forward hooks of its own."""

    def __init__(self, model) -> None:
        self.calls: list[tuple[int, int, int]] = []  # layer, rows, columns
        self.handles = [
            layer.register_forward_pre_hook(
                lambda _, args, i=index: self.calls.append((i, *args[0].shape[:2]))
            )
            for index, layer in enumerate(layers_of(model))
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def test_rows_that_leave_at_several_depths_are_read_out_at_once(stock, hooked):
    heads = []
    handle = stock.lm_head.register_forward_pre_hook(lambda _, args: heads.append(len(args[0])))
    outs = hooked.generate(PROMPTS, RandomDepths(5), 20)
    handle.remove()
    steps = max(len(out.tokens) for out in outs)
    at = [[int(out.trace.depth[i]) for out in outs if i < len(out.tokens)] for i in range(steps)]
    assert any(len(set(depths)) > 1 for depths in at)
    assert heads == [len(depths) for depths in at]


@pytest.mark.parametrize(
    "policy",
    [
        FullDepth(),
        Static(3),
        SparK("even", 2),
        SparK("odd", 4),
        SparK("triple", 3),
        SparK("even", 3, on="text"),
        Entropy(2.0, 2),
        Confidence(0.3, (2, 4)),
        Margin(0.2, 2),
        Saturation(0.7, 1),
        Patience(2, 1),
        Random(4.0, 2),
        RandomDepths(5),
    ],
    ids=repr,
)
def test_trace_counts_what_really_ran(stock, hooked, policy):
    with LayerCounter(stock) as counter:
        trace = hooked.generate(PROMPT, policy, max_new_tokens=50).trace
    # the prompt goes along with a first token that goes all the way
    alone = 0 if trace.depth[0] == LAYERS else LAYERS
    prefill, decoded = counter.calls[:alone], counter.calls[alone:]
    assert trace.prefill_layer_calls == alone
    assert [i for i, _, _ in prefill] == list(range(alone))
    assert trace.layer_calls.sum() == len(decoded)
    before = LAYERS * (len(PROMPT) - 1)
    assert trace.layer_positions.sum() + before == sum(width for _, _, width in counter.calls)
    # a call of layer 0 starts a position; its deepest layer is the depth in the trace
    deepest, depth = [], 0
    for index, _, _ in decoded:
        if index == 0 and depth:
            deepest.append(depth)
        depth = index + 1
    assert [*deepest, depth] == trace.depth.tolist()


@pytest.mark.parametrize("rebatch", ["never", "always", 0.4])
def test_a_batch_counts_what_really_ran(stock, hooked, rebatch):
    """A call of a layer counts for every row that took part in it, and no row more took part."""
    with LayerCounter(stock) as counter:
        outs = hooked.generate(PROMPTS, RandomDepths(3), max_new_tokens=40, rebatch=rebatch)
    decoded = counter.calls[outs[0].trace.prefill_layer_calls :]
    assert sum(out.trace.layer_calls.sum() for out in outs) == sum(rows for _, rows, _ in decoded)


@pytest.mark.parametrize(("pattern", "group"), [("even", "Le"), ("odd", "eL"), ("triple", "Lee")])
def test_depths_are_the_schedule_on_the_chunks_produced(hooked, pattern, group):
    trace = hooked.generate(PROMPT, SparK(pattern, 2), max_new_tokens=80).trace
    clock = ChunkClock(LAYOUT)
    expected = []
    for token in trace.token.tolist():
        speech = clock.modality == Modality.SPEECH
        exits = speech and group[clock.phase % len(group)] == "e"
        expected.append(2 if exits else LAYERS)
        if token != LAYOUT.end:
            clock.advance(token)
    assert trace.depth.tolist() == expected
    assert 2 in expected


def entropy_by_depth(stock, ids: torch.Tensor) -> list[float]:
    """Entropy (nats) of the plain lens at depths 0 to LAYERS - 1, at the last of (ids,)."""
    with torch.no_grad():
        states = stock(ids[None], output_hidden_states=True).hidden_states[:LAYERS]
        found = [plain_lens(stock, h[0, -1]).log_softmax(-1) for h in states]
    return [float(-(p.exp() * p).sum()) for p in found]


def test_adaptive_exit_is_the_first_depth_that_passes(stock, hooked):
    """Against a plain recomputation: every prefix once more through the stock model."""
    looks = (2, 3, 5)
    first = hooked.generate(PROMPT, max_new_tokens=25).tokens
    seen = [entropy_by_depth(stock, torch.cat([PROMPT, first[:n]])) for n in range(len(first))]
    policy = Entropy(float(np.quantile([[row[d] for d in looks] for row in seen], 0.3)), looks)
    trace = hooked.generate(PROMPT, policy, max_new_tokens=25).trace
    depths = []
    for position in range(len(trace)):
        ids = torch.cat([PROMPT, torch.from_numpy(trace.token[:position])])
        entropies = entropy_by_depth(stock, ids)
        passing = [d for d in looks if entropies[d] < policy.threshold]
        depths.append(passing[0] if passing and trace.modality[position] else LAYERS)
    assert trace.depth.tolist() == depths
    assert len(set(depths)) > 1
    paid = [looks.index(d) + 1 if d in looks else len(looks) + 1 for d in depths]
    spoken = trace.modality == Modality.SPEECH
    assert (trace.readouts == np.where(spoken, paid, 1)).all()


def test_oracle_is_the_shallowest_depth_that_knows_the_full_models_token(stock, hooked):
    """Against the stock model's hidden states, one pass over the whole reply."""
    full = hooked.generate(PROMPT, max_new_tokens=30)
    out = hooked.generate(PROMPT, Oracle(1, on="both"), max_new_tokens=30)
    assert out.tokens.tolist() == full.tokens.tolist()
    assert (out.trace.layer_calls == LAYERS).all()  # a full pass: nothing is saved
    with torch.no_grad():
        ids = torch.cat([PROMPT, full.tokens[:-1]])[None]
        states = stock(ids, output_hidden_states=True).hidden_states[1:LAYERS]
        named = torch.stack([plain_lens(stock, h[0, len(PROMPT) - 1 :]).argmax(-1) for h in states])
    knows = torch.cat([named, full.tokens[None]]) == full.tokens
    assert out.trace.depth.tolist() == (knows.int().argmax(0) + 1).tolist()
    # every depth up to the exit is read, and the full model
    paid = np.where(out.trace.depth < LAYERS, out.trace.depth + 1, LAYERS)
    assert out.trace.readouts.tolist() == paid.tolist()


def test_patience_pays_for_each_look_once(hooked):
    trace = hooked.generate(PROMPT, Patience(2, (1, 2, 4), on="both"), max_new_tokens=30).trace
    paid = {2: 2, 4: 3, LAYERS: 4}
    assert trace.readouts.tolist() == [paid[d] for d in trace.depth.tolist()]


def test_readouts_of_a_schedule_are_one_a_token(hooked):
    trace = hooked.generate(PROMPT, SparK("triple", 3), max_new_tokens=40).trace
    assert (trace.readouts == 1).all()


def test_since_refresh_counts_from_the_last_full_depth(hooked):
    trace = hooked.generate(PROMPT, SparK("triple", 3), max_new_tokens=40).trace
    expected, since = [], 0
    for depth in trace.depth:
        since = 0 if depth == LAYERS else since + 1
        expected.append(since)
    assert trace.since_refresh.tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("padding", [[0], [0, 2, 1]])
def test_a_scheduled_step_reads_nothing_off_the_device(hooked, padding, monkeypatch):
    """The meta device holds no data: whatever reads a value there fails."""
    # made before: those of transformers before 5.19 cannot be made there
    rotations = {
        kind: tuple(part.to("meta") for part in parts)
        for kind, parts in hooked.rotations(40).items()
    }
    monkeypatch.setattr(hooked, "rotations", lambda tokens: rotations)
    hooked.model.to("meta")
    rows = list(range(len(padding)))
    tokens = torch.zeros(len(rows), dtype=torch.long, device="meta")

    def decode(policy):
        batch = Batch(hooked, padding, 40)
        batch.prefill(tokens[:, None].expand(-1, 5))
        for i in range(9):
            at = torch.full((len(rows),), i)
            step = Step(torch.ones_like(at), at, at, at, at, LAYERS)
            run_step(batch, tokens[:, None], rows, parse_policy(policy), step)

    for policy in ("full", "static@3", "spark:triple@2", "random:4.0@2"):
        decode(policy)
    with pytest.raises(NotImplementedError, match="meta"):
        decode("entropy<2.5@2")


def test_sampling_with_one_seed_repeats(hooked):
    again = [
        hooked.generate(PROMPT, "static@3", 30, temperature=1.0, top_p=0.9, seed=s).tokens.tolist()
        for s in (3, 3, 4)
    ]
    assert again[0] == again[1] != again[2]


def test_trace_round_trips(hooked, tmp_path):
    trace = hooked.generate(PROMPT, "spark:even@2", max_new_tokens=20).trace
    trace.save(tmp_path / "a.trace")
    for again in (type(trace).from_dict(trace.to_dict()), type(trace).load(tmp_path / "a.trace")):
        for name, value in vars(trace).items():
            assert np.array_equal(getattr(again, name), value)
            assert type(getattr(again, name)) is type(value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.trace"]
    (tmp_path / "b.trace").write_bytes(b"not a trace")
    with pytest.raises(EepolicyError, match=r"b\.trace is not a trace"):
        type(trace).load(tmp_path / "b.trace")


def test_a_trace_is_sliced_and_becomes_a_table(hooked):
    trace = hooked.generate(PROMPT, "spark:triple@2", max_new_tokens=30).trace
    first, speech = trace[:5], trace[trace.modality == Modality.SPEECH]
    assert first.token.tolist() == trace.token.tolist()[:5]
    assert (first.full_depth, len(first)) == (LAYERS, 5)
    assert speech.mean_depth("speech") == trace.mean_depth("speech")
    assert np.isnan(speech.mean_depth("text"))
    frame = trace.to_pandas()
    assert len(frame) == len(trace)
    by_modality = frame.groupby("modality").depth.mean()
    assert by_modality["speech"] == trace.mean_depth("speech")


class OnlySpeech(LogitsProcessor):
    """What `restrict_vocab` does, by hand: only speech may continue a speech chunk."""

    def __call__(self, input_ids, scores):
        reply = input_ids[0, len(PROMPT) :]
        clock = ChunkClock(LAYOUT)
        for token in reply.tolist():
            clock.advance(token)
        if clock.modality == Modality.TEXT:
            return scores
        allowed = [*range(*LAYOUT.speech), LAYOUT.end]
        only = torch.full_like(scores, -torch.inf)
        only[:, allowed] = scores[:, allowed]
        return only


@pytest.mark.parametrize("policy", ["full", "both=static@3", "spark:triple@2"])
def test_restrict_vocab_reads_what_a_mask_would_leave(hooked, policy):
    options = {"max_new_tokens": 60, "temperature": 1.5, "seed": 3}
    plain = hooked.generate(PROMPT, policy, **options)
    masked = hooked.generate(PROMPT, policy, logits_processor=[OnlySpeech()], **options)
    restricted = hooked.generate(PROMPT, policy, restrict_vocab=True, **options)
    assert restricted.tokens.tolist() == masked.tokens.tolist()
    assert restricted.tokens.tolist() != plain.tokens.tolist()  # else the mask did nothing
    for name, value in vars(masked.trace).items():
        assert np.array_equal(getattr(restricted.trace, name), value), name


def test_a_head_of_one_modality_does_not_read_out_others(stock):
    hooked = HookedModel(stock, layout=LAYOUT)
    hooked.heads = hooked.lens.restricted_to(LAYOUT.speech)
    for restricted, sentence in ((False, "a reply needs all of them"), (True, "use LogitLens")):
        with pytest.raises(EepolicyError, match=sentence):
            hooked.generate(PROMPT, "static@2", max_new_tokens=40, restrict_vocab=restricted)


def test_restrict_vocab_pays_for_speech_ids_only(hooked):
    over, whole = [], []
    lens = hooked.heads

    class Counting(ExitHead):
        def logits(self, hidden, depth):
            whole.append(len(hidden))
            return lens.logits(hidden, depth)

        def logits_over(self, hidden, depth, ids):
            over.append((len(hidden), ids.start, ids.stop))
            return lens.logits_over(hidden, depth, ids)

    hooked.heads = Counting()
    outs = hooked.generate(PROMPTS, "both=static@2", max_new_tokens=40, restrict_vocab=True)
    modality = np.concatenate([out.trace.modality for out in outs])
    assert sum(whole) == (modality == Modality.TEXT).sum()
    by_range = dict.fromkeys((tuple(ids) for _, *ids in over), 0)
    for rows, *ids in over:
        by_range[tuple(ids)] += rows
    speech = (modality == Modality.SPEECH).sum()
    assert by_range == {LAYOUT.speech: speech, (LAYOUT.end, LAYOUT.end + 1): speech}
    for prompt, out in zip(PROMPTS, outs, strict=True):
        alone = hooked.generate(prompt, "both=static@2", max_new_tokens=40, restrict_vocab=True)
        assert alone.tokens.tolist() == out.tokens.tolist()


COSTS = st.lists(st.integers(0, 50), min_size=len(NUM_POSITIONS), max_size=len(NUM_POSITIONS))


@given(
    steps=COSTS,
    stay=st.integers(1, 8),
    left=st.integers(1, 8),
    wide=st.integers(1, 5),
    missing=st.integers(1, 5),
    gathered=st.integers(0, 2),
)
def test_the_cheaper_choice_by_measured_costs(steps, stay, left, wide, missing, gathered):
    seconds = np.cumsum([1, *steps])[1:] / 1000
    costs = LayerCosts(NUM_POSITIONS, tuple(seconds), gather_seconds=0.002)

    def of(vectors: int) -> float:
        if vectors >= NUM_POSITIONS[-1]:
            return seconds[-1] * vectors / NUM_POSITIONS[-1]
        i = max(i for i, known in enumerate(NUM_POSITIONS) if known <= vectors)
        share = (vectors - NUM_POSITIONS[i]) / (NUM_POSITIONS[i + 1] - NUM_POSITIONS[i])
        return seconds[i] + share * (seconds[i + 1] - seconds[i])

    synchronised = of((stay + left) * max(wide, missing)) + of(stay + left)
    waited = of(stay * wide) + of((stay + left) * (missing + 1)) + gathered * 0.002
    assume(abs(MIN_SAVING * synchronised - waited) > 1e-9)
    chosen = costs.favours_running_on((stay, left), (wide, missing), gathered)
    assert chosen == (MIN_SAVING * synchronised < waited)


def test_layers_are_timed_once_a_model(hooked):
    costs = hooked.layer_costs()
    assert costs.num_positions == NUM_POSITIONS
    assert all(0 < seconds < 10 for seconds in costs.seconds)
    assert 0 <= costs.gather_seconds < 10
    assert hooked.layer_costs() is costs
    assert hooked.to("cpu").layer_costs() is not costs


def test_auto_rebatching_follows_the_costs(hooked):
    """A layer that costs the same for any number of rows had better not run twice, and so on."""
    policy = "random:4.0@2"
    calls = {}
    flat, steep = (1.0,) * len(NUM_POSITIONS), (1.0, 1.0, *(9.0,) * (len(NUM_POSITIONS) - 2))
    costs = {
        "any number at the cost of one": LayerCosts(NUM_POSITIONS, flat),
        "more than two are dear": LayerCosts(NUM_POSITIONS, steep),
        "and gathering costs more": LayerCosts(NUM_POSITIONS, steep, gather_seconds=1e3),
    }
    for name, known in costs.items():
        hooked._layer_costs[False] = known
        outs = hooked.generate(PROMPTS, policy, max_new_tokens=40, rebatch="auto")
        calls[name] = sum(int(out.trace.layer_calls.sum()) for out in outs)
    always, never = (
        hooked.generate(PROMPTS, policy, max_new_tokens=40, rebatch=rebatch)
        for rebatch in ("always", "never")
    )
    most, least = (sum(int(o.trace.layer_calls.sum()) for o in outs) for outs in (always, never))
    flat, steep, gathered = calls.values()
    assert flat == most
    assert least <= steep < gathered < most
