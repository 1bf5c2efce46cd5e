"""Inputs of a stock model with several codebooks for the prompts that `generate` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from eepolicy.codebooks.adapter import CodebookAdapter
from eepolicy.codebooks.prompt import left_padded
from eepolicy.errors import EepolicyError

#: a prompt: text for the processor, ids (tokens,), or the output of a processor
FrameInput: TypeAlias = str | Tensor | Mapping[str, Any]


def is_list(prompt: object) -> bool:
    """Whether prompts are decoded as a batch because they are in a list."""
    return isinstance(prompt, Sequence) and not isinstance(prompt, str)


def stock_inputs(
    adapter: CodebookAdapter, processor: Any, prompt: FrameInput | Sequence[FrameInput] | None
) -> dict[str, Any]:
    """Inputs of the stock model for a prompt or a list of prompts, by their stock names.

    Args:
        adapter: parts of the stock model.
        processor: processor of the model; None for none.
        prompt: see `HookedCodebookModel.generate`.

    Raises:
        EepolicyError: a prompt is of another type, or text without a processor.
    """
    device = adapter.model.device
    if prompt is None:
        return {}
    if isinstance(prompt, Mapping):
        return dict(prompt)
    if isinstance(prompt, Tensor):
        ids = prompt[None] if prompt.ndim == 1 else prompt
        return {"input_ids": ids.to(device)}
    prompts: list[Any] = list(prompt) if is_list(prompt) else [prompt]
    if prompts and all(isinstance(one, str) for one in prompts):
        if processor is None:
            raise EepolicyError(
                "a prompt in text needs the model's processor: pass "
                "HookedCodebookModel(model, AutoProcessor.from_pretrained(...)), or give ids"
            )
        options = dict(adapter.text_options, padding=True, return_tensors="pt")
        return dict(processor(text=prompts, **options).to(device))
    pad = adapter.model.generation_config.pad_token_id
    ids, mask = left_padded(prompts, 0 if pad is None else int(pad))
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
