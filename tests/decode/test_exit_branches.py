"""Exit branches while decoding, against stock models that end in the layers of the branch."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import LAYERS, LAYOUT, layers_of, tiny
from decoding import PROMPTS, ByPlace
from torch import nn

import eepolicy
from eepolicy import EepolicyError, HookedModel, Static
from eepolicy.heads import BranchHead, FittedHead, TunedLens
from eepolicy.testing.models import LayerCounter

NEW = 14
#: depth of each token: branches at 2 and 4, a tuned lens at 3, and full depth
DEPTHS = [6, 2, 2, 4, 3, 2, 6, 4, 4, 2, 3, 6, 2, 4]


@torch.no_grad()
def with_branches(model, dtype=torch.float64) -> HookedModel:
    """A hooked model with a branch of two layers at 2, of one at 4, and a tuned lens at 3."""
    hooked = HookedModel(model.to(dtype), layout=LAYOUT)
    two = BranchHead.untrained(hooked.lens, (2,), num_layers=2).at(2)
    one = BranchHead.untrained(hooked.lens, (4,), num_layers=1).at(4)
    tuned = TunedLens.untrained(hooked.lens, (3,), width=32).at(3)
    heads = FittedHead({2: two, 3: tuned, 4: one}).to(dtype)
    generator = torch.Generator().manual_seed(5)
    for parameter in heads.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
        parameter += 0.1 * noise * (parameter.std() if parameter.numel() > 1 else 1)
    hooked.heads = heads
    return hooked


def ending_in(hooked: HookedModel, depth: int) -> nn.Module:
    """A stock model of `depth` layers, then those of the branch, then its norm."""
    stock, branch = copy.deepcopy(hooked.model), hooked.heads.at(depth)
    inner = stock.transformer if hasattr(stock, "transformer") else stock.model
    name = "h" if hasattr(inner, "h") else "layers"
    setattr(inner, name, nn.ModuleList([*layers_of(stock)[:depth], *copy.deepcopy(branch.layers)]))
    setattr(inner, "ln_f" if name == "h" else "norm", copy.deepcopy(branch.norm))
    count = depth + len(branch.layers)
    stock.config.num_hidden_layers = count
    if getattr(stock.config, "layer_types", None):
        stock.config.layer_types = stock.config.layer_types[:count]
    return stock.eval()


@torch.no_grad()
def expected_tokens(hooked: HookedModel, ids: torch.Tensor, depth: int) -> torch.Tensor:
    """The most likely next token at each position, (tokens,), from stock models alone."""
    if depth == LAYERS:
        return hooked.model(ids[None]).logits[0].argmax(-1)
    if depth == 3:
        states = hooked.model(ids[None], output_hidden_states=True).hidden_states[3]
        return hooked.heads.logits(states, 3)[0].argmax(-1)
    return ending_in(hooked, depth)(ids[None]).logits[0].argmax(-1)


def test_branch_tokens_equal_those_of_a_stock_model_with_the_branch_layers(family):
    hooked = with_branches(tiny(family))
    outputs = hooked.generate(PROMPTS, ByPlace(DEPTHS), NEW, min_new_tokens=NEW)
    for out in outputs:
        assert out.trace.depth.tolist() == DEPTHS
        ids = torch.cat([out.prompt, out.tokens])
        for depth in {*DEPTHS}:
            expected = expected_tokens(hooked, ids, depth)[len(out.prompt) - 1 : -1]
            of_depth = torch.from_numpy(out.trace.depth == depth)
            of_depth &= expected != 4  # min_new_tokens forbids the end token
            assert out.tokens[of_depth].tolist() == expected[of_depth].tolist(), depth


def test_rows_do_not_depend_on_their_neighbours_and_costs_are_counted(family):
    hooked = with_branches(tiny(family))
    together = hooked.generate(PROMPTS, ByPlace(DEPTHS), NEW, min_new_tokens=NEW)
    for prompt, out in zip(PROMPTS, together, strict=True):
        with LayerCounter(hooked.model, hooked.heads) as counter:
            alone = hooked.generate(prompt, ByPlace(DEPTHS), NEW, min_new_tokens=NEW)
        assert alone.trace.to_dict() == out.trace.to_dict() | {"prefill_layer_calls": 0}
        trace = alone.trace
        assert trace.branch_calls.sum() == len(counter.branch_calls)
        calls = len(counter.calls) - trace.prefill_layer_calls
        assert trace.layer_calls.sum() == calls + len(counter.branch_calls)
        assert trace.branch_calls.tolist() == [{2: 2, 4: 1}.get(d, 0) for d in DEPTHS]
        assert (
            trace.mean_depth("speech")
            == (trace.depth + trace.branch_calls)[trace.modality == eepolicy.Modality.SPEECH].mean()
        )


def test_a_branch_runs_only_on_positions_that_it_has_not_processed():
    hooked = with_branches(tiny("llama"))
    with LayerCounter(hooked.model, hooked.heads) as counter:
        out = hooked.generate(PROMPTS[0], ByPlace(DEPTHS), NEW, min_new_tokens=NEW)
    # prompt of five: the branch at 2 first runs for token 1, the one at 4 for token 3
    assert [c[2] for c in counter.branch_calls if c[0] == 0] == [6, 1, 3, 4, 3]
    assert [c[2] for c in counter.branch_calls if c[0] == 2] == [8, 4, 1, 5]
    # token 2 attends to the five positions of the prompt, which are not counted for it
    assert out.trace.layer_positions[1] == 2 + 2 * 2


@pytest.mark.parametrize("rule", ["exact", "sampling"])
def test_verified_drafts_of_a_branch_are_the_tokens_of_the_full_model(family, rule):
    hooked = with_branches(tiny(family))
    plain = hooked.generate(PROMPTS, max_new_tokens=NEW)
    drafted = hooked.generate(PROMPTS, Static(2, on="both"), NEW, accept=rule, max_pending=3)
    assert [o.tokens.tolist() for o in drafted] == [o.tokens.tolist() for o in plain]
    assert any((o.trace.draft_status > 0).any() for o in drafted)


def test_a_threshold_reads_branches_and_other_heads():
    hooked = with_branches(tiny("qwen3"))
    policy = "both=confidence>0.3@[2,3,4]"
    for out in hooked.generate(PROMPTS, policy, NEW):
        ids = torch.cat([out.prompt, out.tokens])
        for depth in {*out.trace.depth.tolist()}:
            expected = expected_tokens(hooked, ids, depth)[len(out.prompt) - 1 : -1]
            of_depth = torch.from_numpy(out.trace.depth == depth)
            assert out.tokens[of_depth].tolist() == expected[of_depth].tolist()
        # a branch that was read counts, whether the position exits there or not
        at_2, past_2, past_4 = 2, 2, 3
        calls = {2: at_2, 3: past_2, 4: past_4, LAYERS: past_4}
        assert out.trace.branch_calls.tolist() == [calls[d] for d in out.trace.depth.tolist()]


@pytest.mark.parametrize("fill", ["mask", "propagate"])
def test_a_fill_that_keeps_no_states_is_refused_by_name(fill):
    hooked = with_branches(tiny("llama"))
    name = {"mask": "Mask", "propagate": "Propagate"}[fill]
    with pytest.raises(EepolicyError, match=rf"at depth 2 are branches.*{name}.*catch_up"):
        hooked.generate(PROMPTS[0], "both=static@2", NEW, fill=fill)
    # a depth with another head, and a policy that does not say where it reads
    assert hooked.generate(PROMPTS[0], "both=static@3", NEW, fill=fill).trace.depth.max() == 3
    with pytest.raises(EepolicyError, match=r"is a branch.*use fill='catch_up'"):
        hooked.generate(PROMPTS[0], ByPlace([2] * NEW), NEW, fill=fill)


def test_a_depth_without_a_head_is_refused_with_the_list():
    hooked = with_branches(tiny("llama"))
    with pytest.raises(EepolicyError, match=r"no head was fitted at depth 5.*depths 2 to 4"):
        hooked.generate(PROMPTS[0], "both=static@5", NEW)


def test_a_probe_reads_branches_as_decoding_does(family):
    hooked = with_branches(tiny(family))
    out = hooked.generate(PROMPTS[2], ByPlace(DEPTHS), NEW, record={"statistics": ["top1"]})
    count = len(out.tokens)
    result = eepolicy.probe(hooked, out, statistics=["top1"])
    assert result.depths.tolist() == [2, 3, 4, LAYERS]
    ids = torch.cat([out.prompt, out.tokens])
    for i, depth in enumerate(result.depths.tolist()):
        expected = expected_tokens(hooked, ids, depth)[len(out.prompt) - 1 : -1].tolist()
        assert result.top1[i].tolist() == expected
        for j in range(count):
            if out.trace.depth[j] == depth:
                assert out.record.top1[i, j] == expected[j]
    # heads that the model does not have
    other = HookedModel(hooked.model, layout=LAYOUT)
    again = eepolicy.probe(other, out, statistics=["top1"], heads=hooked.heads)
    assert again.top1.tolist() == result.top1.tolist()


def test_a_wide_probe_runs_the_branch_in_blocks():
    hooked = with_branches(tiny("llama"))
    ids = torch.randint(5, 60, (250,), generator=torch.Generator().manual_seed(1))
    whole = eepolicy.probe(hooked, ids, statistics=["top1"], depths=[2])
    expected = expected_tokens(hooked, ids, 2)
    assert whole.top1[0].tolist() == expected.tolist()
