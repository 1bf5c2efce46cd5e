"""`load`: choose the loader that a checkpoint needs by its `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.heads.int8 import quantize_int8
from eepolicy.hooked import HookedModel
from eepolicy.loading.cards import card_named, shipped_cards
from eepolicy.loading.codecs import codec_for
from eepolicy.loading.convert import AUDIO_ENCODER, CARD, load_converted, load_with_card
from eepolicy.loading.hub import fetch, fetch_config, hub_options
from eepolicy.loading.huggingface import (
    check_config,
    heads_named,
    load_text,
    read_config,
    with_heads,
)
from eepolicy.loading.pocket import load_spoken, pocket_folder
from eepolicy.loading.streams import check_one_stream
from eepolicy.loading.threads import set_threads
from eepolicy.loading.upstream import covo_audio, glm4_voice, step_audio2
from eepolicy.speech.model_card import ModelCard

#: for each model type in its authors' layout: the module that reads it, and the name of its card
UPSTREAM = {
    covo_audio.MODEL_TYPE: (covo_audio, "covo-audio-chat"),
    glm4_voice.MODEL_TYPE: (glm4_voice, "glm-4-voice"),
    step_audio2.MODEL_TYPE: (step_audio2, "step-audio-2-mini"),
}


@checked("threads")
def load(
    name: str | Path = "pocket",
    dtype: torch.dtype = torch.float32,
    card: str | Path | ModelCard | None = None,
    threads: int | str | None = None,
    heads: str | Path | None = None,
    vocoder: str | Path | None = None,
    **options: Any,
) -> HookedModel:
    """Load a model that can decode, and speak if it is a speech model.

    Args:
        name: `"pocket"`, a folder, or an id on the Hugging Face Hub.  The checkpoint is
            GLM-4-Voice, Step-Audio-2-mini or Covo-Audio-Chat as their authors publish it, a folder
            that `eepolicy convert` wrote, or any causal language model of a supported family.
        dtype: dtype of the weights.  With `torch.int8`, the weights of the layers (also of the
            layers of exit heads) and of the output embedding are in int8 with a scale for each row,
            and everything else is in float32.
        card: for a speech model whose config does not describe its speech: the name of a shipped
            card (see `eepolicy models`), a TOML file, or a `ModelCard`.
        threads: number of CPU threads of PyTorch, for the whole process; `"auto"` for one thread
            if the model has fewer than 150 million parameters.  None, the default, changes
            nothing: PyTorch takes all cores, and a small model then waits for its own threads
            whenever the machine is busy.
        heads: exit heads: `"lens"` for the logit lens, a kind in the model's folder such as
            `"branch"` or `"tuned"`, a file that `eepolicy fit` wrote, or an id on the Hub.
            Default: the preferred head of each depth in the model's folder, or the logit lens for a
            model without heads.  Other heads than these are not read.
        vocoder: codec of transformers that makes the sound, if the card of the model names one.
            It is a folder, an id on the Hub, or `"auto"` for the id in the card.  Default: the
            vocoder in the model's folder, or none.
        **options: options of `from_pretrained`, such as `device_map`, `attn_implementation`,
            `quantization_config` and `revision`.

    Returns:
        The model with its tokenizer and its exit heads.

    Raises:
        EepolicyError: the model does not exist or is incomplete, or the card or the heads belong to
            another model; the codec cannot be loaded; or `threads` is no number of threads.

    Examples:
        >>> import eepolicy
        >>> eepolicy.load("pocket", threads="auto").depth
        20
    """
    name = str(name)
    source = pocket_folder() if name == "pocket" else Path(name)
    if source.is_dir():  # where the files are is then known
        source /= options.pop("subfolder", "")
        name = str(source)
        options = {k: v for k, v in options.items() if k not in hub_options(options)}
    is_int8 = dtype == torch.int8
    model = _load(name, torch.float32 if is_int8 else dtype, card, heads is None, options)
    if heads is not None:
        model.heads = heads_named(heads, model, name, **hub_options(options))
    if is_int8:
        for layer in model.layers:  # those of the exit heads too
            quantize_int8(layer)
        if isinstance(model.lens.head, nn.Module):
            quantize_int8(model.model, only=model.lens.head)
    if vocoder is not None:
        model.vocoder = codec_for(model, vocoder)
    if threads is not None:
        set_threads(model.model, threads)
    return model


def _load(
    name: str,
    dtype: torch.dtype,
    card: str | Path | ModelCard | None,
    own_heads: bool,
    options: dict[str, Any],
) -> HookedModel:
    """Load a model as `load` does, without setting threads.

    Args:
        name: see `load`.
        dtype: dtype of the weights.
        card: see `load`.
        own_heads: whether to load the heads in the folder of the model.
        options: options of `from_pretrained`.
    """
    given = None if card is None else card_named(card)
    folder, hub = Path(name), hub_options(options)
    is_local = folder.exists()
    if is_local and not (folder / "config.json").is_file():
        inner = [f"{f.parent}" for f in sorted(folder.glob("*/config.json"))]
        hint = f", such as {inner[0]}" if inner else ""
        raise EepolicyError(f"{folder} has no config.json: give the folder of a model{hint}")
    file = folder / "config.json" if is_local else fetch_config(name, **hub)
    config = read_config(file)
    check_config(config, file)
    check_one_stream(config, name)
    if config.get("model_type") in UPSTREAM:
        unsupported = sorted(options.keys() - hub.keys())
        if unsupported:
            raise EepolicyError(
                f"{name} is in its authors' layout, and its loader does not support "
                f"{', '.join(unsupported)}: run 'eepolicy convert {name} FOLDER' and load the new "
                "folder"
            )
        module, own_card = UPSTREAM[config["model_type"]]
        where = folder if is_local else fetch(name, **hub)
        model: HookedModel = module.load(where, dtype, given or card_named(own_card))
        return with_heads(model, where, own_heads)
    rest = {k: v for k, v in options.items() if k not in hub}  # for files that are fetched
    if AUDIO_ENCODER in config and not is_local:  # it is in a folder of its own
        folder, options = fetch(name, **hub), rest
        is_local = True
    if given is not None:
        return load_with_card(folder if is_local else name, dtype, given, own_heads, **options)
    if "speech_layout" in config:
        return load_spoken(folder if is_local else fetch(name, **hub), dtype, own_heads, **rest)
    if CARD in config:
        return load_converted(
            folder if is_local else fetch(name, **hub), dtype, own_heads=own_heads, **rest
        )
    shipped = next((c for c in shipped_cards().values() if c.source == name), None)
    if shipped is not None:
        return load_with_card(name, dtype, shipped, own_heads, **options)
    return load_text(name, dtype, own_heads, **options)
