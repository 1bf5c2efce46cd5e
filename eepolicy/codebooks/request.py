"""Options of the stock `generate` of a model with several codebooks, read by transformers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerationMixin

from eepolicy.codebooks.adapter import CodebookAdapter
from eepolicy.codebooks.prompt import FramePrompt
from eepolicy.decode.request import Prepared, capture
from eepolicy.decode.sampling import Sampler
from eepolicy.decode.stock_options import (
    REFUSED,
    SAMPLING,
    generation_config_of,
    refuse_unsupported,
)
from eepolicy.errors import EepolicyError

#: frames of a reply if neither the call nor a generation config sets a length: ten seconds of CSM
MAX_FRAMES = 125
#: seed of sampling; see `Sampler`
Seed = int | Sequence[int] | None
#: what to use instead of stopping criteria
END_ADVICE = "a reply ends by its end frame or by max_new_tokens"
#: prefix of the options of the depth decoder, as in the stock `generate` of CSM
DEPTH_PREFIX = "depth_decoder_"


@dataclass(frozen=True, eq=False)
class FrameRequest:
    """Prompts, and how the codes of their replies are taken.

    Attributes:
        prompt: the prompts.
        padding: number of padding columns of each row.
        max_frames: largest number of frames of a reply.
        end_codes: first codes that end a reply before the depth decoder runs.
        sampler: takes the first codes.
        depth_sampler: takes the other codes.
    """

    prompt: FramePrompt
    padding: list[int]
    max_frames: int
    end_codes: frozenset[int]
    sampler: Sampler
    depth_sampler: Sampler


def prepare_frames(
    adapter: CodebookAdapter, prompt: FramePrompt, options: dict[str, Any], seed: Seed
) -> FrameRequest:
    """Let the stock `generate` read its own options.

    Args:
        adapter: parts of the stock model.
        prompt: the prompts.
        options: options of the stock `generate`; those of the depth decoder begin with
            `depth_decoder_`.
        seed: seed of sampling, or one for each row; None for the global generator of PyTorch.

    Raises:
        EepolicyError: an option is not supported, or the stock `generate` refuses it.
    """
    _refuse(options)
    own, depth = dict(options), {}
    for name in options:
        if name.startswith(DEPTH_PREFIX):
            depth[name.removeprefix(DEPTH_PREFIX)] = own.pop(name)
    rows, device = len(prompt.embeddings), adapter.model.device
    before = copy.deepcopy(adapter.depth_model.generation_config)  # the stock code writes to it
    try:
        first = _prepared(adapter.model, prompt.call, own, adapter.default_options())
        others = adapter.depth_options(bool(first.config.do_sample))
        ids = torch.zeros(rows, 2, dtype=torch.long, device=device)
        others["max_new_tokens"] = adapter.num_codebooks - 1
        other = _prepared(adapter.depth_model, {"inputs": ids}, depth, others)
    finally:
        adapter.depth_model.generation_config = before
    sampler = _sampler(first, rows, seed, adapter.processors_read_codes)
    depth_sampler = _sampler(other, rows, seed, False)
    depth_sampler.share_random_numbers(sampler)  # one stream, as in transformers
    return FrameRequest(
        prompt,
        first.padding(prompt.embeddings),
        max(1, first.criteria.max_length - first.ids.shape[1]),
        first.ends,
        sampler,
        depth_sampler,
    )


def _refuse(options: dict[str, Any]) -> None:
    """Refuse options that this library does not decode with."""
    more = {
        "stopping_criteria": END_ADVICE,
        "streamer": "a frame has several codes",
        "output_audio": "use .audio of the output",
        "num_return_sequences": "repeat the prompt in the list",
        "inputs_embeds": "give text ids and sound, which the stock model embeds",
    }
    refuse_unsupported(None, options, REFUSED | more, " with several codebooks")


def _prepared(
    model: PreTrainedModel, call: dict[str, Any], options: dict[str, Any], defaults: dict[str, Any]
) -> Prepared:
    """What the stock `generate` of a model or of its depth decoder passes to a decoding method.

    Args:
        model: the model.
        call: arguments that give its prompts.
        options: options of its `generate`.
        defaults: values for options that the caller leaves open.
    """
    config, rest = generation_config_of(options)
    own = model.generation_config
    lengths = (config.max_new_tokens, config.max_length, own.max_new_tokens, own.max_length)
    if all(length is None for length in lengths):
        defaults = {"max_new_tokens": MAX_FRAMES} | defaults
    if any(options.get(name) is not None for name in SAMPLING):
        defaults = defaults | {"do_sample": True}
    for name, value in defaults.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    try:
        prepared: Prepared = GenerationMixin.generate(
            model, generation_config=config, custom_generate=capture, **call, **rest
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise EepolicyError(f"the stock generate refuses this: {error}") from error
    prepared.check()
    if prepared.further_criteria:
        names = ", ".join(type(criterion).__name__ for criterion in prepared.further_criteria)
        raise EepolicyError(f"{names} is not supported with several codebooks: {END_ADVICE}")
    return prepared


def _sampler(prepared: Prepared, rows: int, seed: Seed, reads_codes: bool) -> Sampler:
    """The sampler of prepared options.

    Args:
        prepared: the options.
        rows: number of rows.
        seed: seed of sampling.
        reads_codes: whether logits processors may read the codes before.

    Raises:
        EepolicyError: a logits processor reads frames of several codes.
    """
    processors = LogitsProcessorList(prepared.processors)
    sampler = Sampler([processors] * rows, bool(prepared.config.do_sample), seed)
    if sampler.needs_history and not reads_codes:
        names = ", ".join(type(p).__name__ for p in processors)
        raise EepolicyError(
            f"logits processors that read earlier tokens see frames of several codes: {names}; use "
            "those of temperature, top_k, top_p and the like"
        )
    return sampler
