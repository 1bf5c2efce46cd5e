"""A request: prompts and the options of the stock `generate`, prepared by transformers itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

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
from eepolicy.prompts import PromptBatch, padding_of

#: new tokens of a reply if neither the call nor a generation config sets a length
MAX_NEW_TOKENS = 400
#: options that have no effect in greedy decoding; one of them turns sampling on
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
#: options of the stock `generate` that are not supported, with the reason or what to use instead
REFUSED = {
    "assistant_model": "the model drafts with its own exits: use policy= and accept='exact'",
    "assistant_early_exit": "use policy='static@DEPTH' and accept='exact'",
    "prompt_lookup_num_tokens": "drafts come from the policy's early exits",
    "prefix_allowed_tokens_fn": "it counts rows that may have ended: use a logits processor",
    "penalty_alpha": "contrastive search runs the model on many candidates",
    "dola_layers": "exits are read out by the policy and the exit heads",
    "encoder_repetition_penalty": "use repetition_penalty",
    "encoder_no_repeat_ngram_size": "use no_repeat_ngram_size",
    "watermarking_config": "its state cannot be rolled back with a rejected draft",
    "guidance_scale": "it needs a second prompt beside each",
    "negative_prompt_ids": "it needs a second prompt beside each",
    "negative_prompt_attention_mask": "it needs a second prompt beside each",
    "custom_generate": "this library decodes",
    "past_key_values": "this library has its own cache: pass the whole prompt",
    "cache_implementation": "this library has its own cache",
    "use_cache": "pending positions need the cache",
    "position_ids": "positions follow from the attention mask",
    "token_healing": "the prompt is not changed",
    "return_dict_in_generate": "generate returns an Output with its trace",
    "output_scores": "see eepolicy.probe for the distributions at every depth",
    "output_logits": "see eepolicy.probe for the distributions at every depth",
    "output_hidden_states": "see HookedModel.hidden_states, or record=True",
    "output_attentions": "attention weights are not stored",
}
#: values of these options that have no effect
NEUTRAL = {
    "use_cache": True,
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1,
}
#: arguments of the stock decoding method that are used here or can be ignored
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
        prompt: ids (rows, tokens) or embeddings (rows, tokens, width), padded on the left.
        ids: (rows, tokens), prompt ids that processors and criteria see; (rows, 0) if only
            embeddings are given.
        padding: number of padding columns of each row.
        max_new_tokens: largest number of new tokens of a row.
        ends: ids that end a reply.
        do_sample: tokens are sampled; otherwise the most likely one is taken.
        processors: logits processors of each row, from the caller and from the options.
        criteria: stopping criteria from the caller and from the options, except `ends` and
            `max_new_tokens`.
        streamer: receives accepted tokens.
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
class RequestDefaults:
    """Values for options that the caller leaves open.

    Attributes:
        ends: ids that end a reply; empty for the model's own.
        max_new_tokens: largest number of new tokens; None for what the options or the model's
            generation config say, else `MAX_NEW_TOKENS`.
        tokenizer: tokenizer for stop strings.
    """

    ends: tuple[int, ...] = ()
    max_new_tokens: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


@dataclass(frozen=True)
class _Prepared:
    """What the stock `generate` passes to a decoding method."""

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
    """A decoding method for the stock `generate` that returns its arguments."""
    return _Prepared(input_ids, logits_processor, stopping_criteria, generation_config, arguments)


def prepare_request(
    model: PreTrainedModel,
    prompts: PromptBatch,
    options: dict[str, Any],
    defaults: RequestDefaults | None = None,
) -> Request:
    """Let the stock `generate` read its own options.

    Args:
        model: the stock model.
        prompts: with ids, embeddings, or both.  With both, the layers get the embeddings, and
            processors get the ids.
        options: options of the stock `generate`.
        defaults: values for options that the caller leaves open.

    Raises:
        EepolicyError: an option is not supported, or the stock `generate` refuses it.
    """
    defaults = defaults or RequestDefaults()
    config, rest = _generation_config(options)
    streamer, tokenizer = rest.pop("streamer", None), rest.pop("tokenizer", None)
    _refuse_unsupported(config, rest)
    _set_defaults(model, config, options, defaults)
    _move_stop_strings(config, rest, tokenizer or defaults.tokenizer)
    if prompts.embeddings is not None:
        rest["inputs_embeds"] = prompts.embeddings
    prompt = prompts.ids if prompts.embeddings is None else prompts.embeddings
    assert prompt is not None
    padding = padding_of(prompts.mask, prompt)
    if streamer is not None and len(prompt) != 1:
        raise EepolicyError(f"a streamer follows one reply; got {len(prompt)} rows")
    prepared = _prepare(model, prompts, config, rest)
    config = prepared.config
    padding = [columns for columns in padding for _ in range(config.num_return_sequences)]
    ends = [c.eos_token_id.flatten().tolist() for c in prepared.criteria if _is_end(c)]
    max_length = prepared.criteria.max_length
    prompt = prepared.ids
    if prompts.embeddings is not None:
        prompt = prepared.arguments["inputs_embeds"]  # one row for each returned reply
    return Request(
        prompt=prompt,
        ids=prepared.ids,
        padding=padding,
        max_new_tokens=max(1, max_length - prepared.ids.shape[1]),
        ends=frozenset(token for tokens in ends for token in tokens),
        do_sample=bool(config.do_sample),
        processors=[_of_row(prepared.processors, row) for row in range(len(padding))],
        criteria=StoppingCriteriaList(
            c for c in prepared.criteria if not _is_end(c) and type(c) is not MaxLengthCriteria
        ),
        streamer=streamer,
    )


def _generation_config(options: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """The generation config with the options in it, and the options that are not part of one."""
    rest = dict(options)
    given = rest.pop("generation_config", None)
    try:
        config = copy.deepcopy(given) if given is not None else GenerationConfig()
        return config, config.update(**rest)
    except (TypeError, ValueError) as error:
        raise EepolicyError(f"the stock generate refuses this: {error}") from error


def _refuse_unsupported(config: GenerationConfig, rest: dict[str, Any]) -> None:
    """Refuse options of `REFUSED` that have an effect."""
    for name, advice in REFUSED.items():
        value = rest.get(name, getattr(config, name, None))
        is_plain = value is None or isinstance(value, (bool, int, float))
        if not is_plain or value not in (None, NEUTRAL.get(name, False)):
            raise EepolicyError(f"{name} is not supported: {advice}")


def _set_defaults(
    model: PreTrainedModel,
    config: GenerationConfig,
    options: dict[str, Any],
    defaults: RequestDefaults,
) -> None:
    """Fill in options that the caller leaves open."""
    if config.do_sample is None and any(options.get(name) is not None for name in SAMPLING):
        config.do_sample = True
    if config.eos_token_id is None and defaults.ends:
        config.eos_token_id = list(defaults.ends)
    if defaults.max_new_tokens is not None:
        config.max_new_tokens = defaults.max_new_tokens
    own = model.generation_config
    lengths = (config.max_new_tokens, config.max_length, own.max_new_tokens, own.max_length)
    if all(length is None for length in lengths):
        config.max_new_tokens = MAX_NEW_TOKENS
    if config.max_new_tokens is not None and config.max_new_tokens < 1:
        raise EepolicyError(f"max_new_tokens is at least 1; got {config.max_new_tokens}")


def _move_stop_strings(
    config: GenerationConfig, rest: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Turn stop strings into a stopping criterion."""
    if config.stop_strings is None:
        return
    if tokenizer is None:
        raise EepolicyError("stop_strings need a model with a tokenizer, or tokenizer=")
    criterion = StopStringCriteria(tokenizer, config.stop_strings)
    rest["stopping_criteria"] = StoppingCriteriaList(
        [*(rest.get("stopping_criteria") or ()), criterion]
    )
    config.stop_strings = None


