"""The trace against independent counts, and what policies read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LAYERS, LAYOUT, plain_lens
from decoding import PROMPT, PROMPTS, LayerCounter, RandomDepths

from eepolicy import (
    ChunkClock,
    Confidence,
    EepolicyError,
    Entropy,
    FullDepth,
    Margin,
    Modality,
    Oracle,
    Patience,
    Random,
    Saturation,
    SparK,
    Static,
)
from eepolicy.decode.batch import Batch
from eepolicy.decode.step import run_step
from eepolicy.policies import Step, parse_policy


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
def test_the_trace_counts_the_layer_calls_that_ran(stock, hooked, policy):
    with LayerCounter(stock) as counter:
        trace = hooked.generate(PROMPT, policy, max_new_tokens=30).trace
    # the prompt runs in the calls of a first token at full depth
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
def test_layer_calls_of_a_batch_count_only_rows_that_took_part(stock, hooked, rebatch):
    """A layer call counts once for every row that took part in it, and for no other row."""
    with LayerCounter(stock) as counter:
        outs = hooked.generate(PROMPTS, RandomDepths(3), max_new_tokens=24, rebatch=rebatch)
    decoded = counter.calls[outs[0].trace.prefill_layer_calls :]
    assert sum(out.trace.layer_calls.sum() for out in outs) == sum(rows for _, rows, _ in decoded)


@pytest.mark.parametrize(("pattern", "group"), [("even", "Le"), ("odd", "eL"), ("triple", "Lee")])
def test_depths_are_the_schedule_on_the_chunks_produced(hooked, pattern, group):
    trace = hooked.generate(PROMPT, SparK(pattern, 2), max_new_tokens=40).trace
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
        log_probs = [plain_lens(stock, h[0, -1]).log_softmax(-1) for h in states]
    return [float(-(p.exp() * p).sum()) for p in log_probs]


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


def test_patience_counts_one_readout_per_depth(hooked):
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
def test_a_scheduled_step_copies_no_values_to_the_host(hooked, padding, monkeypatch):
    """The meta device holds no data: whatever reads a value there fails."""
    # made before the move: transformers before 5.19 cannot make them on the meta device
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
        for i in range(4):  # a group of triple, and the next refresh
            at = torch.full((len(rows),), i)
            step = Step(torch.ones_like(at), at, at, at, at, LAYERS)
            run_step(batch, tokens[:, None], rows, parse_policy(policy), step)

    for policy in ("full", "static@3", "spark:triple@2", "random:4.0@2"):
        decode(policy)
    with pytest.raises(NotImplementedError, match="meta"):
        decode("entropy<2.5@2")


def test_trace_round_trips(hooked, tmp_path):
    trace = hooked.generate(PROMPT, "spark:even@2", max_new_tokens=20).trace
    trace.save(tmp_path / "a.trace")
    for again in (type(trace).from_dict(trace.to_dict()), type(trace).load(tmp_path / "a.trace")):
        for name, value in vars(trace).items():
            assert np.array_equal(getattr(again, name), value)
            assert type(getattr(again, name)) is type(value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.trace"]
    for value in (2.7, float("nan"), "2", None):
        plain = trace.to_dict()
        plain["depth"][0] = value
        with pytest.raises(EepolicyError, match="Trace: depth: expected"):
            type(trace).from_dict(plain)
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
