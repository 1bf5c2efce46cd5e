"""The depth decoder: its cache, its fills and its layer calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eepolicy import EepolicyError, ExitPolicy
from eepolicy.codebooks import CodebookPolicy, HookedCodebookModel
from eepolicy.heads import TunedLens
from eepolicy.testing.codebooks import csm_config, random_csm

PROMPT = torch.tensor([7, 3, 21, 9])
#: depths of codebooks 1 to 4 in the schedule `spark:odd@1` of the depth decoder
DEPTHS = (1, 3, 1, 3)


@pytest.fixture(scope="module")
def stock():
    return random_csm()


@pytest.fixture(scope="module")
def model(stock):
    return HookedCodebookModel(stock)


class Calls:
    """Counts the calls of some layers, and the positions of each, with hooks."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.calls = [0] * len(layers)
        self.positions = [0] * len(layers)
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._count(index))

    def _count(self, index):
        def count(_, args):
            self.calls[index] += 1
            self.positions[index] += args[0].shape[1]

        return count


def counted(policies, frames=4, **options):
    """A reply, and the calls of the layers of both models."""
    stock = random_csm()
    model = HookedCodebookModel(stock)
    backbone = Calls(stock.backbone_model.layers)
    depth = Calls(stock.depth_decoder.model.layers)
    return model.generate(PROMPT, *policies, max_new_tokens=frames, **options), backbone, depth


@pytest.mark.parametrize("fill", ["catch_up", "mask", "propagate"])
@pytest.mark.parametrize(
    "policies", [("full", "full", "all"), ("static@2", "spark:odd@1", "all"), ("full", "full", 3)]
)
def test_layer_calls_are_those_that_hooks_count(policies, fill):
    out, backbone, depth = counted(policies, depth_fill=fill)
    trace = out.trace
    first, other = trace.backbone, trace.depth_decoder
    assert first.layer_calls.sum() + first.prefill_layer_calls == sum(backbone.calls)
    # `propagate` calls a layer for one position's keys and values
    stored = other.filled.sum() if fill == "propagate" else 0
    assert other.layer_calls.sum() == trace.depth_layer_calls().sum() == sum(depth.calls) - stored
    assert other.layer_positions.sum() == sum(depth.positions) - stored
    assert other.prefill_layer_calls == 0


def test_positions_pending_at_the_end_of_a_frame_are_never_computed():
    out, _, depth = counted(("full", "static@1", "all"))
    assert depth.calls[1:] == [0, 0]
    assert depth.positions[0] == len(out.codes) * 5  # the state and four codes of each frame


def test_one_codebook_never_runs_the_depth_decoder():
    out, _, depth = counted(("full", "full", "first:1"))
    assert depth.calls == [0, 0, 0]
    assert not len(out.trace.depth_decoder)
    assert out.trace.depth_layer_calls().tolist() == [0] * 4


@torch.no_grad()
@pytest.mark.parametrize("fill", ["propagate", "mask"])
def test_approximate_fills_equal_a_plain_loop(stock, model, fill):
    """Layer by layer over whole frames, with a mask for each layer."""
    out = model.generate(PROMPT, None, "spark:odd@1", depth_fill=fill, max_new_tokens=2)
    inputs = stock.embed_text_tokens(PROMPT)[None]
    state = stock.backbone_model(inputs_embeds=inputs).last_hidden_state[0, -1]
    decoder, codes = stock.depth_decoder.model, out.codes[0].tolist()
    known = codes[:1]
    for codebook in range(1, 5):
        offsets = torch.arange(codebook) * stock.config.vocab_size
        embedded = decoder.embed_tokens(torch.tensor(known) + offsets)
        hidden = decoder.inputs_embeds_projector(torch.cat([state[None], embedded]))[None]
        # the state's position runs all layers, the others those of their depth
        depths = [3, *DEPTHS[:codebook]]
        hidden = run(decoder, hidden, depths, fill)
        logits = (
            decoder.norm(hidden[0, -1]) @ stock.depth_decoder.codebooks_head.weight[codebook - 1]
        )
        known.append(int(logits.argmax()))
    assert known == codes


