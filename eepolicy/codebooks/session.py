"""Decodes replies of several codebooks side by side, frame after frame."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eepolicy.codebooks.adapter import LEFT_OUT, CodebookAdapter
from eepolicy.codebooks.config import CodebookConfig
from eepolicy.codebooks.depth import DepthDecoder, FirstCodes
from eepolicy.codebooks.executors import FrameRuntime
from eepolicy.codebooks.frames import code_layout, take_codes
from eepolicy.codebooks.readout import readout_of
from eepolicy.codebooks.request import FrameRequest
from eepolicy.codebooks.trace import CodebookTrace
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.reply import Reply, first_states, policy_step
from eepolicy.decode.step import StepOutput, run_step
from eepolicy.guard import Guard
from eepolicy.model.backbone import Backbone
from eepolicy.returned import check_ids
from eepolicy.trace import Trace

#: columns that a batch has room for at first; it grows beyond them
INITIAL_COLUMNS = 512


class FrameSession:
    """One call of `generate`: decodes all rows of a request.

    A step runs the newest position of each row in the backbone as deep as the policy says.  The
    state at the exit gives the first code, and the normed state begins the depth decoder.  The
    codes of the frame then give the backbone's next position.

    Args:
        adapter: parts of the stock model.
        backbone: the backbone.
        depth_decoder: the depth decoder.
        request: prompts and samplers.
        config: validated options.
        runtime: what runs and records the layers.

    Attributes:
        batch: the rows in the layers of the backbone.
        replies: first codes of each row.
        codes: (codebooks,) each, frames of each row.
        ended: whether each row ended with an end frame.
        inputs: (columns, width) each, what the backbone read in each row, without padding.
        time_to_first_frame: seconds from the start to the first frames; 0 until then.
    """

    def __init__(
        self,
        adapter: CodebookAdapter,
        backbone: Backbone,
        depth_decoder: Backbone,
        request: FrameRequest,
        config: CodebookConfig,
        runtime: FrameRuntime,
    ) -> None:
        self.started_at, self.time_to_first_frame = time.perf_counter(), 0.0
        self.adapter, self.request, self.config = adapter, request, config
        rows, columns = request.prompt.embeddings.shape[:2]
        options = BatchOptions(config.backbone.fill, config.backbone.max_pending)
        capacity = columns + min(request.max_frames, INITIAL_COLUMNS)
        self.batch = Batch(
            backbone,
            request.padding,
            capacity,
            options,
            executor=runtime.backbone,
            recorder=runtime.recorder,
        )
        self.depth = DepthDecoder(
            adapter, depth_decoder, runtime.depth_decoder, config, request.depth_sampler, rows
        )
        policy, layout = config.backbone.policy, code_layout(backbone.vocab_size)
        states = first_states(policy, rows)
        self.replies = [Reply(layout, backbone.depth, request.end_codes, own) for own in states]
        self.codes: list[list[Tensor]] = [[] for _ in range(rows)]
        self.num_codebooks: list[list[int]] = [[] for _ in range(rows)]
        self.ended = [False] * rows
        self.active = list(range(rows))
        self._inputs: Tensor = request.prompt.embeddings
        padded = zip(self._inputs, request.padding, strict=True)
        self.inputs: list[list[Tensor]] = [[prompt[padding:]] for prompt, padding in padded]
        self._previous = torch.full(
            (rows, adapter.num_codebooks), LEFT_OUT, device=request.prompt.embeddings.device
        )

    def run(self) -> None:
        """Decode until every reply has ended."""
        while self.active:
            self.step()

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Decode, and yield the frames of the first row in chunks.

        Args:
            size: number of frames of a chunk.

        Yields:
            (frames, codebooks), without the frame that ends the reply; the last one may be shorter.
        """
        first, sent = self.codes[0], 0
        while self.active:
            self.step()
            ready = len(first) - self.ended[0]
            if ready - sent >= size or (not self.active and ready > sent):
                yield torch.stack(first[sent:ready])
                sent = ready

    @property
    def seconds(self) -> float:
        """Seconds since the session started."""
        return time.perf_counter() - self.started_at

    @torch.no_grad()
    def step(self) -> None:
        """Decode one frame of each active row."""
        replies = [self.replies[row] for row in self.active]
        frame = len(replies[0])  # all rows start together
        policy = self.config.backbone.policy
        step = policy_step(policy, replies, self.batch.full_depth)
        output = run_step(self.batch, self._inputs, self.active, policy, step)
        first = self._first_codes(output)
        codes = self._complete(output, first, frame)
        self.time_to_first_frame = self.time_to_first_frame or self.seconds
        codes = self._fill(codes)
        self._retire(codes)
        if self.active:
            self._inputs = self._next_inputs(frame)

    def trace(self, row: int) -> CodebookTrace:
        """The trace of a row."""
        backbone, depth = self.batch, self.depth
        return CodebookTrace(
            Trace.from_entries(
                self.replies[row].entries, backbone.full_depth, backbone.prefill_layer_calls
            ),
            Trace.from_entries(depth.replies[row].entries, depth.backbone.depth, 0),
            np.array(self.num_codebooks[row], np.int64),
            self.adapter.num_codebooks,
        )

    def _first_codes(self, output: StepOutput) -> Tensor:
        """Take or sample the first code of each active row: (rows,)."""
        sampler, histories = self.request.sampler, None
        if sampler.needs_history:
            on_device: dict[str, Any] = {"dtype": torch.long, "device": output.logits.device}
            histories = [torch.tensor(self.replies[r].tokens, **on_device) for r in self.active]
        policy = self.config.backbone.policy
        return take_codes(sampler, output, self.active, self.replies, policy, histories)

    def _complete(self, output: StepOutput, first: Tensor, frame: int) -> Tensor:
        """Decode the other codes of each active row: (rows, codebooks).

        Args:
            output: step of the backbone.
            first: (rows,) first codes.
            frame: index of the frame.
        """
        codes = first.new_full((len(first), self.adapter.num_codebooks), LEFT_OUT)
        codes[:, 0] = first
        rows = [i for i, row in enumerate(self.active) if not self.replies[row].ended]
        if rows:
            states = self.batch.backbone.parts.norm(output.hidden[rows])
            codes[rows] = self.depth.complete(
                FirstCodes(
                    [self.active[i] for i in rows],
                    first[rows],
                    states,
                    readout_of(output, rows),
                    frame,
                )
            )
        return codes

    def _fill(self, codes: Tensor) -> Tensor:
        """Count the codes of each active row, and fill in those that are missing.

        Args:
            codes: (rows, codebooks), `LEFT_OUT` where a code was not computed.

        Returns:
            (rows, codebooks), `LEFT_OUT` where a code is left out.
        """
        is_missing = codes == LEFT_OUT
        for row, count in zip(self.active, (~is_missing).sum(1).tolist(), strict=True):
            self.num_codebooks[row].append(count)
        if bool(is_missing.any()):
            rule = self.config.missing
            with Guard(rule, "fill"):
                filled = rule.fill(codes, self._previous[self.active])
            filled = check_ids(rule, "fill", filled, codes.shape)
            codes = torch.where(is_missing, filled, codes)
        self._previous[self.active] = codes
        return codes

    def _retire(self, codes: Tensor) -> None:
        """Store the frames, and drop the rows whose reply has ended.

        Args:
            codes: (rows, codebooks) of the active rows.
        """
        staying = []
        may_end = self.adapter.may_end(codes).tolist()
        for i, row in enumerate(self.active):
            self.codes[row].append(codes[i])
            self.ended[row] = may_end[i] or self.replies[row].ended
            if not self.ended[row] and len(self.codes[row]) < self.request.max_frames:
                staying.append(row)
        self.active = staying
        self.batch.retire(staying, {})

    def _next_inputs(self, frame: int) -> Tensor:
        """What the backbone reads next: (rows, 1, width).

        Args:
            frame: index of the newest frame.
        """
        inputs = self.adapter.embed_frames(self._previous[self.active])
        text = self.request.prompt.text_at(frame, self.active)
        inputs = inputs if text is None else inputs + text
        for i, row in enumerate(self.active):
            self.inputs[row].append(inputs[i])
        return inputs
