"""Exit heads: against the stock model, as modules, files and fingerprints."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import LAYERS, LAYOUT, plain_lens, tiny
from safetensors import safe_open
from torch import nn

from eepolicy import EepolicyError, ExitHead, HookedModel, load
from eepolicy.heads import (
    KINDS,
    BranchHead,
    FittedHead,
    HeadSize,
    LinearHead,
    LowRankHead,
    TunedLens,
    load_heads,
    read_notes,
)
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.loading.pocket import pocket_folder

BELOW = tuple(range(1, LAYERS))


@torch.no_grad()
def perturbed(head):
    """The head with noise added to its initial weights."""
    generator = torch.Generator().manual_seed(3)
    for parameter in head.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return head


def test_lens_is_norm_and_head_of_stock_hidden_states(stock, hooked):
    """Layer by layer; the stock model's last hidden state is already normed."""
    ids = torch.randint(60, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = stock(ids, output_hidden_states=True)
        states = list(hooked.hidden_states(ids))
        for depth in range(1, LAYERS):
            expected = plain_lens(stock, out.hidden_states[depth])
            torch.testing.assert_close(
                hooked.lens.logits(states[depth - 1], depth), expected, rtol=0, atol=1e-4
            )
        last = hooked.logits(states[-1], LAYERS)
    # measured 4e-6 on logits of spread 2
    torch.testing.assert_close(last, out.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [TunedLens, LinearHead, LowRankHead])
def test_heads_start_as_the_lens_and_compute_their_formula(hooked, stock, kind):
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    head = kind.untrained(hooked.lens, BELOW, width=32, rank=4, seed=0)
    with torch.no_grad():
        lens = plain_lens(stock, hidden)
        torch.testing.assert_close(head.logits(hidden, 2), lens, rtol=0, atol=1e-5)
        own = perturbed(head).at(2).state_dict()
        norm = stock.transformer.ln_f if hasattr(stock, "transformer") else stock.model.norm
        if kind is TunedLens:
            moved = hidden + hidden @ own["weight"].T + own["bias"]
            expected = plain_lens(stock, moved)
        else:
            weight = own.get("weight")
            if weight is None:
                weight = stock.lm_head.weight + own["up"] @ own["down"]
            expected = norm(hidden) @ weight.T
            cap = getattr(stock.config, "final_logit_softcapping", None)
            expected = torch.tanh(expected / cap) * cap if cap and kind is LinearHead else expected
            if cap and kind is LowRankHead:
                expected = torch.tanh(expected / cap) * cap
        logits = head.logits(hidden, 2)
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)  # measured 4e-6
        speech = head.restricted_to(LAYOUT.speech).logits(hidden, 2)
        torch.testing.assert_close(speech, logits[:, 20:60], rtol=0, atol=1e-5)
        lens_over = hooked.lens.restricted_to(LAYOUT.speech).logits(hidden, 2)
        torch.testing.assert_close(lens_over, lens[:, 20:60], rtol=0, atol=1e-5)


def test_head_files_round_trip_and_fit_one_model_only(hooked, stock, family, tmp_path):
    head = perturbed(LowRankHead.untrained(hooked.lens, (1, 4), rank=3))
    path = tmp_path / "heads.safetensors"
    head.save(path, stock, {"data": "none"})
    again = load_heads(path, hooked.lens, stock)
    assert repr(again) == repr(head) == "LowRankHead(depths 1, 4)"
    for name, weight in head.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    assert read_notes(path)["notes"] == {"data": "none"}
    other = tiny(family, seed=9)
    with pytest.raises(EepolicyError, match=r"were fitted on a .* weights .*, this model is a"):
        load_heads(path, HookedModel(other).lens, other)
    path.write_text("none")
    with pytest.raises(EepolicyError, match="is not a file of heads"):
        read_notes(path)


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        (TunedLens, "weight", (1, 32)),
        (TunedLens, "bias", (1,)),
        (LowRankHead, "up", (1, 4)),
        (LinearHead, "weight", (60, 1)),
    ],
)
def test_weights_that_broadcast_are_refused(hooked, stock, kind, name, shape, tmp_path):
    file = tmp_path / "heads.safetensors"
    head = kind.untrained(hooked.lens, (2,), width=32, rank=4)
    head.save(file, stock, {})
    load_heads(file, hooked.lens, stock)
    setattr(head.at(2), name, nn.Parameter(torch.zeros(shape), requires_grad=False))
    head.save(file, stock, {})
    with pytest.raises(EepolicyError, match=r"heads\.safetensors: the head at depth 2"):
        load_heads(file, hooked.lens, stock)


