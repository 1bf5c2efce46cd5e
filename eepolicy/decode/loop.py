"""Token after token: the clock, the policy, the step, the sampler, the trace."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from eepolicy.decode.sampling import Sampler
from eepolicy.decode.step import Stepper
from eepolicy.errors import EepolicyError
from eepolicy.modality import ChunkClock
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
        seconds: of decoding, the prompt included.
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
    prompt: Tensor,
    policy: ExitPolicy | str,
    max_new_tokens: int,
    sampler: Sampler,
) -> Output:
    """Decode one reply; see `HookedModel.generate`.

    The prompt but for its last token is prefilled at full depth.  Every token of the reply then
    costs one step, the first included, so that every depth in the trace is the policy's.
    """
    if model.layout is None:
        raise EepolicyError(
            "decoding needs the model's layout: pass one to HookedModel(layout=...)"
        )
    if max_new_tokens < 1:
        raise EepolicyError(f"max_new_tokens is at least 1; got {max_new_tokens}")
    policy = as_policy(policy, model.depth)
    began = time.perf_counter()
    stepper = Stepper.for_positions(model, len(prompt) + max_new_tokens)
    stepper.prefill(prompt[:-1])
    prefill_calls = stepper.layer_calls
    clock = ChunkClock(model.layout)
    token, tokens, rows, since_refresh = int(prompt[-1]), [], [], 0
    for position in range(max_new_tokens):
        place = (clock.modality, clock.chunk, clock.phase)
        known = torch.tensor([[*place, position, clock.ordinal]]).T  # one row: (5, 1)
        step = Step(known[0], known[1], known[2], known[3], known[4], model.depth)
        logits, depth, readouts = stepper.step(prompt.new_tensor([[token]]), policy, step)
        since_refresh = 0 if depth == model.depth else since_refresh + 1
        token = sampler(logits)
        paid = (readouts, stepper.layer_calls, stepper.layer_positions)
        rows.append((token, *place, depth, since_refresh, *paid))
        tokens.append(token)
        if token == model.layout.end:
            break
        clock.advance(token)
    seconds = time.perf_counter() - began
    ids = torch.tensor(tokens)
    text = None
    if model.tokenizer is not None:
        text = model.tokenizer.decode(model.layout.text_ids(ids)).strip()
    return Output(
        tokens=ids,
        text=text,
        units=model.layout.units(ids),
        ended=tokens[-1] == model.layout.end,
        trace=Trace.from_rows(rows, model.depth, prefill_calls),
        seconds=seconds,
        model=model,
    )
