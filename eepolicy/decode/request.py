"""A request: prompts and the options of the stock `generate`, prepared by transformers itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import (
    EosTokenCriteria,
    GenerationMode,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from eepolicy.decode.repetition_aware import with_repetition_aware
from eepolicy.decode.repetition_window import with_windowed_penalty
from eepolicy.decode.stock_options import (
    CHANGES_TOKENS,
    IGNORED_ARGUMENTS,
    MAX_NEW_TOKENS,
    REFUSED,
    SAMPLING,
    check_options,
    generation_config_of,
    refuse_unsupported,
    stock_arguments,
)
from eepolicy.errors import EepolicyError
from eepolicy.model.families import text_config
from eepolicy.model.multimodal import prompt_embeddings
from eepolicy.prompts import PromptBatch, padding_of


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
        pad_id: id that the stock `generate` appends to replies that end early.
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
    pad_id: int = 0


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
class Prepared:
    """What the stock `generate` passes to a decoding method.

    Attributes:
        model: the stock model.
        ids: (rows, tokens), a row for each returned reply.
        processors: logits processors.
        criteria: stopping criteria.
        config: generation config with all defaults filled in.
        arguments: arguments of the model, such as `attention_mask` and `inputs_embeds`.
    """

    model: PreTrainedModel
    ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    arguments: dict[str, Any]

    def request(self, streamer: BaseStreamer | None = None) -> Request:
        """The request for these arguments.

        Args:
            streamer: receives accepted tokens.

        Raises:
            EepolicyError: an option is not supported, or rows are not padded on the left.
        """
        self.check()
        embeddings = self._embeddings()
        prompt = self.ids if embeddings is None else embeddings
        if streamer is not None and len(prompt) != 1:
            raise EepolicyError(f"a streamer follows one reply; got {len(prompt)} rows")
        return Request(
            prompt=prompt,
            ids=self.ids,
            padding=self.padding(prompt),
            max_new_tokens=max(1, self.criteria.max_length - self.ids.shape[1]),
            ends=self.ends,
            do_sample=bool(self.config.do_sample),
            processors=[_of_row(self.processors, row) for row in range(len(prompt))],
            criteria=self.further_criteria,
            streamer=streamer,
            pad_id=self._pad_id(),
        )

    def padding(self, prompt: Tensor) -> list[int]:
        """Number of padding columns of each row, whose positions follow from it."""
        mask = self.arguments.get("attention_mask")
        if mask is None:  # the stock generate drops a mask of ones
            mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        _check_positions(self.arguments.get("position_ids"), mask)
        return padding_of(mask, prompt)

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end a reply, by the stock criterion and no subclass of it."""
        ends = [
            c.eos_token_id.flatten().tolist() for c in self.criteria if type(c) is EosTokenCriteria
        ]
        return frozenset(token for tokens in ends for token in tokens)

    @property
    def further_criteria(self) -> StoppingCriteriaList:
        """Stopping criteria other than `ends` and `max_new_tokens`."""
        return StoppingCriteriaList(
            c for c in self.criteria if type(c) not in (EosTokenCriteria, MaxLengthCriteria)
        )

    def check(self) -> None:
        """Refuse what this library does not decode."""
        refused = {name: REFUSED[name] for name in REFUSED if name in CHANGES_TOKENS}
        refuse_unsupported(self.config, {}, refused)
        mode = self.config.get_generation_mode(None)
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise EepolicyError(
                f"{mode.value.replace('_', ' ')} is not supported: a row is one reply, decoded "
                "greedily or by sampling"
            )
        if any(isinstance(p, PrefixConstrainedLogitsProcessor) for p in self.processors):
            name = "prefix_allowed_tokens_fn"
            raise EepolicyError(f"{name} is not supported: {REFUSED[name]}")
        cache = self.arguments.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            raise EepolicyError(f"past_key_values is not supported: {REFUSED['past_key_values']}")

    def _embeddings(self) -> Tensor | None:
        """Embeddings of the prompts, (rows, tokens, width); None where the layers get ids."""
        given = {
            name: value
            for name, value in self.arguments.items()
            if name not in IGNORED_ARGUMENTS and _is_set(value)
        }
        if not given:
            embeddings: Tensor | None = self.arguments.get("inputs_embeds")
            return embeddings
        if text_config(self.model) is self.model.config:
            raise EepolicyError(
                f"{', '.join(sorted(given))} cannot be used: the layers take ids or embeddings only"
            )
        mask = self.arguments.get("attention_mask")
        return prompt_embeddings(self.model, input_ids=self.ids, attention_mask=mask, **given)

    def _pad_id(self) -> int:
        """The id after a reply that ends early."""
        pad = getattr(self.config, "_pad_token_tensor", None)
        pad = self.config.pad_token_id if pad is None else pad
        return 0 if pad is None else int(pad)


def capture(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **arguments: Any,
) -> Prepared:
    """A decoding method for the stock `generate` that returns its arguments."""
    return Prepared(
        model, input_ids, logits_processor, stopping_criteria, generation_config, arguments
    )


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
    check_options(options, text_config(model).vocab_size)
    options = with_repetition_aware(with_windowed_penalty(options), prompts)
    config, rest = generation_config_of(options)
    refuse_unsupported(config, rest)
    _set_defaults(model, config, options, defaults)
    return _call_stock(model, prompts, stock_arguments(config, rest, options), defaults.tokenizer)


