"""What a caller asks of decoding, prepared by transformers' own `generate`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import EosTokenCriteria, GenerationMode, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

from eepolicy.errors import EepolicyError

MAX_NEW_TOKENS = 400
#: options that make no sense in greedy decoding, so that giving one asks for sampling
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
#: options of the stock `generate` that cannot be honoured, and why
REFUSED = {
    "assistant_model": "the model drafts for itself: give policy= and accept='exact'",
    "assistant_early_exit": "give policy='static@DEPTH' and accept='exact'",
    "prompt_lookup_num_tokens": "drafts come from the policy's early exits",
    "prefix_allowed_tokens_fn": "it counts rows that may have ended: give a logits processor",
    "penalty_alpha": "contrastive search runs the model on many candidates",
    "dola_layers": "exits are read out by the policy and the exit heads",
    "encoder_repetition_penalty": "give repetition_penalty",
    "encoder_no_repeat_ngram_size": "give no_repeat_ngram_size",
    "watermarking_config": "it keeps a state that cannot be taken back with a rejected draft",
    "guidance_scale": "it needs a second prompt beside each",
    "negative_prompt_ids": "it needs a second prompt beside each",
    "negative_prompt_attention_mask": "it needs a second prompt beside each",
    "custom_generate": "the decoding is this library's",
    "past_key_values": "the cache is this library's: give the whole prompt",
    "cache_implementation": "the cache is this library's",
    "use_cache": "positions that stopped early are caught up from the cache",
    "position_ids": "positions follow from the attention mask",
    "token_healing": "the prompt is taken as it is",
    "return_dict_in_generate": "what comes back is an Output with its trace",
    "output_scores": "see eepolicy.probe for the distributions at every depth",
    "output_logits": "see eepolicy.probe for the distributions at every depth",
    "output_hidden_states": "see HookedModel.hidden_states",
    "output_attentions": "attentions are not kept",
}
#: values of those that change nothing
NEUTRAL = {
    "use_cache": True,
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1,
}
#: what the stock `generate` hands on beside the options, and what is used of a model's own inputs
KNOWN = {
    "attention_mask",
    "inputs_embeds",
    "logits_to_keep",
    "past_key_values",
    "position_ids",
    "synced_gpus",
    "use_cache",
}


@dataclass(frozen=True)
class Request:
    """Prompts, and how their replies are decoded.

    Attributes:
        prompt: (rows, tokens) of ids or (rows, tokens, width) of embeddings, padded on the left.
        ids: (rows, tokens), what processors and criteria see of the prompt; (rows, 0) where only
            embeddings are given.
        padding: of each row, empty columns in front.
        max_new_tokens: of each row.
        ends: ids that end a reply.
        do_sample: tokens are drawn; otherwise the likeliest one is taken.
        processors: of the logits of each row, the caller's and those that the options stand for.
        criteria: that end a reply, the caller's and those that the options stand for, but for
            `ends` and `max_new_tokens`.
        streamer: is given the tokens that stay.
    """

    prompt: Tensor
    ids: Tensor
    padding: list[int]
    max_new_tokens: int
    ends: frozenset[int]
    do_sample: bool
    processors: list[LogitsProcessorList]
    criteria: StoppingCriteriaList
    streamer: BaseStreamer | None


@dataclass(frozen=True)
class _Prepared:
    """What the stock `generate` hands to a way of decoding."""

    ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    arguments: dict[str, Any]


def _capture(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **arguments: Any,
) -> _Prepared:
    """A way of decoding, to the stock `generate`, that gives back what it was handed."""
    return _Prepared(input_ids, logits_processor, stopping_criteria, generation_config, arguments)


def padded(prompts: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Ragged prompts side by side.

    Args:
        prompts: (tokens,) each.
        pad: id in front of the shorter ones.

    Returns:
        Ids and attention mask, (rows, tokens) each.
    """
    width = max(map(len, prompts))
    ids = [F.pad(p, (width - len(p), 0), value=pad) for p in prompts]
    mask = [F.pad(torch.ones_like(p), (width - len(p), 0)) for p in prompts]
    return torch.stack(ids), torch.stack(mask)


