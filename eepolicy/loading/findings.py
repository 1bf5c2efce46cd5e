"""Findings on the weights of a model folder, and on what this library adds to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from eepolicy.errors import EepolicyError
from eepolicy.heads import read_notes
from eepolicy.loading.huggingface import HEADS, PREDICTOR, READ_ERRORS, read_config
from eepolicy.loading.save import UNITS
from eepolicy.loading.upstream.checkpoint import read_weights
from eepolicy.modality import TokenLayout
from eepolicy.speech.units import Units
from eepolicy.tensor_files import read_tensors


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        ok: whether the check passed.
        sentence: the result in words.
    """

    ok: bool
    sentence: str


def finding_of(check: Callable[[], str]) -> Finding:
    """What a check says, or why it fails."""
    try:
        return Finding(True, check())
    except (EepolicyError, *READ_ERRORS) as error:
        return Finding(False, str(error))


def inspect_weights(folder: Path, kind: Any = AutoModelForCausalLM) -> Iterator[Finding]:
    """Findings on names, shapes and values of the weights, one in memory at a time.

    Args:
        folder: folder of the model.
        kind: class of transformers that loads it.
    """
    _, loading = kind.from_pretrained(
        folder,
        device_map="meta",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    named = {
        "lacks": sorted(loading["missing_keys"]),
        "has weights that the model does not have:": sorted(loading["unexpected_keys"]),
        "has another shape of": sorted(key for key, *_ in loading["mismatched_keys"]),
    }
    for words, keys in named.items():
        if keys:
            some = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            yield Finding(False, f"the checkpoint {words} {some}")
    parts: dict[str, str] = {}
    for _, key, tensor in read_weights(folder):
        if not tensor.numel() or not tensor.is_floating_point():
            parts[key] = "is empty" if not tensor.numel() else f"has the type {tensor.dtype}"
        elif not bool(tensor.isfinite().all()):
            parts[key] = "has a number that is nan or infinite"
    for key, words in list(parts.items())[:3]:
        yield Finding(False, f"the weight {key} {words}")


def inspect_additions(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """Findings on exit heads, predictor, generation config, and ids beyond the vocabulary."""
    if (folder / HEADS).is_file():
        yield finding_of(lambda: f"{len(read_notes(folder / HEADS)['depths'])} exit heads")
        yield finding_of(lambda: f"{len(read_tensors(folder / HEADS, 'heads'))} tensors of heads")
    if (folder / PREDICTOR).is_file():
        yield finding_of(
            lambda: f"{len(read_tensors(folder / PREDICTOR, 'a predictor'))} tensors of a predictor"
        )
    if (folder / "generation_config.json").is_file():
        yield finding_of(
            lambda: f"{len(read_config(folder / 'generation_config.json'))} options of generation"
        )
    # the ids of a model with several codebooks are those of its text
    vocabulary = config.get("text_vocab_size", config.get("vocab_size"))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = config.get(key)
        for each in ids if isinstance(ids, list) else [ids]:
            if isinstance(each, int) and isinstance(vocabulary, int) and each >= vocabulary:
                yield Finding(False, f"{key} is {each}, and the vocabulary has {vocabulary} ids")


def inspect_spoken(folder: Path, config: dict[str, Any]) -> str:
    """Check the layout and the units of a model in the pocket model's format."""
    layout = config["speech_layout"]
    if not isinstance(layout, dict):
        raise EepolicyError(f"speech_layout has the fields of a TokenLayout; got {layout!r:.60}")
    checked = TokenLayout.from_dict(layout)
    checked.check(config["vocab_size"])
    if not checked.has_speech:
        raise EepolicyError(f"speech_layout has no speech ids; got {checked.speech}")
    Units.load(folder / UNITS)
    return "a speech model in the pocket model's format"
