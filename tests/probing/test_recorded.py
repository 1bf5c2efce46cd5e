"""Records of decoding: the layers that ran, and their statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LAYERS

from eepolicy import EepolicyError, probe
from eepolicy.decode.recorder import Recorder
from eepolicy.heads import TunedLens


def test_a_record_does_not_keep_prompt_states_in_memory():
    recorder = Recorder(1)
    for columns in (90, 1):  # the first token is fed with the prompt
        recorder.begin_token([0], torch.zeros(1, columns, 8))
        recorder.record_layer([0], [columns], 1, torch.zeros(1, columns, 8))
    sizes = [
        state.untyped_storage().nbytes() for fed in recorder.states[0] for state in fed.values()
    ]
    assert sizes == [4 * 8] * 4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("fill", ["catch_up", "propagate", "mask"])
def test_a_record_holds_what_really_ran(hooked, fill):
    prompts = [torch.randint(60, (n,), generator=torch.Generator().manual_seed(n)) for n in (4, 7)]
    calls: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out, i=i: calls.append(i))
        for i, layer in enumerate(hooked.parts.layers, start=1)
    ]
    with_record = hooked.generate(prompts, "spark:triple@3", 16, fill=fill, record=True)
    for hook in hooks:
        hook.remove()
    plain = hooked.generate(prompts, "spark:triple@3", 16, fill=fill)
    for recorded, out in zip(with_record, plain, strict=True):
        assert recorded.tokens.tolist() == out.tokens.tolist()
        record, depth = recorded.record, recorded.trace.depth
        ran = ~np.isnan(record.entropy)
        below = np.arange(1, LAYERS + 1)[:, None] <= depth
        assert ran[below].all()
        if fill == "catch_up":  # up to the last refresh, all layers have run
            refresh = np.flatnonzero(depth == LAYERS)[-1]
            assert ran[:, : refresh + 1].all()
            assert not ran[3:, refresh + 1 :].any()
            full = probe(hooked, recorded)
            for name in ("entropy", "confidence", "cosine_previous"):
                np.testing.assert_allclose(
                    getattr(record, name)[ran], getattr(full, name)[ran], atol=5e-5
                )
            np.testing.assert_allclose(
                record.kl[:, : refresh + 1], full.kl[:, : refresh + 1], atol=5e-5
            )
        else:
            assert (ran == below).all()
            assert np.isnan(record.kl[:, depth < LAYERS]).all()
            early = depth < LAYERS
            assert np.isnan(record.agreement[:, early]).all()
            assert (record.saturation_depth[early] == -1).all()
            assert (record.agreeing_depth[~early] >= 1).all()
            assert record.by_modality().rank_last.dropna().min() >= 1
        # the token came from the deepest layer that had run when it was read out
        read = record.top1[depth - 1, np.arange(len(record))]
        assert read.tolist() == recorded.tokens.tolist()
        assert np.isnan(record.hidden_states[..., 0]).tolist() == (~ran).tolist()


@pytest.mark.parametrize("family", ["qwen2"])
@pytest.mark.parametrize("accept", ["exact", "top:3"])
def test_a_record_excludes_rejected_drafts(hooked, accept):
    prompts = [
        torch.randint(60, (n,), generator=torch.Generator().manual_seed(n)) for n in (4, 7, 9)
    ]
    outs = hooked.generate(prompts, "static@3", 16, accept=accept, record=True)
    for out in outs:
        assert 2 in out.trace.draft_status  # a draft was replaced
        full = probe(hooked, out)
        ran = ~np.isnan(out.record.entropy)
        assert ran[:3].all()
        np.testing.assert_allclose(out.record.entropy[ran], full.entropy[ran], atol=5e-5)


@pytest.mark.parametrize("family", ["llama"])
def test_a_record_accepts_options_of_a_probe(hooked):
    prompt = torch.arange(5)
    out = hooked.generate(prompt, max_new_tokens=6, record={"statistics": ["entropy"], "top_k": 2})
    assert out.record.statistics == ("entropy",)
    assert out.record.top_tokens.shape == (LAYERS, len(out.tokens), 2)
    assert hooked.generate(prompt, max_new_tokens=6).record is None
    with pytest.raises(EepolicyError, match="a record takes"):
        hooked.generate(prompt, record={"save": "x"})
    assert hooked.generate(prompt, max_new_tokens=6, record={}).record.statistics
    for wrong, match in (
        ({"statistics": ["entrop"]}, "statistics is a list"),
        ({"dtype": torch.bfloat16}, "dtype is float16"),
        ({"heads": TunedLens.untrained(hooked.lens, (2,), width=32), "depths": [3]}, "at depth 3"),
    ):
        with pytest.raises(EepolicyError, match=match):
            hooked.generate(prompt, record=wrong)
