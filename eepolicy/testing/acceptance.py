"""Conformance checks of acceptance rules."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from eepolicy.decode.acceptance import Acceptance, AcceptJoined, Drafts, parse_acceptance
from eepolicy.decode.output import Output
from eepolicy.hooked import HookedModel
from eepolicy.policies import Static
from eepolicy.speech.vocoders import Vocoder
from eepolicy.testing.configs import VOCAB
from eepolicy.testing.decoding import ScatteredDepths, check_decoding, stock_scores
from eepolicy.testing.models import LAYOUT, random_llama
from eepolicy.testing.report import check_constructor, instances_of, require, run_checks
from eepolicy.trace import DraftStatus

LAYERS = 4


class RandomCodebook:
    """A vocoder with a codebook, for rules that compare sounds."""

    codebook = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    sampling_rate = 16_000

    def decode(self, units: Tensor) -> Tensor:
        """A silent wave: (units,) -> (samples,)."""
        return torch.zeros(16 * len(units))


def check_acceptance(
    rule: Acceptance | type[Acceptance] | str, vocoder: Vocoder | None = None
) -> None:
    """Check what the decoder relies on in an acceptance rule.

    Args:
        rule: a rule, its spec string, or a class that declares spec strings; its examples are
            checked then.
        vocoder: vocoder that the rule is bound to; default: one with a random codebook of 40 units.

    Raises:
        AssertionError: with the class, the check and what was seen.
        Exception: of the rule itself, with a line that names the check.

    Examples:
        >>> check_acceptance("top:3")
    """
    vocoder = vocoder or RandomCodebook()
    for each in instances_of(rule, parse_acceptance):
        for part in each.rules if isinstance(each, AcceptJoined) else (each,):
            run_checks(part, (check_constructor,))
        bound = each.bind(LAYOUT, vocoder)
        run_checks(bound, (check_accepts, check_own_tokens, check_replacement_scores, check_state))
        run_checks(each, (partial(_check_decodes, vocoder=vocoder),))


def check_accepts(rule: Acceptance) -> None:
    """`accepts` returns (drafts,) of bool, the same each time.

    A rule without `is_joint` decides draft by draft.
    """
    check = "check_accepts"
    for drafts in _random_drafts(rule):
        accepted = rule.accepts(drafts)
        seen = f"accepts() of {len(drafts.tokens)} drafts is {accepted}"
        require(
            accepted.shape == drafts.tokens.shape and accepted.dtype == torch.bool,
            rule,
            check,
            f"{seen}; return a tensor (drafts,) of bool",
        )
        again = rule.accepts(drafts)
        require(torch.equal(again, accepted), rule, check, f"{seen}, and a second time {again}")
        if rule.is_joint:
            continue
        alone = torch.cat([rule.accepts(_one(drafts, i)) for i in range(len(drafts.tokens))])
        require(
            torch.equal(alone, accepted),
            rule,
            check,
            f"{seen}; each draft by itself gets {alone}, but drafts must not depend on each other; "
            "set is_joint = True if they do",
        )


def check_own_tokens(rule: Acceptance) -> None:
    """In greedy decoding the most likely tokens of the full model are accepted."""
    for drafts in _random_drafts(rule):
        if not drafts.do_sample:
            own = replace(drafts, tokens=drafts.target_scores.argmax(-1))
            accepted = rule.accepts(own)
            require(
                bool(accepted.all()),
                rule,
                "check_own_tokens",
                f"accepts() of the full model's own tokens is {accepted}",
            )


def check_replacement_scores(rule: Acceptance) -> None:
    """`replacement_scores` returns (vocab,) without NaN, and some token is possible."""
    for drafts in _random_drafts(rule):
        for index in range(len(drafts.tokens)):
            scores = rule.replacement_scores(drafts, index)
            possible = bool(torch.isfinite(scores).any()) and not bool(scores.isnan().any())
            require(
                scores.shape == (VOCAB,) and possible,
                rule,
                "check_replacement_scores",
                f"replacement_scores() has shape {tuple(scores.shape)} and values {scores}; return "
                "(vocab,) scores, finite for some token and never NaN",
            )


def check_state(rule: Acceptance) -> None:
    """A verification returns a new state, which depends on no rejected draft."""
    check = "check_state"
    for drafts in _random_drafts(rule):
        before = deepcopy(drafts.state)
        rule.accepts(drafts)
        for num_accepted in range(len(drafts.tokens) + 1):
            state = deepcopy(rule.next_state(drafts, num_accepted))
            seen = f"after {num_accepted} of {len(drafts.tokens)} drafts the state is {state}"
            require(
                drafts.state == before == rule.begin(),
                rule,
                check,
                f"{seen}, and the state before it became {drafts.state}; return a new object",
            )
            tokens = drafts.tokens.clone()
            tokens[num_accepted:] = (tokens[num_accepted:] + 1) % VOCAB
            other = rule.next_state(replace(drafts, tokens=tokens), num_accepted)
            require(
                other == state,
                rule,
                check,
                f"{seen}, and with other rejected drafts {other}; let it depend on accepted drafts",
            )


def _check_decodes(rule: Acceptance, vocoder: Vocoder) -> None:
    """Drafts that stay are those that the rule accepts by the stock model's scores."""
    for policy in (Static(1, on="both"), ScatteredDepths()):
        hooked = random_llama(LAYERS)
        model = HookedModel(hooked.model, layout=LAYOUT, vocoder=vocoder)
        bound = rule.bind(LAYOUT, vocoder)
        for output in check_decoding(rule, model, policy=policy, accept=rule):
            check_verified(rule, bound, model, output)


