"""What people pass as a prompt: the output of a tokenizer, arrays, lists of ids, or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.prompts import Prompt, is_messages
from eepolicy.speech.waves import as_wave, warn_of_file_name

#: options that hold the prompt of the stock `generate`, and are its `prompt` here
PROMPT_OPTIONS = ("inputs", "input_ids")


def read_prompt(
    prompt: Any, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Prompt | Sequence[Prompt] | None, Tensor | None]:
    """Find the prompt and its attention mask, wherever the caller put them.

    Args:
        prompt: any kind of prompt, the output of a tokenizer, or None.
        mask: attention mask, (rows, tokens); None for none.
        options: options of `generate`; those that hold the prompt are taken out, and what else the
            output of a tokenizer contains is put in.

    Returns:
        The prompt in one of the kinds of `eepolicy.prompts.Prompt`, a list of them, or None; and
        the attention mask.

    Raises:
        EepolicyError: two prompts or two masks, or the output of a tokenizer without ids.
    """
    for name in PROMPT_OPTIONS:
        given = options.pop(name, None)
        if given is not None and prompt is not None:
            raise EepolicyError(f"give one prompt; got one and {name}= beside it")
        prompt = given if prompt is None else prompt
    prompt = as_wave(prompt)
    if isinstance(prompt, (list, tuple)) and not is_messages(prompt) and not _is_ids(prompt):
        prompt = [as_wave(one) for one in prompt]
    for text in prompt if isinstance(prompt, list) else [prompt]:
        warn_of_file_name(text)
    if isinstance(prompt, Mapping):  # the output of a tokenizer or of a chat template
        fields = {name: value for name, value in prompt.items() if value is not None}
        if not {"input_ids", "inputs_embeds"} & fields.keys():
            raise EepolicyError(
                "a dict as prompt is the output of a tokenizer, with input_ids; "
                f"got the keys {', '.join(map(str, prompt)) or '(none)'}"
            )
        prompt, own_mask = fields.pop("input_ids", None), fields.pop("attention_mask", None)
        if own_mask is not None and mask is not None:
            raise EepolicyError("give one attention mask; the prompt contains another one")
        mask = _tensor(own_mask) if mask is None else mask
        twice = fields.keys() & options.keys()
        if twice:
            raise EepolicyError(f"{', '.join(sorted(twice))}: in the prompt and beside it")
        options.update(fields)
    prompt, mask = _tensor(prompt), _checked_mask(_tensor(mask))
    if isinstance(prompt, list) and mask is not None:
        raise EepolicyError(
            "rows of different lengths are padded here, without an attention mask; or call the "
            "tokenizer with padding=True and return_tensors='pt'"
        )
    return prompt, mask


def _checked_mask(mask: Any) -> Tensor | None:
    """An attention mask (rows, tokens) of 0 and 1; floats count as in transformers.

    Raises:
        EepolicyError: it is something else.
    """
    if mask is None:
        return None
    is_mask = isinstance(mask, Tensor) and mask.ndim in (1, 2) and not mask.is_complex()
    if not is_mask or not bool(((mask == 0) | (mask == 1)).all()):
        raise EepolicyError(f"an attention mask is (rows, tokens) of 0 and 1; got {mask!r:.80}")
    return mask if isinstance(mask, Tensor) else None


def _tensor(values: Any) -> Any:
    """Ids as tensors: an array or a list of ids, or a list of such rows; all else as it is."""
    if isinstance(values, (np.ndarray, np.generic)):
        try:
            return torch.as_tensor(values)
        except TypeError as error:
            raise EepolicyError(
                f"an array as prompt or mask has integers; got {values!r:.80}"
            ) from error
    if not isinstance(values, (list, tuple)) or not values or is_messages(values):
        return values
    if _is_ids(values):
        return torch.tensor([int(value) for value in values])
    rows = [_tensor(row) if isinstance(row, (np.ndarray, list, tuple)) else row for row in values]
    are_rows = all(isinstance(row, Tensor) and row.ndim == 1 for row in rows)
    was_nested = all(isinstance(row, (list, tuple)) for row in values)
    if are_rows and was_nested and len({len(row) for row in rows}) == 1:
        return torch.stack(rows)
    return rows


def _is_ids(values: Sequence[Any]) -> bool:
    """Whether all values are integers, and none is a truth value."""
    return all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values)
