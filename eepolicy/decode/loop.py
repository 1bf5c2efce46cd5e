"""Token after token: the clock, the policy, the step, the sampler, the trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode import overlap as ahead
from eepolicy.decode.acceptance import AcceptAll, Acceptance
from eepolicy.decode.batch import Batch, Block
from eepolicy.decode.fills.base import Fill
from eepolicy.decode.recorder import Recorder, plan_of
from eepolicy.decode.reply import Reply
from eepolicy.decode.request import Request
from eepolicy.decode.sampling import Sampler
from eepolicy.decode.step import run_step
from eepolicy.decode.verify import DraftVerifier
from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.policies import ExitPolicy, Step, parse_policy
from eepolicy.policies.base import check_depth
from eepolicy.trace import Trace

if TYPE_CHECKING:
    from eepolicy.probing import ProbeResult


@dataclass(frozen=True, eq=False)
class Output:
    """What decoding gave.

    Attributes:
        prompt: (tokens,) ids that it answers; none where embeddings were given.
        tokens: (tokens,) ids of the reply, the end mark included where it came.
        text: the reply's text, where the model has a tokenizer.
        units: (units,) its speech units, counted from 0.
        ended: the reply ended by itself.
        trace: one entry a token.
        seconds: of decoding the whole batch, the prompts included.
        ttft: of them, until its first tokens were drawn.
        model: that spoke.
        record: what the layers that really ran said, where it was asked for.
    """

    prompt: Tensor
    tokens: Tensor
    text: str | None
    units: Tensor
    ended: bool
    trace: Trace
    seconds: float
    ttft: float
    model: HookedModel
    record: ProbeResult | None = None

    def __repr__(self) -> str:
        return (
            f"Output({self.text!r}, {len(self.units)} units, {self.seconds:.2f} s, {self.trace!r})"
        )

    @property
    def audio(self) -> Tensor:
        """The speech: (samples,) at 16 kHz.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        if self.model.vocoder is None:
            raise EepolicyError("the model has no vocoder: pass one to HookedModel(vocoder=...)")
        return self.model.vocoder.decode(self.units)


#: drafts that may go unjudged where no fill bounds them; what follows a rejected one is lost
MAX_UNVERIFIED = 8


def as_policy(policy: ExitPolicy | str, full_depth: int) -> ExitPolicy:
    """A policy or its spec string, checked against a model's depth.

    Raises:
        EepolicyError: no policy, or one that names depths which the model does not have.
    """
    found = parse_policy(policy) if isinstance(policy, str) else policy
    if not isinstance(found, ExitPolicy):
        raise EepolicyError(f"a policy is an ExitPolicy or a spec string; got {policy!r}")
    found.check(full_depth)
    check_depth(found.min_depth(full_depth), full_depth, f"the least depth of {found!r}")
    return found