def prepare_stock_request(
    model: PreTrainedModel, prompts: PromptBatch, options: dict[str, Any], ends: tuple[int, ...]
) -> Request:
    """Let the stock `generate` read its own options, with its own defaults.

    Args:
        model: the stock model.
        prompts: with ids, embeddings, or both.
        options: options of the stock `generate`.
        ends: ids that end a reply where the options name none; empty for the model's own.

    Raises:
        EepolicyError: an option is not supported, or the stock `generate` refuses it.
    """
    check_options(options, text_config(model).vocab_size)
    rest, config = dict(options), options.get("generation_config")
    refuse_unsupported(config, rest)
    if ends and getattr(config, "eos_token_id", None) is None:
        rest.setdefault("eos_token_id", list(ends))
    return _call_stock(model, prompts, rest, None)


def _call_stock(
    model: PreTrainedModel,
    prompts: PromptBatch,
    options: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> Request:
    """Call the stock `generate` with a decoding method that returns its arguments."""
    streamer, own_tokenizer = options.pop("streamer", None), options.pop("tokenizer", None)
    _move_stop_strings(model, options, own_tokenizer or tokenizer)
    if prompts.embeddings is not None:
        options["inputs_embeds"] = prompts.embeddings
    if prompts.mask is not None:
        prompt = prompts.ids if prompts.embeddings is None else prompts.embeddings
        assert prompt is not None
        padding_of(prompts.mask, prompt)  # its message is clearer than the stock one
        options["attention_mask"] = prompts.mask
    try:
        # the method of the class: `eepolicy.early_exit` replaces that of the instance
        prepared: Prepared = type(model).generate(
            model, prompts.ids, custom_generate=capture, **options
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise EepolicyError(f"the stock generate refuses this: {error}") from error
    return prepared.request(streamer)


def _set_defaults(
    model: PreTrainedModel,
    config: GenerationConfig,
    options: dict[str, Any],
    defaults: RequestDefaults,
) -> None:
    """Fill in options that the caller leaves open."""
    samples = any(options.get(name) is not None for name in SAMPLING)
    if config.do_sample is None and samples:
        config.do_sample = True
    if config.eos_token_id is None and "eos_token_id" not in options:
        config.eos_token_id = list(defaults.ends) or None
    if defaults.max_new_tokens is not None:
        config.max_new_tokens = defaults.max_new_tokens
    own = model.generation_config
    lengths = (config.max_new_tokens, config.max_length, own.max_new_tokens, own.max_length)
    if all(length is None for length in lengths):
        config.max_new_tokens = MAX_NEW_TOKENS
    if config.max_new_tokens is not None and config.max_new_tokens < 1:
        raise EepolicyError(f"max_new_tokens is at least 1; got {config.max_new_tokens}")


def _move_stop_strings(
    model: PreTrainedModel, options: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Turn stop strings into a stopping criterion: the stock hook gets no tokenizer.

    Args:
        model: the stock model.
        options: options of its `generate`, which are changed.
        tokenizer: tokenizer for the stop strings.
    """
    config = options.get("generation_config")
    own = model.generation_config.stop_strings
    if options.get("stop_strings", ()) is None:  # the stock generate takes it as "none"
        return
    strings = options.pop("stop_strings", None)
    strings = getattr(config, "stop_strings", None) if strings is None else strings
    strings = own if strings is None else strings
    if strings is None:
        return
    if tokenizer is None:
        raise EepolicyError("stop_strings need a model with a tokenizer, or tokenizer=")
    try:
        criterion = StopStringCriteria(tokenizer, strings)
    except (IndexError, TypeError, ValueError) as error:
        raise EepolicyError(
            f"stop_strings are strings that the tokenizer can build; got {strings!r}: {error}"
        ) from error
    options["stopping_criteria"] = StoppingCriteriaList(
        [*(options.get("stopping_criteria") or ()), criterion]
    )
    options["stop_strings"] = None  # also none of the generation configs


def _check_positions(positions: Tensor | None, mask: Tensor) -> None:
    """Refuse positions that do not follow from the attention mask.

    Args:
        positions: (rows, tokens), or (axes, rows, tokens) of a multimodal model; None for none.
        mask: (rows, tokens), 0 at padding.
    """
    if positions is None:
        return
    expected = (mask.cumsum(-1) - 1).expand(positions.shape)
    if not bool(((positions != expected) & mask.bool()).any()):
        return
    if positions.ndim == 3:
        raise EepolicyError(
            "the model gives audio or images positions in several dimensions, and the layer loop "
            "has one position for each token: use prompts in text"
        )
    raise EepolicyError(f"position_ids is not supported: {REFUSED['position_ids']}")


def _is_set(value: object) -> bool:
    """Whether an argument has a value; multimodal models pass a dict without one for text."""
    values = value.values() if isinstance(value, dict) else (value,)
    return any(value is not None for value in values)


def _of_row(processors: LogitsProcessorList, row: int) -> LogitsProcessorList:
    """The processors of a batch for one of its rows."""
    of_row = LogitsProcessorList()
    for processor in processors:
        ignored = getattr(processor, "prompt_ignore_length", None)
        if type(processor) is RepetitionPenaltyLogitsProcessor and isinstance(ignored, Tensor):
            processor = RepetitionPenaltyLogitsProcessor(processor.penalty, int(ignored[row]))
        of_row.append(processor)
    return of_row
