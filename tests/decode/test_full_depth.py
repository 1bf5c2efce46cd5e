"""Full depth is the stock `generate`."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, LAYOUT
from decoding import PROMPT, PROMPTS

from eepolicy import (
    FullDepth,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_is_stock_generate(stock, hooked):
    lengths = []
    for seed in range(2):
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
    assert sum(lengths) > 50  # random models that end at once would test nothing


def test_a_batch_at_full_depth_is_stock_generate(stock, hooked):
    """Ragged prompts, padded on the left; `check_family` has greedy ones of every family."""
    width = max(map(len, PROMPTS))
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in PROMPTS])
    mask = torch.stack([torch.arange(width) >= width - len(p) for p in PROMPTS]).long()
    for sampling in ({}, {"temperature": 0.8}, {"temperature": 1.3, "top_p": 0.9}):
        torch.manual_seed(11)
        expected = stock.generate(
            ids, attention_mask=mask, max_new_tokens=20, do_sample=bool(sampling), **sampling
        )[:, width:]
        seed = {"seed": 11} if sampling else {}
        outs = hooked.generate(PROMPTS, max_new_tokens=20, **sampling, **seed)
        for out, row in zip(outs, expected.tolist(), strict=True):
            end = row.index(LAYOUT.end) + 1 if LAYOUT.end in row else len(row)
            assert out.tokens.tolist() == row[:end]


def test_sampling_with_one_seed_repeats(hooked):
    again = [
        hooked.generate(PROMPT, "static@3", 30, temperature=1.0, top_p=0.9, seed=s).tokens.tolist()
        for s in (3, 3, 4)
    ]
    assert again[0] == again[1] != again[2]