def prepare(
    model: PreTrainedModel,
    ids: Tensor | None,
    mask: Tensor,
    end: int | None,
    max_new_tokens: int | None,
    options: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Request:
    """Read the stock `generate`'s options as it does itself.

    Args:
        model: the stock model.
        ids: (rows, tokens); None where the options have nothing but `inputs_embeds`.  Where they
            have both, the layers are given the embeddings, and processors the ids.
        mask: (rows, tokens), 0 where a row is padded.
        end: id that ends a reply unless the options say otherwise; None for the model's own.
        max_new_tokens: of each row; None for what the options or the model's own generation config
            say, or 400.
        options: of the stock `generate`.
        tokenizer: for stop strings, where the options bring none.

    Raises:
        EepolicyError: an option that cannot be honoured, or that the stock `generate` refuses.
    """
    rest = dict(options)
    streamer = rest.pop("streamer", None)
    tokenizer = rest.pop("tokenizer", None) or tokenizer
    given = rest.pop("generation_config", None)
    try:
        config = copy.deepcopy(given) if given is not None else GenerationConfig()
        rest = config.update(**rest)
    except (TypeError, ValueError) as error:
        raise EepolicyError(f"the stock generate refuses this: {error}") from error
    for name, why in REFUSED.items():
        value = rest.get(name, getattr(config, name, None))
        plain = value is None or isinstance(value, (bool, int, float))
        if not plain or value not in (None, NEUTRAL.get(name, False)):
            raise EepolicyError(f"{name} cannot be honoured: {why}")
    if config.do_sample is None and any(options.get(name) is not None for name in SAMPLING):
        config.do_sample = True
    if config.eos_token_id is None and end is not None:
        config.eos_token_id = end
    if max_new_tokens is not None:
        config.max_new_tokens = max_new_tokens
    own = model.generation_config
    lengths = (config.max_new_tokens, config.max_length, own.max_new_tokens, own.max_length)
    if all(length is None for length in lengths):
        config.max_new_tokens = MAX_NEW_TOKENS
    if config.max_new_tokens is not None and config.max_new_tokens < 1:
        raise EepolicyError(f"max_new_tokens is at least 1; got {config.max_new_tokens}")
    if config.stop_strings is not None:
        if tokenizer is None:
            raise EepolicyError("stop_strings need a model with a tokenizer, or tokenizer=")
        stops = StopStringCriteria(tokenizer, config.stop_strings)
        rest["stopping_criteria"] = StoppingCriteriaList(
            [*(rest.get("stopping_criteria") or ()), stops]
        )
        config.stop_strings = None
    embeds = rest.get("inputs_embeds")
    prompt = ids if embeds is None else embeds
    assert prompt is not None
    padding = _padding(mask, prompt)
    if streamer is not None and len(prompt) != 1:
        raise EepolicyError(f"a streamer follows one reply; got {len(prompt)} rows")
    try:
        prepared: _Prepared = model.generate(
            ids, generation_config=config, attention_mask=mask, custom_generate=_capture, **rest
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise EepolicyError(f"the stock generate refuses this: {error}") from error
    config = prepared.config
    mode = config.get_generation_mode(None)
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise EepolicyError(
            f"{mode.value.replace('_', ' ')} cannot be honoured: a row is one reply, decoded "
            "greedily or by sampling"
        )
    unused = sorted(k for k, v in prepared.arguments.items() if v is not None and k not in KNOWN)
    if unused:
        raise EepolicyError(
            f"{', '.join(unused)} cannot be honoured: the layers are given ids alone"
        )
    repeated = [empty for empty in padding for _ in range(config.num_return_sequences)]
    ends = [c.eos_token_id.flatten().tolist() for c in prepared.criteria if _is_end(c)]
    longest = prepared.criteria.max_length
    return Request(
        prompt=prepared.ids if embeds is None else prepared.arguments["inputs_embeds"],
        ids=prepared.ids,
        padding=repeated,
        max_new_tokens=max(1, longest - prepared.ids.shape[1]),
        ends=frozenset(token for tokens in ends for token in tokens),
        do_sample=bool(config.do_sample),
        processors=[_of_row(prepared.processors, row) for row in range(len(repeated))],
        criteria=StoppingCriteriaList(
            c for c in prepared.criteria if not _is_end(c) and type(c) is not MaxLengthCriteria
        ),
        streamer=streamer,
    )


def _is_end(criterion: StoppingCriteria) -> bool:
    """Whether a criterion is the stock one for the ids that end a reply, and no kind of it."""
    return type(criterion) is EosTokenCriteria


def _of_row(processors: LogitsProcessorList, row: int) -> LogitsProcessorList:
    """Processors of a whole batch for one row of it."""
    found = LogitsProcessorList()
    for processor in processors:
        ignored = getattr(processor, "prompt_ignore_length", None)
        if type(processor) is RepetitionPenaltyLogitsProcessor and isinstance(ignored, Tensor):
            processor = RepetitionPenaltyLogitsProcessor(processor.penalty, int(ignored[row]))
        found.append(processor)
    return found


def _padding(mask: Tensor, prompt: Tensor) -> list[int]:
    """Empty columns in front of each row."""
    if mask.shape != prompt.shape[:2]:
        raise EepolicyError(
            f"an attention mask is (rows, tokens), here {tuple(prompt.shape[:2])}; "
            f"got {tuple(mask.shape)}"
        )
    held = mask.bool()
    if not bool(held[:, -1].all()) or bool((held[:, :-1] & ~held[:, 1:]).any()):
        raise EepolicyError(
            "rows are padded on the left: an attention mask is zeros in front of ones; load the "
            "tokenizer with padding_side='left'"
        )
    return (~held).sum(1).tolist()
