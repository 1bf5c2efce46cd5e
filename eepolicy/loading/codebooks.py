"""Loads models with several codebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, CsmForConditionalGeneration

from eepolicy.codebooks import HookedCodebookModel
from eepolicy.codebooks.depth_heads import check_maps
from eepolicy.errors import EepolicyError
from eepolicy.heads import load_heads
from eepolicy.loading.hub import fetch_config, hub_options
from eepolicy.loading.huggingface import READ_ERRORS, has_tokenizer, read_config, read_model
from eepolicy.loading.streams import CODEBOOK_MODELS, check_supported


def has_codebooks(name: str | Path) -> bool:
    """Whether a checkpoint is one that `load_codebooks` reads; False for one that cannot be read.

    Args:
        name: see `load_codebooks`.

    Examples:
        >>> has_codebooks("pocket")
        False
    """
    if name == "pocket":
        return False
    try:
        return _config_of(name).get("model_type") in CODEBOOK_MODELS
    except EepolicyError:  # `load` says why
        return False


def load_codebooks(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    heads: str | Path | None = None,
    depth_heads: str | Path | None = None,
    **options: Any,
) -> HookedCodebookModel:
    """Load a model with several codebooks, with its codec and its processor.

    Args:
        name: a folder, or an id on the Hugging Face Hub, such as `"sesame/csm-1b"`.
        dtype: dtype of the weights.
        heads: file of exit heads of the backbone, from `eepolicy.fitting.fit_backbone`.
        depth_heads: file of those of the depth decoder, from `fit_depth_decoder`.
        **options: options of `from_pretrained`, such as `device_map` and `revision`.

    Returns:
        The model.  A folder without a tokenizer gives a model that takes ids as prompts.

    Raises:
        EepolicyError: the checkpoint does not exist or is incomplete, or is of another type.
    """
    if not dtype.is_floating_point:
        raise EepolicyError(f"dtype: the weights are loaded in a floating-point type; got {dtype}")
    folder, hub = Path(name), hub_options(options)
    config = _config_of(name, **hub)
    if config.get("model_type") not in CODEBOOK_MODELS:
        check_supported(config, name)
        raise EepolicyError(
            f"load_codebooks reads models of the types {', '.join(CODEBOOK_MODELS)}; {name} has "
            f"{config.get('model_type')!r}: use eepolicy.load, or wrap a stock model with "
            "HookedCodebookModel"
        )
    model = read_model(name, dtype, CsmForConditionalGeneration, **options)
    processor = None
    if not folder.exists() or has_tokenizer(folder):
        try:
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **hub)
        except READ_ERRORS as error:
            raise EepolicyError(f"the processor of {name} cannot be loaded: {error}") from error
    hooked = HookedCodebookModel(model, processor)
    if heads is not None:
        hooked.backbone.heads = load_heads(heads, hooked.backbone.lens, hooked.model)
    if depth_heads is not None:
        decoder = hooked.depth_decoder
        fitted = load_heads(depth_heads, decoder.lens, decoder.model)
        hooked.depth_heads = check_maps(fitted, decoder.depth)
    return hooked


def _config_of(name: str | Path, **hub: Any) -> dict[str, Any]:
    """The `config.json` of a folder, or of a model on the Hugging Face Hub."""
    folder = Path(name)
    return read_config(
        folder / "config.json" if folder.exists() else fetch_config(str(name), **hub)
    )
