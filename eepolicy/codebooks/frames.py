"""The codes of one stream: their layout, their sampling, and the reply of the depth decoder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from eepolicy.decode.reply import Reply
from eepolicy.decode.sampling import Sampler, without_nan
from eepolicy.decode.step import StepOutput
from eepolicy.modality import TokenLayout
from eepolicy.policies import ExitPolicy


def code_layout(num_codes: int) -> TokenLayout:
    """The layout of a stream of codes: one chunk of speech.

    Args:
        num_codes: number of codes of a codebook.
    """
    return TokenLayout((0, 0), (0, num_codes), 0, sys.maxsize, -1, -1)


class DepthReply(Reply):
    """The codes of one row that the depth decoder gives.

    A frame is a chunk, and the index of a code after the first one is its phase.
    """

    def begin_frame(self, frame: int) -> None:
        """The next code is the first one of a frame that the depth decoder gives."""
        self._clocks[-1] = replace(self._clocks[-1], chunk=frame, phase=0)

    def _since_refresh(self) -> int:
        is_first = self._clocks[-1].phase == 0  # the cache is empty at the start of a frame
        return 0 if is_first else super()._since_refresh()


def take_codes(
    sampler: Sampler,
    output: StepOutput,
    rows: list[int],
    replies: Sequence[Reply],
    policy: ExitPolicy,
    histories: Sequence[Tensor] | None = None,
) -> Tensor:
    """Take or sample the next codes of some rows, and append them to the replies.

    Args:
        sampler: takes the codes.
        output: step of the rows.
        rows: rows of the batch.
        replies: replies of all rows of the batch.
        policy: exit policy of the step.
        histories: (codes,) each, earlier codes for logits processors; None if none reads them.

    Returns:
        (rows,).

    Raises:
        EepolicyError: the scores of a code are nan.
    """
    scores = sampler.process(output.logits, rows, histories)
    codes = sampler.next_tokens(scores, rows, len(replies))
    numbers = without_nan(scores, codes).tolist()
    if min(numbers) < 0:
        raise sampler.nan_error(min(output.depth), replies[0].full_depth)
    for i, (row, number) in enumerate(zip(rows, numbers, strict=True)):
        replies[row].append(number, output.depth[i], output.costs[i])
        if policy.needs_history:
            replies[row].newest_logits = output.logits[i]
    return codes
