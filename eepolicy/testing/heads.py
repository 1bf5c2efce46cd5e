"""Conformance checks of exit heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eepolicy.decode.acceptance import AcceptExact
from eepolicy.errors import WithLine
from eepolicy.heads import KINDS, ExitHead
from eepolicy.hooked import HookedModel
from eepolicy.policies import Draft, Static
from eepolicy.testing.configs import WIDTH
from eepolicy.testing.decoding import check_decoding
from eepolicy.testing.models import LAYOUT, random_llama
from eepolicy.testing.report import describe, require

LAYERS = 4
BELOW = tuple(range(1, LAYERS))
#: Largest difference of logits in float64 that two orders of summation may have.
TOLERANCE = 1e-9


def check_head(head: type[Any] | Callable[[HookedModel], ExitHead] | str) -> None:
    """Check what the decoder and the probe rely on in an exit head.

    Args:
        head: a class of head, the name of a registered one, or a function from a hooked model to a
            head, such as `lambda model: Half(model.lens)`.  A class with `untrained` is built by it
            and must start as the logit lens; another class is called with the lens of the model.

    Raises:
        AssertionError: with the class, the check and what was seen.
        Exception: of the head itself, with a line that names the head.

    Examples:
        >>> check_head("tuned")
    """
    head = KINDS.get(head) if isinstance(head, str) else head
    model = random_llama(LAYERS)
    untrained = getattr(head, "untrained", None)
    with WithLine(
        lambda: f"The exit head {describe(head)} fails a check with this error.",
        unless=AssertionError,
    ):
        if untrained is not None:
            depths = getattr(head, "default_depths", lambda _: BELOW)(LAYERS)
            built = untrained(model.lens, depths, width=WIDTH, rank=4).to(torch.float64)
            _check_starts_as_lens(built, model)
        else:
            argument: Any = model.lens if isinstance(head, type) else model
            built = head(argument)
        for check in CHECKS:
            with torch.no_grad():
                check(built, model)


def check_module(head: ExitHead, model: HookedModel) -> None:
    """The head is an `ExitHead` and a module; its parameters are none of the model's."""
    check = "check_module"
    require(isinstance(head, ExitHead), head, check, "it is no eepolicy.ExitHead")
    if isinstance(head, nn.Module):
        stock = {id(parameter) for parameter in model.model.parameters()}
        shared = [name for name, p in head.named_parameters() if id(p) in stock]
        require(
            not shared,
            head,
            check,
            f"its parameters {', '.join(shared)} are the model's; refer to them through the lens",
        )


def check_logits(head: ExitHead, model: HookedModel) -> None:
    """`logits` maps (..., width) to (..., vocab), row by row, without NaN."""
    check, vocab = "check_logits", model.vocab_size
    for depth in _depths(head):
        hidden = _hidden(depth)
        logits = head.logits(hidden, depth)
        require(
            logits.shape == (*hidden.shape[:-1], vocab),
            head,
            check,
            f"logits of {tuple(hidden.shape)} at depth {depth} are {tuple(logits.shape)}; return "
            f"(..., {vocab})",
        )
        require(
            logits.dtype == hidden.dtype and not bool(logits.isnan().any()),
            head,
            check,
            f"logits at depth {depth} are of {logits.dtype}, hidden states of {hidden.dtype}; "
            "return their dtype, without NaN",
        )
        flat = hidden.flatten(0, 1)
        alone = torch.stack([head.logits(row, depth) for row in flat]).view_as(logits)
        _check_close(head, check, f"rows by themselves at depth {depth}", alone, logits)


def check_ranges(head: ExitHead, model: HookedModel) -> None:
    """Readouts over some ids are those columns of all logits."""
    check, vocab = "check_ranges", model.vocab_size
    first, stop = LAYOUT.speech
    for depth in _depths(head):
        hidden = _hidden(depth)
        logits = head.logits(hidden, depth)
        over = head.logits_over(hidden, depth, slice(first, stop))
        _check_close(head, check, "logits_over()", over, logits[..., first:stop])
        among = head.logits_among(hidden, depth, [(3, 4), (first, stop)], vocab)
        expected = torch.full_like(logits, torch.finfo(logits.dtype).min)
        expected[..., 3:4] = logits[..., 3:4]
        expected[..., first:stop] = logits[..., first:stop]
        _check_close(head, check, "logits_among()", among, expected)
        restricted = head.restricted_to(LAYOUT.speech).logits(hidden, depth)
        _check_close(head, check, "restricted_to().logits()", restricted, logits[..., first:stop])


def check_decodes(head: ExitHead, model: HookedModel) -> None:
    """Tokens of early exits are the argmax of the head."""
    hooked = HookedModel(model.model, layout=LAYOUT, heads=head)
    if _depths(head) == (0,):  # a drafter needs a rule that verifies
        check_decoding(head, hooked, policy=Draft(3, on="both"), accept=AcceptExact())
        return
    for output in check_decoding(head, hooked, policy=Static(2, on="both")):
        # exits at depth 2 everywhere: a model of two layers has the same hidden states
        ids = torch.cat([output.prompt, output.tokens])
        states = hooked.branch_states(list(hooked.hidden_states(ids[None]))[1], 2)[0]
        expected = head.logits(states[len(output.prompt) - 1 : -1], 2).argmax(-1)
        require(
            torch.equal(output.tokens, expected),
            head,
            "check_decodes",
            f"the reply is {output.tokens.tolist()}, the argmax of the head {expected.tolist()}",
        )


CHECKS = (check_module, check_logits, check_ranges, check_decodes)


def _depths(head: ExitHead) -> tuple[int, ...]:
    """The depths to read: 0 for a drafter, else all below full depth."""
    return (0,) if head.branch_depths == (0,) else BELOW


def _check_starts_as_lens(head: ExitHead, model: HookedModel) -> None:
    with torch.no_grad():
        for depth in _depths(head):
            hidden = _hidden(depth)
            ours, lens = head.logits(hidden, depth), model.lens.logits(hidden, depth)
            _check_close(head, "check_starts_as_lens", "logits before training", ours, lens, 1e-5)


def _hidden(depth: int) -> Tensor:
    """Random hidden states: (2, 3, width) in float64."""
    generator = torch.Generator().manual_seed(depth)
    return torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64)


def _check_close(
    head: ExitHead,
    check: str,
    what: str,
    ours: Tensor,
    theirs: Tensor,
    tolerance: float = TOLERANCE,
) -> None:
    error = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    require(
        error <= tolerance,
        head,
        check,
        f"{what}, of shape {tuple(ours.shape)}, differ by {error:.1e} from the expected ones, of "
        f"shape {tuple(theirs.shape)}",
    )