def test_a_fingerprint_does_not_depend_on_precision(stock):
    half = stock.to(torch.bfloat16)
    rounded = fingerprint(half)
    assert fingerprint(half.to(torch.float32)) == rounded


def test_heads_move_with_their_model():
    hooked = HookedModel(tiny("llama"))
    hooked.heads = LinearHead.untrained(hooked.lens, (2, 3), width=32, rank=4, seed=0)
    assert hooked.to("meta") is hooked
    assert {part.device.type for part in hooked.heads.parameters()} == {"meta"}
    assert hooked.logits(torch.zeros(1, 32, device="meta"), 2).device.type == "meta"
    restricted = hooked.heads.restricted_to((0, 20)).to("meta", torch.float16)
    assert restricted.ids == (0, 20)
    assert restricted.head.at(2).weight.dtype == torch.float16


def depths_for(kind: str) -> tuple[int, ...]:
    """Depths 2 and 3, or 0 for a drafter."""
    return tuple(d for d in KINDS.get(kind).default_depths(LAYERS) if d in (0, 2, 3))


@pytest.mark.parametrize("kind", KINDS.names())
def test_a_head_registers_its_own_weights_alone(kind, tmp_path):
    hooked = HookedModel(tiny("llama"))
    depths = depths_for(kind)
    head = KINDS.get(kind).untrained(hooked.lens, depths, width=32, rank=4)
    backbone = {id(p) for p in hooked.model.parameters()}
    assert list(hooked.lens.parameters()) == []
    assert hooked.lens.state_dict() == {}
    assert not backbone & {id(p) for p in head.parameters()}
    layer = sum(p.numel() for p in hooked.parts.layers[0].parameters())
    numbers = KINDS.get(kind).count(HeadSize(32, 60, rank=4, layer_weights=layer))
    assert sum(p.numel() for p in head.parameters()) == len(depths) * numbers
    assert head.restricted_to((0, 20)).state_dict().keys() == {
        f"head.{k}" for k in head.state_dict()
    }
    file = tmp_path / "heads.safetensors"
    head.save(file, hooked.model, {})
    with safe_open(file, "pt") as stored:
        shapes = {k: stored.get_tensor(k).shape for k in stored.keys()}  # noqa: SIM118
    expected = {(d, k): p.shape for d in depths for k, p in head.at(d).named_parameters()}
    assert shapes == {f"{kind}.{d}.{k}": shape for (d, k), shape in expected.items()}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS.names())
def test_a_head_behaves_as_a_module(kind):
    hooked = HookedModel(tiny("llama"))
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    depths = depths_for(kind)
    depth = depths[0]
    head = perturbed(KINDS.get(kind).untrained(hooked.lens, depths, width=32, rank=4))
    expected = head.logits(hidden, depth)
    assert torch.equal(head(hidden, depth), expected)
    other = KINDS.get(kind).untrained(hooked.lens, depths, width=32, rank=4, seed=1)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.logits(hidden, depth), expected)
    # a copy has its own weights and the backbone of the original
    twin = copy.deepcopy(head)
    assert twin.at(depth).lens.norm is hooked.parts.norm
    assert twin.at(depth).lens.head is hooked.parts.head
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in head.parameters()}
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(head.logits(hidden, depth), expected)
    # precision: in place, and of the head alone
    assert head.half() is head
    assert {p.dtype for p in head.parameters()} == {torch.float16}
    assert {p.dtype for p in hooked.model.parameters()} == {torch.float32}
    head.to("cpu", torch.float64)
    assert {p.dtype for p in head.parameters()} == {torch.float64}


