"""The benchmarks against other libraries, and at full size."""

from __future__ import annotations

import argparse
import math
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LAYERS, LAYOUT, plain_lens, tiny
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks import fitting, full_size, peers, processes
from eepolicy import HookedModel
from eepolicy.analysis.timing.contenders import BenchConfig

IDS = torch.randint(60, (8, 12), generator=torch.Generator().manual_seed(5))
TEXTS = fitting.Texts(IDS[:4], IDS[4:6], IDS[6:])


@pytest.fixture
def model() -> HookedModel:
    return HookedModel(tiny("llama"), layout=LAYOUT)


@torch.no_grad()
def states(model, ids):
    """Hidden states below full depth, and the last layer's probabilities."""
    out = model.model(ids[None], output_hidden_states=True)
    return [h[0] for h in out.hidden_states[1:-1]], out.logits[0].softmax(-1)


def test_divergence_equals_kl_div_of_torch(model):
    expected = []
    for ids in TEXTS.held_out:
        below, target = states(model, ids)
        for hidden in below:
            logs = plain_lens(model.model, hidden).log_softmax(-1)
            expected.append(nn.functional.kl_div(logs, target, reduction="batchmean").item())
    measured = fitting.divergence(model, model.lens.logits, TEXTS.held_out)
    assert measured == pytest.approx(np.mean(expected), rel=1e-5)


def test_our_fit_takes_the_steps_of_a_naive_loop(model):
    result = fitting.ours(model, TEXTS, 2)()
    assert result.seconds > 0
    order = random.Random(0).sample(range(4), 4)  # the order of the seed
    for depth in range(1, LAYERS):
        translator = nn.Linear(32, 32)
        nn.init.zeros_(translator.weight)
        nn.init.zeros_(translator.bias)
        adam = torch.optim.Adam(translator.parameters())
        for step in range(2):
            for group in adam.param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 2)) / 2
            for index in order[2 * step : 2 * step + 2]:
                below, target = states(model, TEXTS.train[index])
                hidden = below[depth - 1]
                logits = plain_lens(model.model, hidden + translator(hidden))
                (nn.functional.cross_entropy(logits, target) / 2).backward()
            adam.step()
            adam.zero_grad()
        hidden = states(model, TEXTS.held_out[0])[0][depth - 1]
        with torch.no_grad():
            moved = plain_lens(model.model, hidden + translator(hidden))
            measured, lens = result.readout(hidden, depth), model.lens.logits(hidden, depth)
        torch.testing.assert_close(measured, moved, rtol=0, atol=1e-4)  # half precision
        assert (measured - lens).abs().max() > 1e-3


@pytest.mark.parametrize("contender", [c for c in fitting.CONTENDERS if c != fitting.OURS])
def test_fits_of_tuned_lens_lower_the_divergence(model, contender):
    pytest.importorskip("tuned_lens.nn.lenses")
    if find_spec("transformer_lens"):
        pytest.skip("tuned-lens 0.2 does not work beside transformer-lens 4")
    result = fitting.CONTENDERS[contender](model, TEXTS, 2)()
    before = fitting.divergence(model, model.lens.logits, TEXTS.train)
    assert fitting.divergence(model, result.readout, TEXTS.train) < before


@pytest.mark.slow
def test_a_process_measures_its_method(tmp_path):
    numbers = {"tokens": 16, "batch": 1, "steps": 2, "held_out": 1, "threads": 1, "rounds": 1}
    args = argparse.Namespace(model="pocket", texts=tmp_path / "texts.npy", **numbers)
    np.save(args.texts, torch.randint(60, (4, 16)))
    [run] = fitting.measure(args, [fitting.OURS])[fitting.OURS]
    assert run["seconds"] > 0
    # 19 depths, each with a parameter, its gradient and two moments
    assert 16 * 19 * 256**2 / 2**20 < run["megabytes"] < 2000
    assert run["kl"] > 0


def test_a_peak_can_be_reset():
    memory = bytearray(1 << 28)
    memory[:: 1 << 12] = bytes([1]) * (1 << 16)
    peak = processes.megabytes()
    del memory
    processes.reset_peak()
    # the peak stays if the system cannot reset it
    assert processes.megabytes() <= peak


def test_memory_is_a_column_where_it_was_measured():
    figures = {
        "layer_calls": 1.0,
        "seconds": 1.0,
        "speedup": 1.0,
        "speedup_low": 1.0,
        "speedup_high": 1.0,
    }
    record = {"decoding": "ours", **figures}
    assert "memory" not in peers.table([record])
    heading, _, row = peers.table([record | {"memory": 12.3}]).splitlines()
    assert heading.endswith("| memory, MB |")
    assert row.endswith("| 12 |")


def test_a_full_size_page_says_what_its_records_say(monkeypatch):
    """On a small model, not compiled: what is timed and written is the same."""
    model = HookedModel(tiny("qwen2"))
    monkeypatch.setattr(model, "compiled_executor", lambda: None)
    config = BenchConfig(12, exact_length=True, rounds=2, compiled=True, time_first_token=True)
    measured = [
        {"model": "GLM-4-Voice"} | full_size.measure(model, rows, 8, config) for rows in (1, 2)
    ]
    names = [[r["decoding"] for r in m["records"]] for m in measured]
    assert names[1] == ["full", full_size.COMPILED, "text=spark:triple@4", "text=spark:triple@3"]
    assert names[0][:4] == names[1]
    assert "stock assistant_early_exit=4" in names[0]
    page = "\n".join(full_size.page(measured, Path("images/a.svg")))
    _, stock, most, half = measured[1]["records"]
    ratio = np.median(np.divide(stock["trials"], most["trials"]))
    assert f": speed-up over the stock generate compiled | {ratio:.2f} [" in page
    assert f"efficiency of `text=spark:triple@3` | {half['efficiency']:.2f} |" in page
    # three tokens take 6 + 4 + 4 layer calls
    assert f"{0.95 * 6 / (14 / 3):.2f} (0.95 of" in page


@pytest.mark.parametrize("name", full_size.CONFIGS)
def test_full_size_shapes_are_the_published_ones(name):
    """Parameters of the decoders, by the layers' formula."""
    config = full_size.CONFIGS[name]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    width, wide, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    head = config.head_dim if hasattr(config, "head_dim") else width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    layer = 2 * queries * width + 2 * keys * width + queries + 2 * keys  # biases of the three
    layer += 3 * width * wide + 2 * width
    whole = config.num_hidden_layers * layer + width + 2 * vocabulary * width
    assert sum(p.numel() for p in model.parameters()) == whole
    assert {"Step-Audio-2-mini": 7.66e9, "GLM-4-Voice": 9.4e9}[name] == pytest.approx(
        whole, rel=0.03
    )
