"""Token after token: the clock, the policy, the step, the sampler, the trace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eepolicy.decode.acceptance import AcceptAll, Acceptance
from eepolicy.decode.batch import Batch
from eepolicy.decode.fill import Fill
from eepolicy.decode.judge import Judge
from eepolicy.decode.reply import Reply
from eepolicy.decode.sampling import Sampler
from eepolicy.decode.step import take_step
from eepolicy.errors import EepolicyError
from eepolicy.model.hooked import HookedModel
from eepolicy.policies import ExitPolicy, Step, parse_policy
from eepolicy.trace import Trace


@dataclass(frozen=True, eq=False)
class Output:
    """What decoding gave.

    Attributes:
        tokens: (tokens,) ids of the reply, the end mark included where it came.
        text: the reply's text, where the model has a tokenizer.
        units: (units,) its speech units, counted from 0.
        ended: the reply ended by itself.
        trace: one entry a token.
        seconds: of decoding the whole batch, the prompts included.
        model: that spoke.
    """

    tokens: Tensor
    text: str | None
    units: Tensor
    ended: bool
    trace: Trace
    seconds: float
    model: HookedModel

    def __repr__(self) -> str:
        return (
            f"Output({self.text!r}, {len(self.units)} units, {self.seconds:.2f} s, {self.trace!r})"
        )

    def wave(self) -> Tensor:
        """The speech: (samples,) at 16 kHz.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        if self.model.vocoder is None:
            raise EepolicyError("the model has no vocoder: pass one to HookedModel(vocoder=...)")
        return self.model.vocoder.decode(self.units)


#: drafts that may go unjudged where no fill bounds them; what follows a rejected one is lost
UNJUDGED = 8


def as_policy(policy: ExitPolicy | str, full_depth: int) -> ExitPolicy:
    """A policy or its spec string, checked against a model's depth.

    Raises:
        EepolicyError: no policy, or one that names depths which the model does not have.
    """
    found = parse_policy(policy) if isinstance(policy, str) else policy
    if not isinstance(found, ExitPolicy):
        raise EepolicyError(f"a policy is an ExitPolicy or a spec string; got {policy!r}")
    found.check(full_depth)
    return found


@torch.no_grad()
def decode(
    model: HookedModel,
    prompts: Sequence[Tensor],
    policy: ExitPolicy | str,
    max_new_tokens: int,
    sampler: Sampler,
    fill: Fill | None = None,
    accept: Acceptance | None = None,
) -> list[Output]:
    """Decode replies side by side; see `HookedModel.generate`.

    The prompts but for their last tokens are prefilled at full depth.  Every token of a reply then
    costs one step, the first included, so that every depth in the trace is the policy's.
    """
    if model.layout is None:
        raise EepolicyError(
            "decoding needs the model's layout: pass one to HookedModel(layout=...)"
        )
    if max_new_tokens < 1:
        raise EepolicyError(f"max_new_tokens is at least 1; got {max_new_tokens}")
    if not prompts:
        raise EepolicyError("there is no prompt")
    policy, fill = as_policy(policy, model.depth), fill or Fill()
    fill.check()
    accept = (accept or AcceptAll()).check(model.layout, model.vocoder)
    if accept.judges and (fill.way != "catch_up" or not policy.realisable):
        raise EepolicyError(
            f"{accept!r} judges what a catch-up computed; with the fill {fill.way!r} and "
            f"{policy!r} there is nothing to judge"
        )
    if accept.greedy_only and not sampler.greedy:
        raise EepolicyError(f"{accept!r} is for greedy decoding; with a temperature use 'sampling'")
    if fill.way != "catch_up" and not policy.realisable:
        raise EepolicyError(f"{policy!r} leaves nothing to fill with {fill.way!r}")
    began = time.perf_counter()
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    device = model.model.device
    ids = torch.stack([F.pad(p.to(device), (n, 0)) for p, n in zip(prompts, padding, strict=True)])
    # a judge bounds what waits by itself, so as to see all of it
    unbounded = Fill() if accept.judges else fill
    batch = Batch(model, padding, width + max_new_tokens, unbounded)
    batch.prefill(ids[:, :-1])
    prefill_calls = batch.calls[0]
    judge = Judge(batch, sampler, accept, fill.max_pending or UNJUDGED)
    replies = [Reply(model.layout, model.depth) for _ in prompts]
    tokens, alive = ids[:, -1], list(range(len(prompts)))
    while alive:
        known = ids.new_tensor([replies[row].known() for row in alive]).T  # (5, rows)
        step = Step(known[0], known[1], known[2], known[3], known[4], model.depth)
        taken = take_step(batch, tokens, alive, policy, step)
        scores = sampler.warp(taken.logits)
        drawn = sampler.draw(scores, alive, len(prompts)).tolist()
        drops: dict[int, int] = {}
        for place, row in enumerate(alive):
            reply, depth = replies[row], taken.depth[place]
            if accept.judges:
                hidden = taken.caught_up.get(place)
                last = len(reply) + 1 >= max_new_tokens or drawn[place] == model.layout.end
                drops[row] = judge.take(
                    row,
                    reply,
                    drawn[place],
                    scores[place],
                    depth,
                    taken.readouts[place],
                    hidden,
                    last,
                )
            else:
                reply.take(drawn[place], depth, (taken.readouts[place], *batch.paid(row)))
        alive = [r for r in alive if not replies[r].ended and len(replies[r]) < max_new_tokens]
        if alive and any(drops.values()):
            batch.drop(drops, alive)
        tokens = ids.new_tensor([replies[row].rows[-1][0] for row in alive])
    seconds = time.perf_counter() - began
    return [_output(model, reply, prefill_calls, seconds) for reply in replies]


def _output(model: HookedModel, reply: Reply, prefill_calls: int, seconds: float) -> Output:
    assert model.layout is not None
    ids = torch.tensor([row[0] for row in reply.rows])
    text = None
    if model.tokenizer is not None:
        text = model.tokenizer.decode(model.layout.text_ids(ids)).strip()
    return Output(
        tokens=ids,
        text=text,
        units=model.layout.units(ids),
        ended=reply.ended,
        trace=Trace.from_rows(reply.rows, model.depth, prefill_calls),
        seconds=seconds,
        model=model,
    )
