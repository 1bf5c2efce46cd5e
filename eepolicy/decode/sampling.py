"""From logits to the next tokens, by the logits processors of transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as stock

#: processors that read the scores only, not the earlier tokens
_WITHOUT_HISTORY = (
    stock.EpsilonLogitsWarper,
    stock.EtaLogitsWarper,
    stock.InfNanRemoveLogitsProcessor,
    stock.LogitNormalization,
    stock.MinPLogitsWarper,
    stock.TemperatureLogitsWarper,
    stock.TopKLogitsWarper,
    stock.TopPLogitsWarper,
    stock.TypicalLogitsWarper,
)


class Sampler:
    """Processes logits, then takes the most likely token or samples one.

    Processors that read the earlier tokens are called once for all rows of equal length with the
    same processors.  They must keep no state of their own, because rejected drafts disappear from
    the earlier tokens.

    Args:
        processors: processors of each row of the batch, in order.
        do_sample: sample tokens; otherwise take the most likely one.
        seed: seed of the random numbers; None for the global generator of PyTorch.

    Attributes:
        needs_history: whether `process` needs the earlier tokens.
    """

    def __init__(
        self, processors: Sequence[LogitsProcessorList], do_sample: bool, seed: int | None
    ) -> None:
        self.processors, self.do_sample = processors, do_sample
        self.generator = torch.default_generator
        if seed is not None:
            self.generator = torch.Generator().manual_seed(seed)
        self.needs_history = any(type(p) not in _WITHOUT_HISTORY for p in processors[0])

    def process(
        self, logits: Tensor, rows: list[int], histories: Sequence[Tensor] | None
    ) -> Tensor:
        """Apply the processors.

        Args:
            logits: (tokens, vocab).
            rows: row of each token.
            histories: ids before each token, (ids,) each, prompt included; needed only with
                `needs_history`.

        Returns:
            (tokens, vocab) in float32, the scores that tokens are taken from.
        """
        if not self.processors[0]:
            return logits.float()
        logits = logits.to(torch.float32, copy=True)  # processors may write in place
        if not self.needs_history:
            none = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
            return _processed(self.processors[0], none, logits)
        assert histories is not None
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (row, ids) in enumerate(zip(rows, histories, strict=True)):
            key = (len(ids), *map(id, self.processors[row]))
            groups.setdefault(key, []).append(index)
        if len(groups) == 1:
            return _processed(self.processors[rows[0]], torch.stack(list(histories)), logits)
        scores = torch.empty_like(logits)
        for indices in groups.values():
            ids = torch.stack([histories[index] for index in indices])
            scores[indices] = _processed(self.processors[rows[indices[0]]], ids, logits[indices])
        return scores

    def next_tokens(self, scores: Tensor, rows: list[int], num_rows: int) -> Tensor:
        """Take or sample the next tokens.

        Random numbers are drawn for every row of the batch, as in the stock `generate`, so that the
        same seed gives the same tokens.

        Args:
            scores: (rows, vocab), from `process`.
            rows: row of the batch of each line of `scores`.
            num_rows: number of rows in the batch, ended ones included.

        Returns:
            (rows,) ids.
        """
        if not self.do_sample:
            return scores.argmax(-1)
        probabilities = torch.ones(num_rows, scores.shape[1], dtype=scores.dtype)
        probabilities[rows] = scores.softmax(-1).cpu()
        tokens = torch.multinomial(probabilities, 1, generator=self.generator)[rows, 0]
        return tokens.to(scores.device)

    def uniforms(self, count: int) -> Tensor:
        """Random numbers in [0, 1): (count,)."""
        return torch.rand(count, generator=self.generator, dtype=torch.float32)


def _processed(processors: LogitsProcessorList, ids: Tensor, scores: Tensor) -> Tensor:
    """Call processors in order.

    `LogitsProcessorList` does the same, and reads the signature of each processor at every call,
    which takes longer than most processors.

    Args:
        processors: the processors.
        ids: (rows, ids).
        scores: (rows, vocab).
    """
    for processor in processors:
        scores = processor(ids, scores)
    return scores
