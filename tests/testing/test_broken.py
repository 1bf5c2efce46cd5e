"""Each conformance check catches a class that breaks its rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from eepolicy import EepolicyError, ExitHead, ExitPolicy, KVFill, Static
from eepolicy.decode.acceptance import Acceptance
from eepolicy.model.families import FAMILIES, FULL
from eepolicy.testing import (
    check_acceptance,
    check_family,
    check_fill,
    check_head,
    check_policy,
)
from eepolicy.testing.configs import small_config
from eepolicy.testing.decoding import check_decoding
from eepolicy.testing.models import random_llama
from eepolicy.trace import TokenCost

GLOBAL = {"calls": 0, "decoding": 0}


@dataclass(frozen=True)
class Right(ExitPolicy):
    """A policy that passes; those below break one rule each."""

    exit_depth: int = 2
    on: str = "both"
    name: ClassVar[str] = "right"
    usage: ClassVar[str] = "right@DEPTH"
    example: ClassVar[str] = "right@2"
    summary: ClassVar[str] = "exits at depth 2"

    def depths(self, step):
        return torch.full_like(step.phase, self.exit_depth)

    def check(self, full_depth):
        if self.exit_depth > full_depth:
            raise EepolicyError("too deep")

    @classmethod
    def from_spec(cls, rest):
        return cls(int(rest[1:]))

    @property
    def spec(self):
        return ("" if self.on == "speech" else f"{self.on}=") + f"{self.name}@{self.exit_depth}"


@dataclass
class Mutable(ExitPolicy):
    exit_depth: int = 2
    depths = Right.depths


class Plain(ExitPolicy):
    depths = Right.depths


@dataclass(frozen=True)
class SecretRepr(Right):
    def __repr__(self):
        return "<a policy>"


@dataclass(frozen=True)
class OtherSpec(Right):
    @classmethod
    def from_spec(cls, rest):
        return cls(int(rest[1:]) + 1)


@dataclass(frozen=True)
class OtherModality(Right):
    on: str = "sound"


@dataclass(frozen=True)
class FitsNothing(Right):
    def check(self, full_depth):
        raise EepolicyError("no depth is right")


@dataclass(frozen=True)
class Zero(Right):
    def depths(self, step):
        return torch.zeros_like(step.phase)


@dataclass(frozen=True)
class Floats(Right):
    def depths(self, step):
        return torch.full_like(step.phase, 2).double()


@dataclass(frozen=True)
class OneForAll(Right):
    def depths(self, step):
        return torch.tensor(2)


@dataclass(frozen=True)
class ByIndex(Right):
    def depths(self, step):
        return 1 + torch.arange(len(step.phase)) % step.full_depth


@dataclass(frozen=True)
class Stateful(Right):
    def depths(self, step):
        GLOBAL["calls"] += 1
        return torch.full_like(step.phase, 1 + GLOBAL["calls"] % step.full_depth)


@dataclass(frozen=True)
class Falling(Right):
    def candidate_depths(self, step):
        return (2, 1)


@dataclass(frozen=True)
class FirstRowOnly(Right):
    def candidate_depths(self, step):
        return (1,) if step.phase[0] % 2 else ()


@dataclass(frozen=True)
class DeepMinimum(Right):
    def min_depth(self, full_depth):
        return full_depth + 1


@dataclass(frozen=True)
class WrongMinimum(Right):
    exit_depth: int = 1

    def min_depth(self, full_depth):
        return full_depth


@dataclass(frozen=True)
class Undecided(Right):
    def candidate_depths(self, step):
        return (1,)


@dataclass(frozen=True)
class IntegerExits(Undecided):
    def should_exit(self, step, depth, readout):
        return torch.ones_like(step.phase)


@dataclass(frozen=True)
class RelativeExits(Undecided):
    def should_exit(self, step, depth, readout):
        return readout.entropy < readout.entropy.mean()


@dataclass(frozen=True)
class AsksTheFullModel(Undecided):
    def should_exit(self, step, depth, readout):
        return readout.top1 == readout.full.top1


def test_a_right_policy_passes():
    check_policy(Right)
    check_policy(Right(3))


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (Mutable(), r"Mutable .* fails check_constructor: field exit_depth can be set"),
        (Plain(), r"Plain .* fails check_constructor: it is no dataclass"),
        (SecretRepr(), r"SecretRepr .* fails check_constructor: its repr does not evaluate"),
        (OtherModality(), r"on is one of speech, text, both; it is 'sound'"),
        (OtherSpec(), r"fails check_spec_round_trip: from_spec reads .*right@2' as .*depth=3"),
        (FitsNothing(), r"fails check_some_depth_fits: check\(\) refuses every full depth"),
        (Zero(), r"fails check_depths: .* return 1 to the full depth"),
        (Floats(), r"fails check_depths: .* return integers"),
        (OneForAll(), r"fails check_depths: .* return \(rows,\)"),
        (ByIndex(), r"fails check_depths: .* rows must not depend on each other"),
        (Stateful(), r"fails check_depths: .* a second time"),
        (Falling(), r"fails check_candidate_depths: .* return rising depths"),
        (FirstRowOnly(), r"fails check_candidate_depths: .* return those of all rows"),
        (DeepMinimum(), r"fails check_candidate_depths: min_depth\(2\) is 3"),
        (WrongMinimum(), r"fails check_candidate_depths: .* but the policy stops at depth 1"),
        (IntegerExits(), r"fails check_should_exit: .* return a tensor \(rows,\) of bool"),
        (RelativeExits(), r"fails check_should_exit: .* rows must not depend on each other"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_policies(policy, sentence):
    with pytest.raises(AssertionError, match=f"(?s){sentence}"):
        check_policy(policy)


@pytest.mark.parametrize(
    ("policy", "error"),
    [(Undecided(), NotImplementedError), (AsksTheFullModel(), AttributeError)],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_an_error_of_a_policy_names_the_check(policy, error):
    with pytest.raises(error) as raised:
        check_policy(policy)
    text = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert f"{type(policy).__name__} ({policy!r}) fails check_should_exit with this error" in text


def test_a_class_that_declares_nothing():
    with pytest.raises(AssertionError, match=r"Plain fails check_declarations: .* declares name"):
        check_policy(Plain)


@dataclass(frozen=True)
class ByBatchSize(Right):
    """Passes no check of rows; here it reaches the decoder."""

    def depths(self, step):
        return torch.full_like(step.phase, min(len(step.phase), step.full_depth))


def test_a_decode_catches_rows_that_depend_on_each_other():
    with pytest.raises(AssertionError, match=r"fails check_batch: .* of prompt 0 alone is"):
        check_decoding("x", random_llama(4), policy=ByBatchSize())


def test_a_decode_catches_wrong_costs(monkeypatch):
    monkeypatch.setattr("eepolicy.decode.batch.Batch.cost", lambda *_: TokenCost())
    with pytest.raises(AssertionError, match=r"fails check_costs: the trace has 0 layer calls"):
        check_decoding("x", random_llama(4), policy=Right())


@dataclass(frozen=True)
class Forgetful(KVFill):
    def on_exit(self, batch, block):
        batch.mask_out(block, block.depth)


@dataclass(frozen=True)
class Lying(KVFill):
    defers: ClassVar[bool] = True

    def on_exit(self, batch, block):
        batch.mask_out(block, block.depth)
        batch.mark_computed(block)


@dataclass(frozen=True)
class OtherFillSpec(Lying):
    name: ClassVar[str] = "other"
    share: float = 0.5


class PlainFill(Lying):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (Forgetful(), r"Forgetful.on_exit\(\) left the layers above depth 2 of a row"),
        (Lying(), r"Lying .* fails check_exactness: .* differ from the stock model's"),
        (OtherFillSpec(0.3), r"fails check_constructor: from_spec reads 'other' as"),
        (PlainFill(), r"fails check_constructor: its repr evaluates to another object"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_fills(fill, sentence):
    with pytest.raises((AssertionError, EepolicyError), match=f"(?s){sentence}"):
        check_fill(fill)


def test_a_decode_catches_a_fill_that_claims_to_be_exact():
    with pytest.raises(AssertionError, match="fails check_full_depth_tokens: at full depth"):
        check_decoding("x", random_llama(4), policy=Static(1), fill=Lying())


@dataclass(frozen=True)
class Rule(Acceptance):
    """A rule that passes; those below break one rule each."""

    def accepts(self, drafts):
        return drafts.tokens == drafts.target_scores.argmax(-1)


@dataclass(frozen=True)
class IntegerAccepts(Rule):
    def accepts(self, drafts):
        return super().accepts(drafts).long()


@dataclass(frozen=True)
class Cumulative(Rule):
    def accepts(self, drafts):
        return (torch.arange(len(drafts.tokens)) < 2) | super().accepts(drafts)


@dataclass(frozen=True)
class Unsteady(Rule):
    def accepts(self, drafts):
        GLOBAL["calls"] += 1
        return torch.full_like(drafts.tokens, GLOBAL["calls"] % 2).bool()


@dataclass(frozen=True)
class RejectsAll(Rule):
    def accepts(self, drafts):
        return torch.zeros_like(drafts.tokens, dtype=torch.bool)


@dataclass(frozen=True)
class NoReplacement(Rule):
    def replacement_scores(self, drafts, index):
        return drafts.target_scores[index].log() * float("nan")


@dataclass(frozen=True)
class CountsRejected(Rule):
    """Its state depends on drafts that were rejected."""

    def begin(self):
        return 0

    def next_state(self, drafts, num_accepted):
        return drafts.state + int(drafts.tokens.sum())


@dataclass(frozen=True)
class ChangesState(Rule):
    """Changes the state of the verification before."""

    def begin(self):
        return []

    def next_state(self, drafts, num_accepted):
        drafts.state.append(num_accepted)
        return drafts.state


@dataclass(frozen=True)
class Lenient(Rule):
    """Accepts more in the decoder than afterwards."""

    def accepts(self, drafts):
        own = super().accepts(drafts)
        return torch.ones_like(own) if GLOBAL["decoding"] else own


def test_a_right_rule_passes():
    check_acceptance(Rule())


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (IntegerAccepts(), r"fails check_accepts: .* return a tensor \(drafts,\) of bool"),
        (Cumulative(), r"fails check_accepts: .* drafts must not depend on each other"),
        (Unsteady(), r"fails check_accepts: .* a second time"),
        (RejectsAll(), r"RejectsAll .* fails check_own_tokens: .* full model's own tokens"),
        (NoReplacement(), r"fails check_replacement_scores: .* never NaN"),
        (CountsRejected(), r"fails check_state: .* let it depend on accepted drafts"),
        (ChangesState(), r"fails check_state: .* return a new object"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_rules(rule, sentence):
    with pytest.raises(AssertionError, match=f"(?s){sentence}"):
        check_acceptance(rule)


def test_a_decode_catches_drafts_that_the_rule_rejects(monkeypatch):
    def decode_leniently(*args, **options):
        GLOBAL["decoding"] = 1
        try:
            return check_decoding(*args, **options)
        finally:
            GLOBAL["decoding"] = 0

    monkeypatch.setattr("eepolicy.testing.acceptance.check_decoding", decode_leniently)
    with pytest.raises(AssertionError, match=r"(?s)fails check_decodes: drafts .* stayed"):
        check_acceptance(Lenient())


class Head(ExitHead):
    """A head that passes; those below break one rule each."""

    def __init__(self, lens):
        super().__init__()
        self.lens = lens

    def logits(self, hidden, depth):
        return self.lens.logits(hidden, depth)


class FlatHead(Head):
    def logits(self, hidden, depth):
        return super().logits(hidden, depth).flatten(0, -2)


class SingleHead(Head):
    def logits(self, hidden, depth):
        return super().logits(hidden, depth).float()


class CentredHead(Head):
    def logits(self, hidden, depth):
        return super().logits(hidden - hidden.mean(), depth)


class ShiftedHead(Head):
    def logits_over(self, hidden, depth, ids):
        return self.logits(hidden, depth)[..., ids.start - 1 : ids.stop - 1]


class OwningHead(Head):
    def __init__(self, lens):
        super().__init__(lens)
        self.output = lens.head


class Uninitialised(Head):
    def __init__(self, lens):
        self.lens = lens


class Untrained(Head):
    @classmethod
    def untrained(cls, lens, depths, **options):
        return cls(lens)

    def logits(self, hidden, depth):
        return 2 * super().logits(hidden, depth)


def test_a_right_head_passes():
    check_head(Head)
    check_head(lambda model: Head(model.lens))


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (FlatHead, r"FlatHead .* fails check_logits: .* return \(\.\.\., 60\)"),
        (SingleHead, r"fails check_logits: .* return their dtype"),
        (CentredHead, r"fails check_logits: rows by themselves at depth 1"),
        (ShiftedHead, r"fails check_ranges: logits_over\(\)"),
        (OwningHead, r"fails check_module: its parameters output.weight are the model's"),
        (Untrained, r"fails check_starts_as_lens: logits before training"),
        (lambda model: model.model, r"fails check_module: it is no eepolicy.ExitHead"),
    ],
    ids=lambda value: getattr(value, "__name__", "sentence"),
)
def test_broken_heads(head, sentence):
    with pytest.raises(AssertionError, match=f"(?s){sentence}"):
        check_head(head)


def test_an_uninitialised_head_is_named():
    with pytest.raises(EepolicyError) as raised:
        check_head(Uninitialised)
    text = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert "Uninitialised fails a check with this error" in text


def adapter_with(family, **changes):
    def adapter(model):
        parts = vars(FAMILIES.get(family)(model)) | {
            name: change(model) for name, change in changes.items()
        }
        return type(FAMILIES.get(family)(model))(**parts)

    return adapter


@pytest.mark.parametrize(
    ("changes", "window", "sentence"),
    [
        ({"window": lambda model: 13}, 12, "layer loop at position 20 differs from the stock"),
        ({"attention": lambda model: (FULL,) * 3}, 12, "layer loop at position 20 differs"),
        # beyond MAX_POSITION, so that wrapping does not look there
        ({"window": lambda model: 13}, 30_000, "mistral fails check_logits: logits of 41 tokens"),
        ({"window": lambda model: 65}, 30_000, "fails check_config: its window is 65"),
    ],
    ids=["window", "full attention", "window beyond the check", "long window"],
)
def test_broken_families(changes, window, sentence):
    """A window of 12 is beyond the 8 tokens that wrapping compares in one block."""
    config = small_config("mistral", layers=3)
    config.sliding_window = window
    if window < 64:
        check_family(config)
    with pytest.raises((AssertionError, EepolicyError), match=sentence):
        check_family(config, adapter_with("mistral", **changes))


def test_a_family_whose_norm_is_left_out_is_named():
    adapter = adapter_with("llama", norm=lambda model: torch.nn.Identity())
    with pytest.raises(EepolicyError, match="differs from the stock") as raised:
        check_family(small_config("llama", layers=3), adapter)
    text = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert "The model family 'llama' fails a check" in text
    with pytest.raises(AssertionError, match="it has 2 layers; use 3 or more"):
        check_family(small_config("llama", layers=2))