def test_the_lens_of_a_copied_model_uses_the_copied_weights():
    hooked = HookedModel(tiny("llama"))
    twin = copy.deepcopy(hooked)
    assert twin.lens.head is twin.model.lm_head
    assert twin.lens.norm is twin.model.model.norm


def test_a_head_without_super_init_is_refused():
    class Late(ExitHead):
        def __init__(self, scale):
            self.scale = scale

        def logits(self, hidden, depth):
            return self.scale * hidden

    class Empty(Late):
        def __init__(self):
            pass

    for use in (lambda: Late(nn.Linear(2, 2)), lambda: Late(2.0), lambda: Empty().to("cpu")):
        with pytest.raises(EepolicyError, match=r"does not call super\(\).__init__\(\)"):
            use()
    with pytest.raises(EepolicyError, match="Empty is an exit head"):
        list(Empty().parameters())
    assert not hasattr(LinearHead, "nothing")


@torch.no_grad()
def test_a_file_holds_heads_of_several_kinds(tmp_path):
    hooked, file = HookedModel(tiny("llama")), tmp_path / "heads.safetensors"
    tuned = perturbed(TunedLens.untrained(hooked.lens, (2, 3), width=32))
    linear = perturbed(LinearHead.untrained(hooked.lens, (3, 4)))
    branch = perturbed(BranchHead.untrained(hooked.lens, (2,), num_layers=1))
    mixed = FittedHead({2: branch.at(2), 3: tuned.at(3), 4: linear.at(4)})
    assert repr(mixed) == "FittedHead(depths 2 to 4)"
    mixed.save(file, hooked.model, {}, others=(tuned, linear))
    assert read_notes(file)["depths"] == [2, 2, 3, 3, 4]
    assert read_notes(file)["kinds"] == ["branch", "tuned", "tuned", "linear", "linear"]
    hidden = torch.randn(3, 32)
    preferred = load_heads(file, hooked.lens, hooked.model)
    assert preferred.branch_depths == (2,)
    for depth in (2, 3, 4):
        assert torch.allclose(preferred(hidden, depth), mixed(hidden, depth), atol=2e-2)
    for kind, stored in (("tuned", tuned), ("linear", linear)):
        of_kind = load_heads(file, hooked.lens, hooked.model, kind)
        assert of_kind.depths == stored.depths
        assert torch.allclose(of_kind(hidden, 3), stored(hidden, 3), atol=2e-2)
    with pytest.raises(EepolicyError, match="has no heads of the kind 'low-rank'; it has branch"):
        load_heads(file, hooked.lens, hooked.model, "low-rank")


def test_kinds_are_listed_with_their_papers():
    entries = {entry.name: entry for entry in KINDS.entries()}
    assert entries.keys() == {"tuned", "linear", "low-rank", "branch", "drafter"}
    assert "2303.08112" in entries["tuned"].paper
    assert "2603.09215" in entries["linear"].paper
    assert KINDS.create("low-rank") is LowRankHead
    with pytest.raises(EepolicyError, match="'tuned:3' is no head"):
        KINDS.create("tuned:3")


def test_a_digest_follows_the_weights():
    hooked = HookedModel(tiny("llama"))
    head = TunedLens.untrained(hooked.lens, (2, 3), width=32)
    before = digest(head)
    assert before == digest(copy.deepcopy(head))
    assert before.startswith("TunedLens(depths 2 to 3) ")
    assert digest(perturbed(head)) != before


def test_the_heads_of_the_pocket_model_load_bit_for_bit():
    file, hooked = pocket_folder() / "heads.safetensors", load("pocket")
    heads = load_heads(file, hooked.lens, hooked.model)
    assert heads.depths == tuple(range(1, 20))
    with safe_open(file, "pt") as stored:
        for depth in heads.depths:
            for name, weight in heads.at(depth).named_parameters():
                key = f"{heads.at(depth).name}.{depth}.{name}"
                assert torch.equal(weight, stored.get_tensor(key).to(hooked.model.dtype))
