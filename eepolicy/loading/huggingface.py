"""Checkpoints in Hugging Face format: read as safetensors, without code of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from eepolicy.errors import EepolicyError
from eepolicy.heads import load_heads
from eepolicy.hooked import HookedModel

#: what a file that is damaged, or of another kind, makes the readers raise
UNREADABLE = (
    SafetensorError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_model(name: str | Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """A stock model with all of its weights.

    Args:
        name: a folder, or an id on the Hugging Face Hub.
        dtype: of the weights.
        **options: of `from_pretrained`, such as `device_map`, `attn_implementation` and
            `quantization_config`.

    Raises:
        EepolicyError: no such checkpoint, or one that is damaged or not whole.
    """
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except UNREADABLE as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EepolicyError(f"{name} is no checkpoint that can be read: {why}") from error
    missing = sorted({*loading["missing_keys"], *(k for k, *_ in loading["mismatched_keys"])})
    if missing:
        raise EepolicyError(
            f"the checkpoint {name} lacks {len(missing)} of the model's weights, {missing[0]} "
            "first: it is not whole, or of another model"
        )
    return model


#: fitted exit heads in a model's folder
HEADS = "heads.safetensors"
#: files that a tokenizer may be in
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def load_text(name: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> HookedModel:
    """Hook a causal language model that writes text alone.

    Args:
        name: a folder, or an id on the Hugging Face Hub; a folder may be without a tokenizer, and
            prompts are then ids.
        dtype: of the weights.
        **options: of `from_pretrained`.

    Raises:
        EepolicyError: no such checkpoint, one that is not whole, or a family without an adapter.
    """
    model, tokenizer = read_model(name, dtype, **options), None
    if not Path(name).is_dir() or any((Path(name) / file).is_file() for file in TOKENIZERS):
        tokenizer = read_tokenizer(name)
    return with_heads(HookedModel(model, tokenizer=tokenizer), Path(name))


def read_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without code of its own.

    Args:
        name: a folder, or an id on the Hugging Face Hub.

    Raises:
        EepolicyError: it is missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except UNREADABLE as error:
        raise EepolicyError(f"the tokenizer of {name} cannot be read: {error}") from error


def with_heads(hooked: HookedModel, folder: Path) -> HookedModel:
    """A model with the exit heads that its folder may hold."""
    if (folder / HEADS).is_file():
        hooked.heads = load_heads(folder / HEADS, hooked.lens, hooked.model)
    return hooked