def run(decoder, hidden, depths, fill):
    """The states of all positions, each at its depth."""
    columns = hidden.shape[1]
    rotations = decoder.rotary_emb(hidden, torch.arange(columns)[None])
    for index, layer in enumerate(decoder.layers):
        ran = torch.tensor([depth > index for depth in depths])
        causal = torch.ones(columns, columns).tril().bool()
        if fill == "mask":
            causal &= ran[None] | torch.eye(columns).bool()
        after = layer(hidden, attention_mask=causal[None, None], position_embeddings=rotations)
        # the state of an exited position stays, and gives the keys and values of the layers above
        hidden = torch.where(ran[None, :, None], after, hidden)
    return hidden


def test_positions_of_the_depth_decoder_restart_in_each_frame(model):
    out = model.generate(PROMPT, None, "static@2", "first:4", max_new_tokens=3)
    trace = out.trace.depth_decoder
    assert trace.chunk.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert trace.phase.tolist() == [0, 1, 2] * 3
    assert trace.since_refresh.tolist() == [1, 2, 3] * 3


def test_a_policy_with_a_history_sees_the_codes_before(model):
    seen = []

    class Watch(ExitPolicy):
        needs_history = True
        on = "speech"

        def depths(self, step):
            seen.append((int(step.chunk[0]), int(step.phase[0]), int(step.history.token[0])))
            return torch.full_like(step.phase, step.full_depth)

    out = model.generate(PROMPT, None, Watch(), max_new_tokens=2)
    codes = [code for frame in out.codes[:, 1:].tolist() for code in frame]
    expected = zip([0] * 4 + [1] * 4, [0, 1, 2, 3] * 2, [-1, *codes[:-1]], strict=True)
    assert seen == list(expected)


def test_a_depth_decoder_with_other_weights_is_noticed():
    stock = random_csm(csm_config(layers=1, depth_layers=1))
    stock.depth_decoder.model.norm.register_forward_hook(lambda _, args, output: output)
    HookedCodebookModel(stock)  # no error: the hook changes nothing
    original = stock.depth_decoder.forward

    def doubled(*args, **options):
        output = original(*args, **options)
        output.logits = output.logits * 2
        return output

    stock.depth_decoder.forward = doubled
    with pytest.raises(EepolicyError, match="layer loop of the depth decoder differs"):
        HookedCodebookModel(stock)


PROMPTS = [PROMPT, torch.tensor([5, 8]), torch.tensor([30, 2, 11])]


class StopsRow(CodebookPolicy):
    """One row of the batch gets a single code in each frame."""

    def __init__(self, row):
        self.row = row

    def stops(self, step, readout):
        stops = torch.zeros(len(step.frame), dtype=torch.bool)
        if len(stops) == len(PROMPTS):  # the row has not stopped
            stops[self.row] = True
        return stops


@pytest.mark.parametrize("fill", ["catch_up", "propagate", "mask"])
@pytest.mark.parametrize("row", range(3))
def test_frames_that_stop_after_their_first_code_leave_the_others_alone(model, fill, row):
    options = {"depth_fill": fill, "missing": "code:3", "max_new_tokens": 3}
    together = model.generate(PROMPTS, "full", "static@1", StopsRow(row), **options)
    for number, (prompt, out) in enumerate(zip(PROMPTS, together, strict=True)):
        own = "first:1" if number == row else "all"
        alone = model.generate(prompt, "full", "static@1", own, **options)
        assert out.codes.tolist() == alone.codes.tolist()
        assert out.trace.depth_layer_calls().tolist() == alone.trace.depth_layer_calls().tolist()


class FirstRowExits(ExitPolicy):
    """The first row of a batch exits after one layer."""

    def depths(self, step):
        depths = torch.full(step.phase.shape, 3)
        depths[0] = 1
        return depths


def test_fitted_maps_are_used_where_rows_exit_at_several_depths(stock):
    lens = HookedCodebookModel(stock).depth_decoder.lens
    width = csm_config().depth_decoder_config.hidden_size
    maps = TunedLens.untrained(lens, (1, 2), width=width)
    for seed, parameter in enumerate(maps.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.data += noise
    model = HookedCodebookModel(stock, depth_heads=maps)
    together = model.generate(PROMPTS, "full", FirstRowExits(), max_new_tokens=3)
    for number, (prompt, out) in enumerate(zip(PROMPTS, together, strict=True)):
        depth = "full" if number else "static@1"
        alone = model.generate(prompt, "full", depth, max_new_tokens=3)
        assert out.codes.tolist() == alone.codes.tolist()
    plain = HookedCodebookModel(stock).generate(PROMPT, "full", "static@1", max_new_tokens=3)
    assert together[0].codes.tolist() != plain.codes.tolist()  # the maps matter
