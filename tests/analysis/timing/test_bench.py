"""Timing: call counts, ideal speed-ups and the roofline."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import LAYERS, LAYOUT, tiny
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from eepolicy import EepolicyError, HookedModel, Trace, parse_policy
from eepolicy.analysis.timing.call_costs import call_costs
from eepolicy.analysis.timing.contenders import (
    BenchConfig,
    Contender,
    Trial,
    bench_prompts,
    default_policies,
)
from eepolicy.analysis.timing.figure import milliseconds
from eepolicy.analysis.timing.roofline import Machine, Roofline, Sizes, measure_machine
from eepolicy.analysis.timing.runner import Bench
from eepolicy.analysis.timing.table import shown_columns
from eepolicy.decode.batch import Batch
from eepolicy.heads import BranchHead, DrafterHead, TunedLens
from eepolicy.heads.int8 import Int8Linear, quantize_int8

COUNTS = ("layer_calls", "layer_positions", "readouts")


def trace(counts, alone=LAYERS):
    """A trace with (tokens, 3) of counts."""
    columns = dict.fromkeys(Trace.__dataclass_fields__, np.zeros(len(counts), dtype=np.int64))
    columns |= dict(zip(COUNTS, np.array(counts).reshape(-1, 3).T, strict=True))
    return Trace(**columns | {"full_depth": LAYERS, "prefill_layer_calls": alone})


@given(
    rows=st.lists(
        st.tuples(
            st.integers(1, 9),
            st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=3,
    ),
    machine=st.builds(Machine, st.floats(1, 1e3), st.floats(1, 1e3)),
    sizes=st.builds(Sizes, *[st.floats(1, 1e3)] * 5, st.floats(0, 1), st.integers(0, 8)),
    together=st.booleans(),
)
def test_the_roofline_is_that_of_each_step(rows, machine, sizes, together):
    """Against a loop over steps and rows, with what each must read or multiply."""
    prompts, counts = zip(*rows, strict=True)
    expected = 0.0
    fed = sum(prompts) - len(prompts)
    together = together or not fed
    if not together:
        reading = LAYERS * sizes.layer_bytes / machine.bytes_per_second
        expected += max(reading, LAYERS * fed * sizes.layer_flops / machine.flops)
    for step in range(max(map(len, counts))):
        here = [(p, c[step]) for p, c in rows if step < len(c)]
        read = max(c[0] for _, c in here) * sizes.layer_bytes
        read += max(c[2] for _, c in here) * sizes.head_bytes
        for prompt, (calls, _, _) in here:
            columns = prompt + step
            seen = (1 - sizes.sliding) * columns + sizes.sliding * min(columns, sizes.window)
            read += calls * seen * sizes.column_bytes
        multiplied = sum(c[1] for _, c in here) * sizes.layer_flops
        if together and step == 0:
            multiplied += LAYERS * fed * sizes.layer_flops
        multiplied += sum(c[2] for _, c in here) * sizes.head_flops
        expected += max(read / machine.bytes_per_second, multiplied / machine.flops)
    traces = [trace(c, 0 if together else LAYERS) for c in counts]
    measured = Roofline(sizes, machine).step_seconds(traces, prompts)
    np.testing.assert_allclose(measured.sum(), expected, rtol=1e-12)
    assert measured.shape == (max(map(len, counts)),)


def test_sizes_are_those_of_the_model(hooked, stock):
    sizes = Sizes.of(hooked)
    layers = sum(p.numel() for layer in hooked.parts.layers for p in layer.parameters())
    assert LAYERS * sizes.layer_bytes == 4 * layers
    assert sizes.layer_flops == 2 * layers / LAYERS
    assert sizes.head_bytes == 4 * stock.get_output_embeddings().weight.numel()
    assert sizes.head_flops == 2 * stock.get_output_embeddings().weight.numel()
    batch = Batch(hooked, [0], 3)
    with torch.no_grad():
        batch.prefill(torch.arange(3)[None])
    stored = batch.cache.layer(0, 3)
    assert sizes.column_bytes == sum(t.numel() * t.element_size() for t in stored) / 3
    whole = [kind == "full_attention" for kind in hooked.parts.attention]
    assert sizes.sliding == 1 - sum(whole) / LAYERS


def test_sizes_count_weights_in_int8():
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    before = Sizes.of(model)
    for layer in model.layers:
        quantize_int8(layer)
    quantize_int8(model.model, only=model.lens.head)
    after = Sizes.of(model)
    rows, width = model.model.lm_head.out_features, model.width
    assert after.head_bytes == rows * (width + 4)  # integers, and a scale for each row
    norms = 2 * width
    linear = [m for m in model.layers[0].modules() if isinstance(m, Int8Linear)]
    weights = sum(m.values.numel() + 4 * m.out_features for m in linear)
    assert after.layer_bytes == weights + 4 * norms
    assert before.layer_bytes == 4 * (sum(m.values.numel() for m in linear) + norms)
    assert before.column_bytes == after.column_bytes


def test_machine_reads_about_as_fast_as_a_sum():
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    measured = measure_machine(model)
    memory, square = torch.ones(20_000_000), torch.ones(1024, 1024)
    began = time.perf_counter()
    memory.sum()
    read = memory.numel() * 4 / (time.perf_counter() - began)
    began = time.perf_counter()
    square @ square
    multiplied = 2 * 1024**3 / (time.perf_counter() - began)
    # tens of times is what a busy machine and a cache make of it; a wrong unit would be thousands
    assert 0.02 < measured.bytes_per_second / read < 200
    assert 0.02 < measured.flops / multiplied < 50


@pytest.fixture
def timed() -> Bench:
    model = HookedModel(tiny("qwen2"), layout=LAYOUT)
    prompts = [torch.arange(1, n) for n in (4, 7, 5)]
    return Bench(model, prompts, BenchConfig(6, exact_length=True, rounds=3))


def test_records_follow_from_the_trials(timed):
    seen = []

    def progress(work):
        seen.extend(work)
        return iter(seen)

    contenders = timed.contenders(["both=static@2", "both=spark:even@1"], 2)
    records = timed.run(contenders, 2, progress)
    assert len(seen) == 3 * 2  # rounds of two batches, the last with one row
    names = [r["decoding"] for r in records]
    assert names[:2] == ["full", "stock generate"]
    assert names[-1] == "both=static@4, accept=exact"
    full, _, static, even, _ = records
    for record in records:
        ratios = np.divide(full["trials"], record["trials"])
        quartiles = [record[f"speedup{end}"] for end in ("_low", "", "_high")]
        np.testing.assert_allclose(quartiles, np.percentile(ratios, [25, 50, 75]))
        assert record["seconds"] == np.median(record["trials"])
        assert len(record["trials"]) == 6
    assert full["layer_calls"] == LAYERS
    assert full["ideal_speedup"] == full["efficiency"] == 1
    assert static["layer_calls"] == 2
    lengths = {"max_new_tokens": 6, "eos_token_id": -1}
    outs = timed.model.generate(timed.prompts, "both=spark:even@1", **lengths)
    by_hand = [
        np.mean([o.trace.layer_calls.mean() for o in outs[i:j]]) for i, j in ((0, 2), (2, 3))
    ]
    assert even["layer_calls"] == pytest.approx(np.mean(by_hand))
    layer, head = full["layer_seconds"], full["head_seconds"]
    prompt = full["prefill_seconds"] / 6  # of each of six tokens
    assert prompt > 0
    # at full depth the first of six tokens comes out of the prompt's pass
    assert static["ideal_speedup"] == pytest.approx(
        (prompt + 5 / 6 * LAYERS * layer + head) / (prompt + 2 * layer + head)
    )
    assert static["efficiency"] == static["speedup"] / static["ideal_speedup"]
    assert all(0 < r["roofline_share"] < 1 for r in (full, static, even))


@pytest.mark.parametrize(("kind", "depth"), [(TunedLens, 2), (BranchHead, 2), (DrafterHead, 0)])
def test_heads_of_few_depths_can_be_timed(timed, kind, depth):
    timed.model.heads = kind.untrained(timed.model.lens, (depth,), width=32, num_layers=1)
    layer, head = call_costs(timed.model, 1, None, 4, steps=3)
    assert layer > 0 < head


def test_first_tokens_are_timed_apart(timed):
    """A contender takes two seconds for the first tokens, and three for each later step."""

    def decode(prompts, tokens=6):
        seconds = (2 + 3 * (tokens - 1)) / (len(prompts) * tokens)
        return Trial(seconds, tokens, ttft=2)

    timed = replace(timed, config=replace(timed.config, time_first_token=True))
    contender, full = Contender("", decode), timed.policy("full")
    (record, of_full) = timed.run([contender, full], 2)  # batches of two rows and of one
    assert record["ttft"] == pytest.approx(2)
    assert record["tpot"] == pytest.approx((1.5 + 3) / 2)
    assert record["tpot_speedup"] == 1
    assert np.isnan(record["tpot_roofline_share"])
    outs = timed.model.generate(timed.prompts[:2], "full", 6, eos_token_id=-1)
    lengths = [len(p) for p in timed.prompts[:2]]
    roofline = timed.roofline.step_seconds([o.trace for o in outs], lengths)
    assert full.trials[0].roofline_tpot == pytest.approx(roofline[1:].sum() / (2 * 5))
    assert of_full["tpot_roofline_share"] == pytest.approx(
        np.median([t.roofline_tpot / t.tpot for t in full.trials])
    )
    shown = {column.name for column in shown_columns([record])}
    assert {"ttft", "tpot", "tpot_speedup"} < shown
    assert "ideal_speedup" not in shown
    (record,) = timed.run([Contender("", lambda prompts: decode(prompts, 1))], 2)
    assert np.isnan(record["tpot"])  # no reply had a second token


def test_the_first_token_is_timed_after_one_pass_of_all_layers(timed, monkeypatch):
    """With a clock that each layer call advances by a second."""
    now = 0.0

    def tick(*_):
        nonlocal now
        now += 1

    for layer in timed.model.parts.layers:
        layer.register_forward_hook(tick)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for contender in (timed.policy("full"), timed.stock("")):
        trial = contender.decode(timed.prompts)
        assert trial.ttft == LAYERS
        assert trial.seconds * 6 * len(timed.prompts) == 6 * LAYERS


def test_self_speculation_is_timed_where_the_stock_one_runs(timed):
    """The stock self-speculation supports one row only."""
    for rows, more in ((1, 1), (2, 0)):
        assert len(timed.contenders(["both=static@2"], rows)) == 4 + more
    timed = replace(timed, config=replace(timed.config, compiled=True))
    contenders = timed.contenders([], 1, stock=False)
    assert [c.name for c in contenders] == ["full", "full, not compiled"]
    assert [c.costs_known for c in contenders] == [
        True,
        False,
    ]  # the measured costs are those of compiled layers


def test_prompts_are_repeated_to_a_length(pocket):
    question = "What color is snow?"
    plain = bench_prompts(pocket, [question])[0]
    assert plain.equal(pocket.encode(question))
    long = bench_prompts(pocket, [question], 40)[0]
    assert len(long) == 40
    assert long[-len(plain) :].equal(plain)
    assert bench_prompts(pocket, [question], 3)[0].equal(plain[-3:])
    with pytest.raises(EepolicyError, match="one token or more"):
        bench_prompts(pocket, [question], 0)


def test_the_figure_shows_measured_and_ideal_times_and_the_roofline():
    records = [
        {
            "decoding": name,
            "trials": [0.001, 0.002, 0.003],
            "seconds": 0.002,
            "ideal_speedup": p,
            "roofline_seconds": 0.0005,
        }
        for name, p in (("full", 1.0), ("static@2", 2.0), ("stock generate", float("nan")))
    ]
    ax = Figure().subplots()
    milliseconds(records, ax)
    measured = {line.get_label(): line.get_xdata().tolist() for line in ax.lines}
    assert measured["ideal"][:2] == [2.0, 1.0]
    assert np.isnan(measured["ideal"][2])
    assert measured["roofline"] == [0.5] * 3
    ((bars, _, (whiskers,)),) = ax.containers
    assert bars.get_xdata().tolist() == [2.0] * 3
    assert [s[:, 0].tolist() for s in whiskers.get_segments()] == [[1.5, 2.5]] * 3
    assert [t.get_text() for t in ax.get_yticklabels()] == ["full", "static@2", "stock generate"]


@pytest.mark.slow
def test_bench_command(run, tmp_path):
    page = tmp_path / "page.md"
    arguments = ["--prompts", "2", "--rounds", "1", "--max-new-tokens", "12", "--context", "20"]
    written = ["--out", str(page), "--json"]
    out, _ = run("bench", "static@10", *arguments, "--batch", "1,2", *written)
    measured = json.loads(out)
    assert measured["prompt_tokens"] == [20]
    assert measured["exactly"]
    assert [r["rows"] for r in measured["results"]] == [1] * 5 + [2] * 4
    static = next(r for r in measured["results"] if r["decoding"] == "static@10")
    assert 10 < static["layer_calls"] < 20
    text = page.read_text()
    assert "## Batch 2" in text
    assert text.count("| `static@10` |") == 2
    assert "](images/page.svg)" in text
    assert "TTFT, ms" not in text
    drawn = (tmp_path / "images" / "page.svg").read_text()
    assert drawn.count(">static@10<") == 2
    assert ">Batch 2, prompts of 20 tokens<" in drawn
    out, _ = run("bench", "static@10", *arguments, "--first-token", "--json")
    for record in json.loads(out)["results"]:
        whole = record["ttft"] + 11 * record["tpot"]
        # medians of two turns each, on a machine that others use
        assert whole == pytest.approx(12 * record["seconds"], rel=0.5), record["decoding"]
    several = [*arguments[:-1], "6,20", "--no-stock"]
    out, _ = run("bench", "static@10", *several, "--out", str(page), "--first-token")
    assert "The device reads" in out
    assert "stock" not in out
    text = page.read_text()
    assert "2 prompts of 6, 20 tokens" in text
    assert text.count("| TTFT, ms |") == 2
    assert text.index("## Batch 1, prompts of 6 tokens") < text.index("prompts of 20 tokens\n")
    for wrong, message in (
        (["nonsense"], "nonsense"),
        (["--batch", "many"], "rows of a batch are numbers"),
        (["--batch", "1,0"], "one row or more; got --batch 1,0"),
        (["--first-token", "--max-new-tokens", "1"], "no time after the first token"),
        (["--context", "1,20"], "two tokens or more; got --context 1,20"),
        (["--out", str(tmp_path / "none" / "page.md")], "there is no folder"),
        (["--prompts", "100000"], "test questions"),
    ):
        _, error = run("bench", *wrong, code=2)
        assert message in error


def test_default_policies_fit_the_model(pocket, hooked):
    for model in (pocket, HookedModel(hooked.model)):
        for spec in default_policies(model):
            parse_policy(spec).check(model.depth)
