"""A row does not depend on its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from decoding import PROMPTS, RandomDepths

from eepolicy import EepolicyError

NEW = 24  # two chunks of text and of speech, and a part of the next


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
    together = hooked.generate(PROMPTS, policy, max_new_tokens=NEW)
    for prompt, out in zip(PROMPTS, together, strict=True):
        alone = hooked.generate(prompt, policy, max_new_tokens=NEW)
        assert out.tokens.tolist() == alone.tokens.tolist()
        for name, value in vars(alone.trace).items():
            if name != "prefill_layer_calls":  # in a batch, a prefill depends on all rows
                assert np.array_equal(getattr(out.trace, name), value), name


@pytest.mark.parametrize(
    "options", [{"fill": "propagate"}, {"fill": "mask"}, {"max_pending": 2}], ids=str
)
def test_a_row_does_not_depend_on_its_neighbours_with_other_fills(stock, hooked, options):
    policy = "text=static@5,speech=margin>0.1@[2,4]"
    together = hooked.generate(PROMPTS, policy, max_new_tokens=NEW, **options)
    for prompt, out in zip(PROMPTS, together, strict=True):
        alone = hooked.generate(prompt, policy, max_new_tokens=NEW, **options)
        assert out.tokens.tolist() == alone.tokens.tolist()
        for name in ("depth", "layer_calls", "layer_positions", "filled", "readouts"):
            assert np.array_equal(getattr(out.trace, name), getattr(alone.trace, name)), name


def test_rows_that_exit_at_different_depths_share_one_readout(stock, hooked):
    heads = []
    handle = stock.lm_head.register_forward_pre_hook(lambda _, args: heads.append(len(args[0])))
    outs = hooked.generate(PROMPTS, RandomDepths(5), 20)
    handle.remove()
    steps = max(len(out.tokens) for out in outs)
    at = [[int(out.trace.depth[i]) for out in outs if i < len(out.tokens)] for i in range(steps)]
    assert any(len(set(depths)) > 1 for depths in at)
    assert heads == [len(depths) for depths in at]


@pytest.mark.parametrize("accept", ["all", "sampling"])
def test_a_seeded_row_samples_the_same_tokens_alone_and_in_a_batch(stock, hooked, accept):
    policy, options = "spark:triple@2", {"max_new_tokens": NEW, "temperature": 1.5}
    seeds = [3, 4, 3, 5]
    together = hooked.generate(PROMPTS, policy, accept=accept, seed=seeds, **options)
    for prompt, seed, out in zip(PROMPTS, seeds, together, strict=True):
        alone = hooked.generate(prompt, policy, accept=accept, seed=seed, **options)
        assert out.tokens.tolist() == alone.tokens.tolist()
    with pytest.raises(EepolicyError, match="one for each row; got 2 for 4 rows"):
        hooked.generate(PROMPTS, policy, seed=[1, 2], **options)