def _prepare(
    model: PreTrainedModel, prompts: PromptBatch, config: GenerationConfig, rest: dict[str, Any]
) -> _Prepared:
    """Call the stock `generate` with a decoding method that returns its arguments."""
    try:
        prepared: _Prepared = model.generate(
            prompts.ids,
            generation_config=config,
            attention_mask=prompts.mask,
            custom_generate=_capture,
            **rest,
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise EepolicyError(f"the stock generate refuses this: {error}") from error
    mode = prepared.config.get_generation_mode(None)
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise EepolicyError(
            f"{mode.value.replace('_', ' ')} is not supported: a row is one reply, decoded "
            "greedily or by sampling"
        )
    unused = sorted(k for k, v in prepared.arguments.items() if v is not None and k not in KNOWN)
    if unused:
        raise EepolicyError(
            f"{', '.join(unused)} cannot be used: the layers take ids or embeddings only"
        )
    return prepared


def _is_end(criterion: StoppingCriteria) -> bool:
    """Whether a criterion is exactly the stock one for end tokens, not a subclass."""
    return type(criterion) is EosTokenCriteria


def _of_row(processors: LogitsProcessorList, row: int) -> LogitsProcessorList:
    """The processors of a batch for one of its rows."""
    of_row = LogitsProcessorList()
    for processor in processors:
        ignored = getattr(processor, "prompt_ignore_length", None)
        if type(processor) is RepetitionPenaltyLogitsProcessor and isinstance(ignored, Tensor):
            processor = RepetitionPenaltyLogitsProcessor(processor.penalty, int(ignored[row]))
        of_row.append(processor)
    return of_row
