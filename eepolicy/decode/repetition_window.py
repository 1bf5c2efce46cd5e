"""A repetition penalty for the newest tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from eepolicy.errors import EepolicyError

#: option of `generate`
OPTION = "windowed_repetition_penalty"


class WindowedRepetitionPenalty(LogitsProcessor):  # type: ignore[misc]  # transformers is skipped
    """Penalises the tokens among the newest ones, as `repetition_penalty` does with all tokens.

    The logit of such a token is divided by the penalty if it is positive, and multiplied by it if
    it is negative.  The authors of Covo-Audio decode with this penalty beside the usual one.
    `generate` takes it as `windowed_repetition_penalty={"penalty": 1.05, "window": 8}`.

    Args:
        penalty: above 1 to make repetitions less likely.
        window: number of newest tokens, those of the prompt included.

    Raises:
        EepolicyError: the penalty is not positive, or the window is empty.

    Examples:
        >>> import torch
        >>> from eepolicy.decode.repetition_window import WindowedRepetitionPenalty
        >>> penalise = WindowedRepetitionPenalty(2.0, window=2)
        >>> penalise(torch.tensor([[0, 1, 2, 1]]), torch.tensor([[4.0, 4.0, -4.0]]))
        tensor([[ 4.,  2., -8.]])
    """

    def __init__(self, penalty: float, window: int) -> None:
        if not (penalty > 0 and isinstance(window, int) and window >= 1):
            raise EepolicyError(
                f"a penalty is above 0 and a window a number of tokens, at least 1; got {penalty} "
                f"and {window}"
            )
        self.penalty = penalty
        self.window = window

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Penalise logits: ids (rows, tokens) and scores (rows, vocabulary) -> scores."""
        recent = input_ids[:, -self.window :]
        logits = scores.gather(1, recent)
        logits = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return scores.scatter(1, recent, logits)


def with_windowed_penalty(options: dict[str, Any]) -> dict[str, Any]:
    """Replace the option `windowed_repetition_penalty` by a logits processor.

    Args:
        options: options of `generate`.

    Raises:
        EepolicyError: the value is not a dict of `penalty` and `window`, or is out of range.
    """
    value = options.get(OPTION)
    rest = {name: option for name, option in options.items() if name != OPTION}
    if value is None:
        return rest
    try:
        penalty = WindowedRepetitionPenalty(**value)
    except TypeError as error:
        raise EepolicyError(
            f"{OPTION} is a dict with penalty and window, which are numbers; got {value!r}"
        ) from error
    processors = [*(rest.get("logits_processor") or ()), penalty]
    return rest | {"logits_processor": LogitsProcessorList(processors)}
