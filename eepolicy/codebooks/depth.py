"""Decodes the codes of a frame after the first one, by the depth decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eepolicy.codebooks.adapter import LEFT_OUT, CodebookAdapter
from eepolicy.codebooks.config import CodebookConfig
from eepolicy.codebooks.executor import CodebookExecutor
from eepolicy.codebooks.frames import DepthReply, code_layout, take_codes
from eepolicy.codebooks.policies import FrameStep
from eepolicy.codebooks.readout import readout_of
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.reply import first_states, policy_step
from eepolicy.decode.sampling import Sampler
from eepolicy.decode.step import StepOutput, run_step
from eepolicy.guard import Guard
from eepolicy.model.backbone import Backbone
from eepolicy.policies import Readout
from eepolicy.returned import check_flags


@dataclass(frozen=True, eq=False)
class FirstCodes:
    """The first codes of some frames, and what they were read out of.

    Attributes:
        rows: rows of the batch, ascending.
        codes: (rows,).
        states: (rows, width) normed states of the backbone.
        readout: readout of the first codes.
        frame: index of the frame in the replies.
    """

    rows: list[int]
    codes: Tensor
    states: Tensor
    readout: Readout
    frame: int


class DepthDecoder:
    """Decodes the codes after the first one, frame by frame, with a cache for each frame.

    With a fill that defers, positions that are pending at the end of a frame are never computed.

    Args:
        adapter: parts of the stock model.
        backbone: the depth decoder.
        executor: runs its layers, and reads its codebooks out.
        config: validated options.
        sampler: samples the codes.
        num_rows: number of rows of the batch.

    Attributes:
        replies: codes of each row.
    """

    def __init__(
        self,
        adapter: CodebookAdapter,
        backbone: Backbone,
        executor: CodebookExecutor,
        config: CodebookConfig,
        sampler: Sampler,
        num_rows: int,
    ) -> None:
        self.adapter, self.backbone, self.sampler = adapter, backbone, sampler
        self.executor = executor
        self.config, self.codebooks = config.depth_decoder, config.codebooks
        self.options = BatchOptions(self.config.fill, self.config.max_pending)
        policy, layout = self.config.policy, code_layout(backbone.vocab_size)
        states = first_states(policy, num_rows)
        self.replies = [DepthReply(layout, backbone.depth, frozenset(), own) for own in states]

    def complete(self, first: FirstCodes) -> Tensor:
        """Decode the other codes of some frames.

        Args:
            first: their first codes.

        Returns:
            (rows, codebooks), `LEFT_OUT` where a code was not computed.
        """
        for row in first.rows:
            self.replies[row].begin_frame(first.frame)
        num_codebooks = self.adapter.num_codebooks
        codes = first.codes.new_full((len(first.rows), num_codebooks), LEFT_OUT)
        codes[:, 0] = first.codes
        active = self._continuing([*range(len(first.rows))], codes[:, :1], first, first.readout)
        if not active:
            return codes
        padding = [0] * len(first.rows)
        batch = Batch(self.backbone, padding, num_codebooks, self.options, executor=self.executor)
        for codebook in range(1, num_codebooks):
            if len(active) < len(batch.positions.stored_rows):
                batch.retire(active, {})
            self.executor.codebook = codebook
            output = self._step(batch, codes[:, :codebook], active, first)
            own = [first.rows[i] for i in active]
            codes[active, codebook] = take_codes(
                self.sampler, output, own, self.replies, self.config.policy
            )
            if codebook + 1 < num_codebooks:
                known, readout = codes[:, : codebook + 1], readout_of(output)
                active = self._continuing(active, known, first, readout)
            if not active:
                break
        return codes

    def _continuing(
        self, active: list[int], codes: Tensor, first: FirstCodes, readout: Readout
    ) -> list[int]:
        """The frames that get another code.

        A frame continues in any case while its codes are those of a frame that ends the reply.
        Otherwise the number of codebooks would change where replies end.

        Args:
            active: indices in `first.rows` of the frames that the readout is of.
            codes: (rows, codes), the codes so far.
            first: the frames.
            readout: readout of the newest codes.
        """
        frames = torch.full((len(active),), first.frame)
        step = FrameStep(frames, codes.shape[1], self.adapter.num_codebooks)
        with Guard(self.codebooks, "stops"):
            stop = self.codebooks.stops(step, readout)
        stops = check_flags(self.codebooks, "stops", stop, len(active)).tolist()
        if not any(stops):
            return active
        may_end = self.adapter.may_end(codes[active]).tolist()
        return [i for i, stop, end in zip(active, stops, may_end, strict=True) if end or not stop]

    def _step(
        self, batch: Batch, codes: Tensor, active: list[int], first: FirstCodes
    ) -> StepOutput:
        """Feed the newest code of some frames, and read the next one out.

        The first step also feeds the backbone's state.  With a fill that defers, that position is
        pending at depth 0 before, so it runs as deep as the step.  Other fills treat a single
        position, so it runs at full depth.  Each frame has it, so the cost of the step includes it.

        Args:
            batch: a row for each frame.
            codes: (rows, codes), the codes so far.
            active: rows of the batch that continue.
            first: the frames.
        """
        policy = self.config.policy
        replies = [self.replies[first.rows[i]] for i in active]
        step = policy_step(policy, replies, self.backbone.depth)
        newest = codes.shape[1] - 1
        inputs = self.adapter.embed_code(codes[active, newest], newest)
        if newest:
            return run_step(batch, inputs, active, policy, step)
        start = self.adapter.embed_state(first.states[active])
        if self.options.fill.defers:
            batch.defer(batch.begin_step(start, active))
            return run_step(batch, inputs, active, policy, step)
        output = run_step(batch, torch.cat([start, inputs], 1), active, policy, step)
        for cost in output.costs:
            cost.layer_calls += batch.prefill_layer_calls  # 0 if it ran in the calls of the step
            cost.layer_positions += self.backbone.depth
        return output
