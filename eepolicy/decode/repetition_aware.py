"""Repetition-aware sampling, as CosyVoice does it, in a form that verification can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from eepolicy.decode.stock_options import SAMPLING
from eepolicy.errors import EepolicyError
from eepolicy.prompts import PromptBatch

#: option of `generate`
OPTION = "repetition_aware"
#: warpers of the stock `generate`, which come after all other processors, without an effect
_NO_WARPERS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class RepetitionAware:
    """Options of repetition-aware sampling.

    A token is sampled from the most likely ones (`top_p`, `top_k`).  If it occurs too often among
    the last tokens of the reply, another token is sampled from the whole distribution without it.

    The method is that of VALL-E 2 (arXiv 2406.05370).  The code of CosyVoice also leaves out the
    repeated token in the second draw.  The default values are CosyVoice's.

    Attributes:
        top_p: the most likely tokens are taken until their probabilities reach this sum.
        top_k: largest number of these tokens.
        window: number of tokens before the new one that are searched.
        ratio: share of the window from which on a token counts as repeated.

    Raises:
        EepolicyError: a value is out of range.
    """

    top_p: float = 0.8
    top_k: int = 25
    window: int = 10
    ratio: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.top_p <= 1 and 0 < self.ratio <= 1):
            raise EepolicyError(f"top_p and ratio are above 0 and at most 1; got {self!r}")
        for count in (self.top_k, self.window):
            if not isinstance(count, int) or count < 1:
                raise EepolicyError(f"top_k and window are integers of at least 1; got {self!r}")

    @classmethod
    def from_option(cls, value: Any) -> RepetitionAware:
        """Read the value of the option `repetition_aware`.

        Args:
            value: True for the default values, a dict with some of them, or an object of this
                class.

        Raises:
            EepolicyError: it is something else, or has unknown keys.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls(**({} if value is True else value))
        except TypeError as error:
            names = ", ".join(cls.__dataclass_fields__)
            raise EepolicyError(
                f"{OPTION} is True or a dict with {names}; got {value!r}"
            ) from error


class RepetitionAwareLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Turns scores into the distribution of repetition-aware sampling.

    Two draws, of which the second one depends on the first, have a distribution of their own.  It
    follows from the scores and the last tokens.  This processor returns its logarithms.  Sampling
    from them gives tokens with the probabilities of the authors' two draws, from one random number.
    The acceptance rules for sampling can verify drafts with these scores.

    It also works in the stock `generate`.  Set `top_k=0` there, because the stock default of 50
    comes after all processors.

    Args:
        options: options of the method.
        prompt_length: number of columns of the prompt, which the window does not search.

    Examples:
        >>> import torch
        >>> from eepolicy.decode.repetition_aware import RepetitionAware
        >>> process = RepetitionAwareLogitsProcessor(RepetitionAware(top_k=1), prompt_length=0)
        >>> scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> process(torch.tensor([[2]]), scores).exp()  # token 0 is not repeated
        tensor([[1., 0., 0.]])
        >>> process(torch.tensor([[0]]), scores).exp()
        tensor([[0.0000, 0.6000, 0.4000]])
    """

    def __init__(self, options: RepetitionAware, prompt_length: int) -> None:
        self.options, self.prompt_length = options, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Process the scores of some rows.

        Args:
            input_ids: (rows, ids), prompt included.
            scores: (rows, vocab).

        Returns:
            (rows, vocab), logarithms of the probabilities.
        """
        window = input_ids[:, self.prompt_length :][:, -self.options.window :].tolist()
        nucleus = self._nucleus(scores)
        for row, ids in enumerate(window):
            nucleus[row] = self._without_repeats(nucleus[row], scores[row], Counter(ids))
        return nucleus.log()

    def _nucleus(self, scores: Tensor) -> Tensor:
        """Probabilities of the first draw: (rows, vocab) -> (rows, vocab)."""
        ordered, ids = scores.softmax(-1).sort(stable=True, dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = ordered * (before < self.options.top_p)
        kept[:, self.options.top_k :] = 0
        return torch.zeros_like(kept).scatter(-1, ids, kept / kept.sum(-1, keepdim=True))

    def _without_repeats(self, nucleus: Tensor, scores: Tensor, counts: Counter[int]) -> Tensor:
        """Move the probability of repeated tokens to the other tokens.

        Args:
            nucleus: (vocab,) probabilities of the first draw.
            scores: (vocab,).
            counts: number of each token in the window.

        Returns:
            (vocab,) probabilities of both draws.
        """
        limit = self.options.window * self.options.ratio
        result = nucleus.clone()
        for token in (token for token, count in counts.items() if count >= limit):
            if nucleus[token]:
                others = scores.clone()
                others[token] = -torch.inf
                if others.isneginf().all():  # no other token is allowed
                    continue
                result[token] -= nucleus[token]
                result += nucleus[token] * others.softmax(-1)
        return result.clamp(min=0)


def with_repetition_aware(options: dict[str, Any], prompts: PromptBatch) -> dict[str, Any]:
    """Replace the option `repetition_aware` by a logits processor.

    Args:
        options: options of `generate`.
        prompts: prompts, whose columns the window does not search.

    Returns:
        The options, with sampling turned on and without warpers after the processor.

    Raises:
        EepolicyError: the value is not supported, or another option would change the distribution.
    """
    value = options.get(OPTION)
    rest = {name: option for name, option in options.items() if name != OPTION}
    if value is None or value is False:
        return rest
    method = RepetitionAware.from_option(value)
    config = rest.get("generation_config")
    for name in SAMPLING:
        given = rest.get(name, getattr(config, name, None))
        if given not in (None, _NO_WARPERS.get(name)):
            raise EepolicyError(
                f"{name} does not go with {OPTION}, which has a top_p and a top_k of its own: "
                f"give them as {OPTION}={{'top_p': ..., 'top_k': ...}}"
            )
    if rest.get("do_sample", getattr(config, "do_sample", None)) is False:
        raise EepolicyError(f"{OPTION} samples: it does not go with do_sample=False")
    length = 0 if prompts.ids is None else prompts.ids.shape[1]
    processors: list[Any] = [*(rest.get("logits_processor") or ())]
    processors.append(RepetitionAwareLogitsProcessor(method, length))
    changes: Mapping[str, Any] = dict.fromkeys(SAMPLING) | {
        **_NO_WARPERS,
        "do_sample": True,
        "logits_processor": LogitsProcessorList(processors),
    }
    return {**rest, **changes}
