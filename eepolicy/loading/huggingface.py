"""Checkpoints in Hugging Face format: read as safetensors, without running code from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from eepolicy.errors import EepolicyError
from eepolicy.formats import parse
from eepolicy.heads import KINDS, ExitHead, load_heads, load_predictor
from eepolicy.hooked import HookedModel
from eepolicy.io import read_json
from eepolicy.loading import head_bias
from eepolicy.loading.formats import ModelSizes
from eepolicy.loading.hub import fetch_optional, first_line, hub_options

#: errors that transformers and safetensors raise for damaged or unsuitable files
READ_ERRORS = (
    SafetensorError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
#: file of exit heads in a model's folder
HEADS = "heads.safetensors"
PREDICTOR = "predictor.safetensors"
#: files that contain a tokenizer
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def read_config(file: Path) -> dict[str, Any]:
    """Read a `config.json` or another JSON file with keys.

    Raises:
        EepolicyError: the file is missing or damaged, or has no keys.
    """
    config = read_json(file)
    if not isinstance(config, dict):
        raise EepolicyError(f"{file} cannot be read: expected keys with values; got {config!r:.60}")
    return config


def check_config(config: dict[str, Any], file: str | Path) -> None:
    """Refuse a config whose sizes are no sizes; transformers checks few of them.

    Args:
        config: what `read_config` returns.
        file: the file, for the message.

    Raises:
        EepolicyError: with the key, what is expected and what was given.
    """
    parse(ModelSizes, {k: v for k, v in config.items() if k in ModelSizes.model_fields}, str(file))


def read_model(
    name: str | Path, dtype: torch.dtype, kind: Any = AutoModelForCausalLM, **options: Any
) -> PreTrainedModel:
    """Load a stock model and check that no weight is missing.

    Args:
        name: a folder, or an id on the Hugging Face Hub.
        dtype: dtype of the weights.
        kind: class of transformers that reads it.
        **options: options of `from_pretrained`, such as `device_map`, `attn_implementation` and
            `quantization_config`.

    Raises:
        EepolicyError: the checkpoint does not exist, or is damaged or incomplete.
    """
    if "torch_dtype" in options:
        raise EepolicyError("torch_dtype is called dtype here: give dtype=")
    stock: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
    stock |= {"dtype": dtype, "output_loading_info": True, **options}
    try:
        model, loading = kind.from_pretrained(name, **stock)
        if head_bias.KEY in loading.get("unexpected_keys", ()):
            biased = head_bias.with_head_bias(type(model))
            model, loading = biased.from_pretrained(name, **stock)
            head_bias.bound_bias(model)
    except READ_ERRORS as error:
        what = "a causal language model" if kind is AutoModelForCausalLM else kind.__name__
        raise EepolicyError(f"{name} cannot be loaded as {what}: {first_line(error)}") from error
    missing = sorted({*loading["missing_keys"], *(k for k, *_ in loading["mismatched_keys"])})
    if missing:
        raise EepolicyError(
            f"the checkpoint {name} lacks {len(missing)} of the model's weights, such as "
            f"{missing[0]}: it is incomplete, or belongs to another model"
        )
    return model


def load_text(
    name: str | Path, dtype: torch.dtype = torch.float32, own_heads: bool = True, **options: Any
) -> HookedModel:
    """Load a causal language model that writes text only.

    Args:
        name: a folder, or an id on the Hugging Face Hub.  A folder without a tokenizer gives a
            model that takes ids as prompts.
        dtype: dtype of the weights.
        own_heads: whether to load the exit heads of the folder, if it has some.
        **options: options of `from_pretrained`.

    Raises:
        EepolicyError: the checkpoint does not exist or is incomplete, or its family has no adapter.
    """
    model, tokenizer, hub = read_model(name, dtype, **options), None, hub_options(options)
    if not Path(name).is_dir() or has_tokenizer(Path(name)):
        tokenizer = read_tokenizer(name, **hub)
    return with_heads(HookedModel(model, tokenizer=tokenizer), name, own_heads, **hub)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder contains a tokenizer."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def read_tokenizer(name: str | Path, **hub: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, without running code from it.

    Args:
        name: a folder, or an id on the Hugging Face Hub.
        **hub: options of `eepolicy.loading.hub.HUB_OPTIONS`.

    Raises:
        EepolicyError: the tokenizer is missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub)
    except READ_ERRORS as error:
        raise EepolicyError(f"the tokenizer of {name} cannot be loaded: {error}") from error


def file_of(name: str | Path, file: str, **hub: Any) -> Path | None:
    """A file of a model; None if the model has none.

    Args:
        name: a folder, or an id on the Hugging Face Hub.
        file: name of the file.
        **hub: options of `eepolicy.loading.hub.HUB_OPTIONS`.

    Raises:
        EepolicyError: the Hub cannot say whether the file exists, or the download fails.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    return fetch_optional(str(name), file, **hub)


def with_heads(
    hooked: HookedModel, name: str | Path, own_heads: bool = True, **hub: Any
) -> HookedModel:
    """Attach the exit heads and the exit predictor of a model, if it has some.

    Args:
        hooked: the model.
        name: its folder, or its id on the Hugging Face Hub.
        own_heads: False leaves out the heads, which the caller replaces: they perhaps do not fit.
        **hub: options of `eepolicy.loading.hub.HUB_OPTIONS`.

    Raises:
        EepolicyError: the Hub cannot say whether there are heads, or they belong to another model.
    """
    heads = file_of(name, HEADS, **hub) if own_heads else None
    predictor = file_of(name, PREDICTOR, **hub)
    if heads is not None:
        hooked.heads = load_heads(heads, hooked.lens, hooked.model)
    if predictor is not None:
        hooked.predictor = load_predictor(predictor, hooked.model)
    return hooked


def heads_named(heads: str | Path, hooked: HookedModel, name: str | Path, **hub: Any) -> ExitHead:
    """Exit heads by their name, file or repository, for `load`.

    Args:
        heads: `"lens"`, a kind of head of the model, a file of heads, or an id on the Hugging Face
            Hub.
        hooked: the model.
        name: folder of the model, or its id on the Hugging Face Hub.
        **hub: options of `eepolicy.loading.hub.HUB_OPTIONS`, for the files of the model.

    Raises:
        EepolicyError: the model has no heads of the kind, or there are no heads there.
    """
    if heads == "lens":
        return hooked.lens
    if isinstance(heads, str) and heads in KINDS:
        own = file_of(name, HEADS, **hub)
        if own is None:
            raise EepolicyError(
                f"{name} has no {HEADS}, so there are no heads of the kind {heads!r}: give a "
                "file that 'eepolicy fit' wrote"
            )
        return load_heads(own, hooked.lens, hooked.model, heads)
    if Path(heads).is_file():
        return load_heads(heads, hooked.lens, hooked.model)
    is_repository = isinstance(heads, str) and heads.count("/") == 1 and heads[0] not in "./~"
    fetched, failure = None, None
    try:
        fetched = fetch_optional(str(heads), HEADS) if is_repository else None
    except EepolicyError as error:
        failure = error
    if fetched is None:
        why = f": {failure}" if failure else ""
        raise EepolicyError(
            f"heads are 'lens', a kind ({', '.join(KINDS.names())}), a file, or an id on the "
            f"Hugging Face Hub; got {str(heads)!r}, which is no file"
            + (
                f", and no repository with {HEADS} that can be reached{why}"
                if is_repository
                else ""
            )
        ) from failure
    return load_heads(fetched, hooked.lens, hooked.model)