def check_verified(rule: Acceptance, bound: Acceptance, model: HookedModel, output: Output) -> None:
    """Drafts that stayed in a greedy reply are accepted by the stock model's scores.

    Args:
        rule: the rule.
        bound: the rule, bound to the model.
        model: a hooked random model in float64.
        output: a reply.
    """
    scores, status = stock_scores(model, output), torch.from_numpy(output.trace.draft_status)
    verified = status == DraftStatus.ACCEPTED
    early = torch.from_numpy(output.trace.depth) < model.depth
    expected = early if rule.verifies else torch.zeros_like(early)
    require(
        torch.equal(verified, expected),
        rule,
        "check_decodes",
        f"tokens of early exits are {early.tolist()}, verified drafts {verified.tolist()}",
    )
    drafts = Drafts(
        output.tokens[verified],
        scores[verified],
        scores[verified][:, :0],
        False,
        torch.zeros(int(verified.sum())),
        bound.begin(),
    )
    # a joint rule decides in blocks, and the trace does not contain where they began
    accepted = bound.accepts(drafts)
    require(
        bool(accepted.all()) or rule.is_joint,
        rule,
        "check_decodes",
        f"drafts {drafts.tokens.tolist()} stayed, but accepts() by the stock scores is {accepted}",
    )


def _random_drafts(rule: Acceptance) -> Iterator[Drafts]:
    """Random drafts, greedy ones and, if the rule allows it, sampled ones."""
    generator = torch.Generator().manual_seed(0)
    for do_sample in (False,) if rule.greedy_only else (False, True):
        for count in (1, 5, 5):
            target, draft = torch.randn(2, count, VOCAB, generator=generator)
            draft = 0.5 * draft + 0.5 * target
            tokens = draft.softmax(-1).multinomial(1, generator=generator)[:, 0]
            uses = do_sample and rule.uses_draft_scores
            uniforms = torch.rand(count, generator=generator)
            scores = draft if uses else draft[:, :0]
            yield Drafts(tokens, target, scores, do_sample, uniforms, rule.begin())


def _one(drafts: Drafts, index: int) -> Drafts:
    """One of several drafts."""
    some = slice(index, index + 1)
    return replace(
        drafts,
        tokens=drafts.tokens[some],
        target_scores=drafts.target_scores[some],
        draft_scores=drafts.draft_scores[some],
        uniforms=drafts.uniforms[some],
    )
