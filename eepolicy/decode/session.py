"""Decodes replies side by side, step after step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eepolicy.decode import overlap
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.block import Block
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.rebatch import (
    AutoRebatch,
    LayerCosts,
    NeverRebatch,
    RebatchRule,
    ShareRebatch,
)
from eepolicy.decode.recorder import Recorder
from eepolicy.decode.reply import Reply, first_states, policy_step
from eepolicy.decode.request import Request
from eepolicy.decode.sampling import Sampler, meets, without_nan
from eepolicy.decode.step import StepOutput, run_step
from eepolicy.decode.verify import DraftVerifier, NewTokens
from eepolicy.errors import EepolicyError
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.model.executor import LayerExecutor
from eepolicy.policies import Step
from eepolicy.policies.history import CallCosts
from eepolicy.trace import Trace

#: columns that a batch has room for at first; it grows beyond them
INITIAL_COLUMNS = 512


@dataclass(frozen=True)
class Runtime:
    """Objects that run, time and record the layers of a session.

    Attributes:
        executor: runs the layers; None for the backbone.
        layer_costs: measured costs of a layer call, for `rebatch="auto"` and for policies with
            `needs_costs`.
        recorder: records the layers that run.
    """

    executor: LayerExecutor | None = None
    layer_costs: LayerCosts | None = None
    recorder: Recorder | None = None


class DecodeSession:
    """One call of `generate`: decodes all rows of a request.

    Every token of a reply costs one step, the first included, so the policy chooses every depth in
    the trace.  The first step feeds the last token of each prompt; see `run_step`.

    Args:
        backbone: the model.
        layout: layout of the model.
        request: prompts and options of the stock `generate`.
        config: validated options of early exit.
        runtime: objects that run, time and record the layers.

    Attributes:
        batch: the rows in the layers.
        replies: reply of each row.
        active: rows whose reply has not ended.
        ttft: seconds from the start to the first tokens; 0 until then.
    """

    def __init__(
        self,
        backbone: Backbone,
        layout: TokenLayout,
        request: Request,
        config: EarlyExitConfig,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime()
        check_request(config, request)
        self.started_at = time.perf_counter()
        self.ttft = 0.0
        self.request, self.config = request, config
        num_rows = len(request.prompt)
        self.batch = Batch(
            backbone,
            request.padding,
            request.prompt.shape[1] + min(request.max_new_tokens, INITIAL_COLUMNS),
            _batch_options(config, backbone, layout, request, runtime.layer_costs),
            executor=runtime.executor,
            recorder=runtime.recorder,
        )
        states = first_states(config.policy, num_rows)
        self.replies = [Reply(layout, backbone.depth, request.ends, own) for own in states]
        self._costs: CallCosts | None = runtime.layer_costs if config.policy.needs_costs else None
        self.active = list(range(num_rows))
        self.sampler = Sampler(request.processors, request.do_sample, config.seed)
        self._verifier = None
        if config.accept.verifies:
            self._verifier = DraftVerifier(
                self.batch, self.sampler, config.accept, config.max_unverified, self._ids_before
            )
        #: what the next step feeds: tokens, or the block of a step that was launched
        self._inputs: Tensor | Block = request.prompt
        self._num_verified = 0

    def run(self) -> list[Reply]:
        """Decode until every reply has ended."""
        for _ in self.steps():
            pass
        return self.replies

    def steps(self) -> Iterator[list[int]]:
        """Decode step by step until every reply has ended.

        Yields:
            Ids of the first reply that the step has verified; often one, none for a draft.
        """
        streamer = self.request.streamer
        if streamer is not None:
            streamer.put(self.request.ids.cpu())
        while self.active:
            self.step()
            verified = self._newly_verified()
            if streamer is not None:
                for token in verified:
                    streamer.put(torch.tensor([token]))
            yield verified
        if streamer is not None:
            streamer.end()

    def trace(self, reply: Reply) -> Trace:
        """The trace of a reply."""
        prefill = self.batch.prefill_layer_calls
        return Trace.from_entries(reply.entries, self.batch.full_depth, prefill)

    @property
    def seconds(self) -> float:
        """Seconds since the session started."""
        return time.perf_counter() - self.started_at

    @torch.no_grad()
    def step(self) -> None:
        """Decode one token of each active row."""
        rows = self.active
        output = run_step(self.batch, self._inputs, rows, self.config.policy, self._policy_step())
        scores, sampled = self._sample(output)
        fetch = overlap.async_to_host(without_nan(scores, sampled))
        launched = self._launch_next_step(sampled)
        tokens = fetch()
        if min(tokens) < 0:
            raise self.sampler.nan_error(min(output.depth), self.batch.full_depth)
        self.ttft = self.ttft or self.seconds
        ends = [self._ends(row, token) for row, token in zip(rows, tokens, strict=True)]
        lengths = [len(self.replies[row]) + 1 for row in rows]
        dropped = self._append(NewTokens(rows, tokens, scores, ends), output)
        for i, row in enumerate(rows):
            reply = self.replies[row]
            if (len(reply), reply.entries[-1].token) != (lengths[i], tokens[i]):
                ends[i] = self._ends(row)  # verification replaced the newest token
        self._retire(ends, dropped, launched if launched is not None else sampled)

    def _policy_step(self) -> Step:
        """What the policy knows of the active rows."""
        replies = [self.replies[row] for row in self.active]
        return policy_step(self.config.policy, replies, self.batch.full_depth, self._costs)

    def _sample(self, output: StepOutput) -> tuple[Tensor, Tensor]:
        """Scores (rows, vocab) and the tokens (rows,) taken from them."""
        histories = None
        if self.sampler.needs_history:
            histories = [self._ids_before(r, self.replies[r].tokens) for r in self.active]
        scores = self.sampler.process(output.logits, self.active, histories)
        return scores, self.sampler.next_tokens(scores, self.active, len(self.replies))

    def _launch_next_step(self, tokens: Tensor) -> Block | None:
        """Start the next step on an asynchronous device, unless it might not take place."""
        last_step = len(self.replies[self.active[0]]) + 1 >= self.request.max_new_tokens
        if self.config.accept.verifies or last_step:
            return None
        return overlap.launch_next_step(self.batch, self.config.policy, tokens, self.active)

    def _append(self, new: NewTokens, output: StepOutput) -> dict[int, int]:
        """Append the tokens of a step and verify drafts.

        Returns:
            Number of columns of rejected drafts, by row.
        """
        if self.config.policy.needs_history:
            for i, row in enumerate(new.rows):
                self.replies[row].newest_logits = output.logits[i]
        if self._verifier is not None:
            return self._verifier.add(self.replies, new, output)
        for i, row in enumerate(new.rows):
            self.replies[row].append(new.tokens[i], output.depth[i], output.costs[i])
        return {}

    def _retire(self, ends: list[bool], dropped: dict[int, int], newest: Block | Tensor) -> None:
        """Drop rows that have ended, and set what the next step feeds.

        Args:
            ends: whether each row has ended.
            dropped: number of columns of rejected drafts, by row.
            newest: block of the next step where it was launched, or the sampled tokens (rows,).
        """
        before = self.active
        self.active = [row for row, ended in zip(before, ends, strict=True) if not ended]
        self.batch.retire(self.active, dropped)
        if isinstance(newest, Block):
            if self.active and len(self.active) < len(before):
                newest = newest.select([before.index(row) for row in self.active])
            self._inputs = newest
        elif self._verifier is None and len(self.active) == len(before):
            self._inputs = newest[:, None]
        else:
            tokens = [[self.replies[row].entries[-1].token] for row in self.active]
            self._inputs = self.request.ids.new_tensor(tokens)

    def _ids_before(self, row: int, tokens: list[int]) -> Tensor:
        """Ids of a row's prompt and of some tokens of its reply: (ids,)."""
        return torch.cat([self.request.ids[row], self.request.ids.new_tensor(tokens)])

    def _ends(self, row: int, *more: int) -> bool:
        """Whether a reply has ended, possibly with one more token."""
        reply = self.replies[row]
        newest = more[-1] if more else reply.entries[-1].token
        if len(reply) + len(more) >= self.request.max_new_tokens or newest in self.request.ends:
            return True
        if not self.request.criteria:
            return False
        ids = self._ids_before(row, [*reply.tokens, *more])
        return any(meets(criterion, ids[None]) for criterion in self.request.criteria)

    def _newly_verified(self) -> list[int]:
        """Ids of the first reply that were verified since the last call."""
        reply = self.replies[0]
        num_before, self._num_verified = self._num_verified, len(reply) - reply.num_drafts
        return [entry.token for entry in reply.entries[num_before : self._num_verified]]


