"""What the benchmarks beside other libraries measure."""

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


def test_divergence_is_torchs(model):
    expected = []
    for ids in TEXTS.held_out:
        below, target = states(model, ids)
        for hidden in below:
            logs = plain_lens(model.model, hidden).log_softmax(-1)
            expected.append(nn.functional.kl_div(logs, target, reduction="batchmean").item())
    found = fitting.divergence(model, model.lens.logits, TEXTS.held_out)
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_our_fit_takes_the_steps_of_a_naive_loop(model):
    given = fitting.ours(model, TEXTS, 2)()
    assert given.seconds > 0
    order = random.Random(0).sample(range(4), 4)  # the seed's
    for depth in range(1, LAYERS):
        translator = nn.Linear(32, 32)
        nn.init.zeros_(translator.weight)
        nn.init.zeros_(translator.bias)
        adam = torch.optim.Adam(translator.parameters())
        for step in range(2):
            for group in adam.param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 2)) / 2
            for place in order[2 * step : 2 * step + 2]:
                below, target = states(model, TEXTS.train[place])
                hidden = below[depth - 1]
                logits = plain_lens(model.model, hidden + translator(hidden))
                (nn.functional.cross_entropy(logits, target) / 2).backward()
            adam.step()
            adam.zero_grad()
        hidden = states(model, TEXTS.held_out[0])[0][depth - 1]
        with torch.no_grad():
            moved = plain_lens(model.model, hidden + translator(hidden))
            found, lens = given.readout(hidden, depth), model.lens.logits(hidden, depth)
        torch.testing.assert_close(found, moved, rtol=0, atol=1e-4)  # half precision
        assert (found - lens).abs().max() > 1e-3


@pytest.mark.parametrize("way", [w for w in fitting.CONTENDERS if w != fitting.OURS])
def test_their_fit_comes_closer(model, way):
    pytest.importorskip("tuned_lens.nn.lenses")
    if find_spec("transformer_lens"):
        pytest.skip("tuned-lens 0.2 does not work beside transformer-lens 4")
    given = fitting.CONTENDERS[way](model, TEXTS, 2)()
    before = fitting.divergence(model, model.lens.logits, TEXTS.train)
    assert fitting.divergence(model, given.readout, TEXTS.train) < before


def test_a_process_says_what_its_way_took(tmp_path):
    numbers = {"tokens": 16, "batch": 1, "steps": 2, "held_out": 1, "threads": 1, "rounds": 1}
    args = argparse.Namespace(model="pocket", texts=tmp_path / "texts.npy", **numbers)
    np.save(args.texts, torch.randint(60, (4, 16)))
    [run] = fitting.measure(args, [fitting.OURS])[fitting.OURS]
    assert run["seconds"] > 0
    # 19 depths, each with a parameter, its gradient and two moments
    assert 16 * 19 * 256**2 / 2**20 < run["megabytes"] < 2000
    assert run["kl"] > 0


def test_a_peak_can_be_forgotten():
    held = bytearray(1 << 28)
    held[:: 1 << 12] = bytes([1]) * (1 << 16)
    peak = processes.megabytes()
    del held
    processes.forget()
    # where the system cannot forget, the peak stays
    assert processes.megabytes() <= peak


def test_memory_is_a_column_where_it_was_measured():
    figures = {
        "layer_calls": 1.0,
        "seconds": 1.0,
        "ratio": 1.0,
        "ratio_low": 1.0,
        "ratio_high": 1.0,
    }
    record = {"decoding": "ours", **figures}
    assert "memory" not in peers.table([record])[0]
    heading, _, row = peers.table([record | {"memory": 12.3}])
    assert heading.endswith("| memory, MB |")
    assert row.endswith("| 12 |")


def test_a_full_size_page_says_what_its_records_say(monkeypatch):
    """On a small model, not compiled: what is timed and written is the same."""
    model = HookedModel(tiny("qwen2"))
    monkeypatch.setattr(model, "_compiled", lambda: None)
    found = [{"model": "GLM-4-Voice"} | full_size.measure(model, rows, 8, 12, 2) for rows in (1, 2)]
    names = [[r["decoding"] for r in what["records"]] for what in found]
    assert names[1] == ["full", full_size.COMPILED, "text=spark:triple@4", "text=spark:triple@3"]
    assert names[0][:4] == names[1]
    assert "stock assistant_early_exit=4" in names[0]
    page = "\n".join(full_size.page(found, Path("images/a.svg")))
    _, stock, most, half = found[1]["records"]
    ratio = np.median(np.divide(stock["turns"], most["turns"]))
    assert f"against the stock generate compiled | {ratio:.2f} [" in page
    assert f"harvest of `text=spark:triple@3` | {half['harvest']:.2f} |" in page
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
