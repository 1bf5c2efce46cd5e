"""A stopping criterion for texts that end a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class StopTexts(StoppingCriteria):  # type: ignore[misc]  # transformers' types are skipped
    """Ends a reply once it contains one of some texts.

    Prompts are not searched, and nothing is stored between calls: verification may drop tokens.

    Args:
        texts: texts that end a reply.
        tokenizer: decodes the ids.
        start: column of the first token of the replies; prompts before it are padded on the left.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, start: int
    ) -> None:
        self.texts, self.tokenizer, self.start = tuple(texts), tokenizer, start
        # a token has at least one byte; two more tokens may begin and end with other text
        self._lookback = 2 + max((len(text.encode()) for text in texts), default=0)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Whether each reply has ended: (rows,) of bool."""
        replies = input_ids[:, self.start :][:, -self._lookback :]
        ended = [
            any(text in reply for text in self.texts)
            for reply in self.tokenizer.batch_decode(replies)
        ]
        return input_ids.new_tensor(ended, dtype=torch.bool)