def check_request(config: EarlyExitConfig, request: Request) -> None:
    """Refuse a greedy-only acceptance rule in a request that samples.

    Raises:
        EepolicyError: the rule is greedy-only and the request samples.
    """
    if config.accept.greedy_only and request.do_sample:
        raise EepolicyError(
            f"{config.accept!r} is for greedy decoding: use 'sampling', or do_sample=False"
        )


def _batch_options(
    config: EarlyExitConfig,
    backbone: Backbone,
    layout: TokenLayout,
    request: Request,
    layer_costs: LayerCosts | None,
) -> BatchOptions:
    """The options of a batch for a config."""
    ranges: Sequence[tuple[int, int]] = ()
    if config.restrict_vocab:
        ranges = layout.ids_in_speech(request.ends)
    # a verifier limits the number of pending positions itself, and must see all of them
    max_pending = None if config.accept.verifies else config.max_pending
    return BatchOptions(
        config.fill,
        max_pending,
        _rebatch_rule(config, layer_costs),
        ranges,
        _branch_depths(config, backbone),
    )


def _branch_depths(config: EarlyExitConfig, backbone: Backbone) -> list[int]:
    """Depths with a branch at which the policy may read out.

    Raises:
        EepolicyError: the fill does not keep the states that the branch reads.
    """
    depths = config.policy.possible_depths(backbone.depth)
    branches = [d for d in backbone.branches if depths is None or d in depths]
    if config.fill.defers:
        return branches
    if branches and depths is not None:
        raise EepolicyError(
            f"the exit heads at depth {', '.join(map(str, branches))} are branches, which attend "
            f"to all earlier positions; {config.fill!r} does not compute them: use fill='catch_up'"
        )
    return []


def _rebatch_rule(config: EarlyExitConfig, layer_costs: LayerCosts | None) -> RebatchRule:
    """The rule that `EarlyExitConfig.rebatch` names."""
    if config.rebatch == "never":
        return NeverRebatch()
    if config.rebatch == "auto":
        if layer_costs is None:
            raise EepolicyError("rebatch='auto' needs measured layer costs")
        return AutoRebatch(layer_costs)
    return ShareRebatch(0.0 if config.rebatch == "always" else float(config.rebatch))