@torch.no_grad()
def decode(
    model: HookedModel,
    request: Request,
    policy: ExitPolicy | str,
    fill: Fill | None = None,
    accept: Acceptance | None = None,
    seed: int = 0,
    record: dict[str, Any] | None = None,
    layers: CompiledExecutor | None = None,
    restrict_vocab: bool = False,
) -> list[Output]:
    """Decode replies side by side; see `HookedModel.generate`.

    Every token of a reply costs one step, the first included, so that every depth in the trace is
    the policy's.  The first is fed the prompts' last tokens; what lies before them runs at full
    depth, see `run_step`.
    """
    policy, fill = as_policy(policy, model.depth), fill or Fill()
    fill.check()
    accept = (accept or AcceptAll()).check(model.layout, model.vocoder)
    _check(model, policy, fill, accept, request, restrict_vocab)
    # what does not fit is said before the work, not after it
    plan = None if record is None else plan_of(model, record)
    # timed at a model's first reply alone, so it is not of the reply's own seconds
    of_layers = model.layer_costs(layers) if fill.along == "measured" else None
    began = time.perf_counter()
    sampler = Sampler(request.processors, request.do_sample, seed)
    most, rows = request.max_new_tokens, len(request.prompt)
    # a judge bounds what waits by itself, so as to see all of it
    unbounded = Fill() if accept.verifies else fill
    recorder = None if plan is None else Recorder(rows)
    room = request.prompt.shape[1] + most
    in_speech = model.layout.ids_in_speech(request.ends) if restrict_vocab else ()
    batch = Batch(model, request.padding, room, unbounded, recorder, layers, in_speech, of_layers)
    replies = [Reply(model.layout, model.depth, request.ends) for _ in range(rows)]

    def history(row: int, tokens: list[int]) -> Tensor:
        return torch.cat([request.ids[row], request.ids.new_tensor(tokens)])

    def stops(row: int, *more: int) -> bool:
        """Whether a reply is over, or would be with one more token."""
        reply = replies[row]
        newest = more[-1] if more else reply.rows[-1][0]
        if len(reply) + len(more) >= most or newest in request.ends:
            return True
        if not request.criteria:
            return False
        ids = history(row, [*reply.tokens, *more])
        return bool(request.criteria(ids[None], None))

    if request.streamer is not None:
        request.streamer.put(request.ids.cpu())
    judge = DraftVerifier(batch, sampler, accept, fill.max_pending or MAX_UNVERIFIED, history)
    tokens, alive, streamed = request.prompt, list(range(rows)), 0
    started: Block | None = None
    ttft = 0.0
    while alive:
        known = torch.tensor([replies[row].known() for row in alive]).T  # (5, rows), on the host
        step = Step(known[0], known[1], known[2], known[3], known[4], model.depth)
        taken = run_step(batch, tokens, alive, policy, step, started)
        before = [history(r, replies[r].tokens) for r in alive] if sampler.needs_history else None
        scores = sampler.warp(taken.logits, alive, before)
        newest = sampler.draw(scores, alive, rows)
        # read before the next step starts, which counts anew
        fetch, costs = ahead.async_to_host(newest), [batch.paid(row) for row in alive]
        last = len(replies[alive[0]]) + 1 >= most
        started = None if accept.verifies or last else ahead.start(batch, policy, newest, alive)
        drawn = fetch()
        ttft = ttft or time.perf_counter() - began
        drops: dict[int, int] = {}
        over = [stops(row, token) for row, token in zip(alive, drawn, strict=True)]
        if accept.verifies:
            lengths = [len(replies[row]) + 1 for row in alive]
            drops = judge.take(alive, replies, drawn, scores, taken, over)
            for place, row in enumerate(alive):
                reply = replies[row]
                if (len(reply), reply.rows[-1][0]) != (lengths[place], drawn[place]):
                    over[place] = stops(row)
        else:
            for place, row in enumerate(alive):
                paid = (taken.readouts[place], *costs[place])
                replies[row].take(drawn[place], taken.depth[place], paid)
        going = [row for row, ended in zip(alive, over, strict=True) if not ended]
        if request.streamer is not None:
            streamed = _stream(request.streamer, replies[0], streamed)
        if going and len(going) < len(alive):
            batch.keep(going)
            if started is not None:
                started = started.select([alive.index(row) for row in going])
        alive = going
        if alive and any(drops.values()):
            batch.drop(drops, alive)
        if started is None:  # otherwise they are in it
            tokens = request.ids.new_tensor([[replies[row].rows[-1][0]] for row in alive])
    if request.streamer is not None:
        request.streamer.end()
    seconds = time.perf_counter() - began
    prompts = [ids[pad:].cpu() for ids, pad in zip(request.ids, request.padding, strict=True)]
    if request.prompt.is_floating_point():  # ids alone are not what was answered
        prompts = [ids[:0] for ids in prompts]
    outputs = [
        _output(model, prompt, reply, batch.prefilled, seconds, ttft)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    if recorder is None or plan is None:
        return outputs
    return [
        replace(o, record=recorder.result(model, row, o.prompt, o.tokens, o.trace, plan))
        for row, o in enumerate(outputs)
    ]


def _check(
    model: HookedModel,
    policy: ExitPolicy,
    fill: Fill,
    accept: Acceptance,
    request: Request,
    restrict_vocab: bool,
) -> None:
    """Refuse what does not go together."""
    if policy.on == "speech" and not model.layout.has_speech:
        raise EepolicyError(
            f"{policy!r} acts on speech, of which this model has none: put 'text=' in front, or "
            "give the model's layout"
        )
    if accept.verifies and (fill.way != "catch_up" or policy.needs_full_pass):
        raise EepolicyError(
            f"{accept!r} judges what a catch-up computed; with the fill {fill.way!r} and "
            f"{policy!r} there is nothing to judge"
        )
    if accept.verifies and fill.along is not None:
        raise EepolicyError(
            f"{accept!r} judges what waits, and rows that come along leave nothing waiting: use it "
            f"without along={fill.along}"
        )
    if restrict_vocab and (
        accept.verifies or policy.needs_full_pass or not model.layout.has_speech
    ):
        raise EepolicyError(
            "narrow reads speech out over its own ids: it goes neither with a model of text alone "
            f"nor with what asks the full model ({policy!r}, {accept!r})"
        )
    if accept.greedy_only and request.do_sample:
        raise EepolicyError(
            f"{accept!r} is for greedy decoding: use 'sampling', or do_sample=False"
        )
    if fill.way != "catch_up" and policy.needs_full_pass:
        raise EepolicyError(f"{policy!r} leaves nothing to fill with {fill.way!r}")


def _stream(streamer: BaseStreamer, reply: Reply, streamed: int) -> int:
    """Hand over the tokens that stay; gives how many have been."""
    certain = len(reply) - len(reply.drafts)
    for token in reply.tokens[streamed:certain]:
        streamer.put(torch.tensor([token]))
    return certain


def _output(
    model: HookedModel,
    prompt: Tensor,
    reply: Reply,
    prefill_calls: int,
    seconds: float,
    ttft: float,
) -> Output:
    ids, layout = torch.tensor(reply.tokens), model.layout
    text = None
    if model.tokenizer is not None:
        written = layout.text_ids(ids[:-1] if reply.ended else ids)
        text = model.tokenizer.decode(written).strip()
    return Output(
        prompt=prompt,
        tokens=ids,
        text=text,
        units=layout.units(ids),
        ended=reply.ended,
        trace=Trace.from_rows(reply.rows, model.depth, prefill_calls),
        seconds=seconds,
        ttft=ttft,
        model=model,
    )
