"""From logits to the next tokens, by the logits processors of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria
from transformers.generation import logits_process as stock

from eepolicy.errors import EepolicyError
from eepolicy.guard import Guard
from eepolicy.returned import check_flags, check_numbers

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
        seed: seed of the random numbers; None for the global generators of PyTorch.  A seed for
            each row gives each row the random numbers that it has alone.

    Raises:
        EepolicyError: the number of seeds is not that of the rows.

    Attributes:
        needs_history: whether `process` needs the earlier tokens.
    """

    def __init__(
        self,
        processors: Sequence[LogitsProcessorList],
        do_sample: bool,
        seed: int | Sequence[int] | None,
    ) -> None:
        if isinstance(seed, Sequence) and len(seed) != len(processors):
            raise EepolicyError(
                f"`seed` is one number, or one for each row; got {len(seed)} for "
                f"{len(processors)} rows"
            )
        self.processors, self.do_sample, self.seed = processors, do_sample, seed
        self._generators: dict[tuple[str, int], torch.Generator] = {}
        self.needs_history = any(type(p) not in _WITHOUT_HISTORY for p in processors[0])

    def share_random_numbers(self, other: Sampler) -> None:
        """Draw from the random numbers of another sampler, so that both form one stream."""
        self.seed, self._generators = other.seed, other._generators

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

        Random numbers are drawn for every row of the batch and on the device of the scores, as in
        the stock `generate`, so that the same seed gives the same tokens.

        Args:
            scores: (rows, vocab), from `process`.
            rows: row of the batch of each line of `scores`.
            num_rows: number of rows in the batch, ended ones included.

        Returns:
            (rows,) ids.
        """
        if not self.do_sample:
            return scores.argmax(-1)
        if isinstance(self.seed, Sequence):
            tokens = [self.next_token(*pair) for pair in zip(scores, rows, strict=True)]
            return torch.stack(tokens)
        at = scores if scores.device.type == "cuda" else scores.cpu()
        probabilities = torch.ones(num_rows, scores.shape[1], dtype=scores.dtype, device=at.device)
        probabilities[rows] = at.softmax(-1)
        drawn = _drawn(probabilities, self._generator(at.device))
        return drawn[rows].to(scores.device)

    def next_token(self, scores: Tensor, row: int) -> Tensor:
        """Take or sample the next token of one row.

        Args:
            scores: (vocab,), from `process`.
            row: row of the batch.

        Returns:
            () id.
        """
        if not self.do_sample:
            return scores.argmax(-1)
        at = scores if scores.device.type == "cuda" else scores.cpu()
        generator = self._generator(at.device, row)
        return _drawn(at.softmax(-1)[None], generator)[0].to(scores.device)

    def uniforms(self, count: int, row: int) -> Tensor:
        """Random numbers in [0, 1) for a row: (count,)."""
        generator = self._generator(torch.device("cpu"), row)
        return torch.rand(count, generator=generator, dtype=torch.float32)

    def nan_error(self, depth: int, full_depth: int) -> EepolicyError:
        """The error for scores that are nan, with what may have given them.

        Args:
            depth: smallest depth at which the tokens of the step were read out.
            full_depth: number of layers of the model.
        """
        names = [type(p).__name__ for p in self.processors[0]]
        processors = f"the logits processors {', '.join(names)}, " if names else ""
        heads = "" if depth == full_depth else " or the exit heads"
        return EepolicyError(
            f"the scores of a token are nan at depth {depth}: {processors}the weights of the model"
            f"{heads} give no number; look for nan or infinite weights with 'eepolicy models "
            "check', or use another dtype"
        )

    def _generator(self, device: torch.device, row: int = 0) -> torch.Generator:
        """The random numbers of a device; with a seed for each row, those of the row."""
        if self.seed is None:
            on_cuda = device.type == "cuda"
            return (
                torch.cuda.default_generators[device.index] if on_cuda else torch.default_generator
            )
        of_row = isinstance(self.seed, Sequence)
        seed = self.seed[row] if isinstance(self.seed, Sequence) else self.seed
        key = (str(device), row if of_row else 0)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(seed)
        return self._generators[key]


def _drawn(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a token of each row: (rows, vocab) -> (rows,).

    Raises:
        EepolicyError: a probability is nan or infinite.
    """
    try:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    except RuntimeError as error:
        raise EepolicyError(
            f"no token can be sampled, because scores are nan or all infinite: {error}; look at "
            "the logits processors, the exit heads, and the weights with 'eepolicy models check'"
        ) from error


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
        with Guard(processor, "__call__"):
            processed = processor(ids, scores)
        scores = check_numbers(processor, "__call__", processed, scores.shape)
    return scores


def without_nan(scores: Tensor, tokens: Tensor) -> Tensor:
    """Tokens (rows,), with -1 where the scores (rows, vocab) of the token are nan.

    `argmax` takes nan for the largest number, so the score of the token tells of any nan.
    """
    if len(tokens) == 1 and tokens.device.type == "cpu":  # a third of the time
        is_nan = math.isnan(scores[0, int(tokens)].item())
        return torch.full_like(tokens, -1) if is_nan else tokens
    chosen = scores.gather(1, tokens[:, None])[:, 0]
    return torch.where(chosen.isnan(), -1, tokens)


def meets(criterion: StoppingCriteria, ids: Tensor) -> bool:
    """Whether a stopping criterion ends a row of ids (1, ids)."""
    with Guard(criterion, "__call__"):
        ends = criterion(ids, None)
    if isinstance(ends, bool):  # as criteria of older releases return it
        return ends
    return bool(check_flags(criterion, "__call__", ends, 1))
