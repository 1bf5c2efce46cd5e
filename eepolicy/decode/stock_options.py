"""Options of the stock `generate`: which ones turn sampling on, and which are not supported."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig

from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, Positive, PositiveNumber, Share, check_value


@runtime_checkable
class Streamer(Protocol):
    """What `streamer` must have; see `transformers.generation.streamers.BaseStreamer`."""

    def put(self, value: Any) -> None:
        """Take new tokens."""

    def end(self) -> None:
        """The reply has ended."""


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
    "output_scores": "see eepolicy.probe for the distributions at every depth",
    "output_logits": "see eepolicy.probe for the distributions at every depth",
    "output_hidden_states": "see HookedModel.hidden_states, or record=True",
    "output_attentions": "attention weights are not stored",
}
#: types and ranges of options of the stock `generate`, which looks at few of them itself
OPTION_TYPES: dict[str, Any] = {
    "do_sample": bool | None,
    "temperature": PositiveNumber | None,
    "top_p": Share | None,
    "top_k": Count | None,
    "repetition_penalty": PositiveNumber | None,
    "num_return_sequences": Positive | None,
    "min_new_tokens": Count | None,
    "no_repeat_ngram_size": Count | None,
    "pad_token_id": Annotated[int, Field(ge=-(2**31), lt=2**31)] | None,
    "generation_config": GenerationConfig | None,
    "streamer": Streamer | None,
    "inputs_embeds": Tensor | None,
}
#: options that are lists of functions
FUNCTIONS = ("logits_processor", "stopping_criteria")


def check_options(options: Mapping[str, Any], vocabulary: int) -> None:
    """Check options of the stock `generate`.

    Args:
        options: options by name.
        vocabulary: size of the vocabulary.

    Raises:
        EepolicyError: an option has another type or is out of range.
    """
    for name, value in options.items():
        if name in OPTION_TYPES:
            check_value(name, OPTION_TYPES[name], value)
        elif name in FUNCTIONS and value is not None:
            is_list = isinstance(value, (list, tuple))
            if not is_list or not all(map(callable, value)):
                raise EepolicyError(f"{name} is a list of functions; got {value!r:.80}")
    ends = options.get("eos_token_id")
    ids = ends.flatten().tolist() if isinstance(ends, Tensor) else ends
    for end in ids if isinstance(ids, (list, tuple)) else [ids]:
        is_id = isinstance(end, (int, np.integer)) and not isinstance(end, bool)
        if end is not None and not (is_id and end < vocabulary):
            raise EepolicyError(
                f"eos_token_id is an id below {vocabulary}, the size of the vocabulary, a list of "
                f"ids, or -1 for none; got {ends!r:.80}"
            )


#: values of these options that have no effect
NEUTRAL = {
    "use_cache": True,
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1,
    "num_return_sequences": 1,
}
#: options that the stock `generate` cannot do without; None gives the model's own value
NEEDED = frozenset({"max_length", "max_new_tokens", "num_return_sequences", "num_beams"})
#: those that change tokens, and are refused in the model's own generation config too
CHANGES_TOKENS = frozenset(
    {
        "encoder_repetition_penalty",
        "encoder_no_repeat_ngram_size",
        "guidance_scale",
        "token_healing",
        "watermarking_config",
    }
)
#: arguments of the stock decoding method that are used here, or that change no token
IGNORED_ARGUMENTS = frozenset(
    {
        "attention_mask",
        "inputs_embeds",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "past_key_values",
        "position_ids",
        "synced_gpus",
        "use_cache",
    }
)


def refuse_unsupported(
    config: GenerationConfig | None,
    rest: dict[str, Any],
    refused: Mapping[str, str] = REFUSED,
    where: str = "",
) -> None:
    """Refuse options that are not supported and have an effect.

    Args:
        config: generation config of the caller; None for none.
        rest: options that are not in the config.
        refused: names, with the reason or what to use instead.
        where: words after "is not supported", such as the kind of model.

    Raises:
        EepolicyError: with the option and the advice.
    """
    for name, advice in refused.items():
        value = rest.get(name, getattr(config, name, None))
        is_plain = value is None or isinstance(value, (bool, int, float))
        if not is_plain or value not in (None, NEUTRAL.get(name, False)):
            raise EepolicyError(f"{name} is not supported{where}: {advice}")


def generation_config_of(options: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """The generation config with the options in it, and the options that are not part of one."""
    rest = dict(options)
    given = rest.pop("generation_config", None)
    try:
        config = copy.deepcopy(given) if given is not None else GenerationConfig()
        return config, config.update(**rest)
    except (TypeError, ValueError) as error:
        raise EepolicyError(f"the stock generate refuses this: {error}") from error


def stock_arguments(
    config: GenerationConfig, rest: dict[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of the stock `generate`, in which None switches an option of the model off.

    The stock `generate` takes None in a generation config as "not given", and None as an argument
    as "none".  It warns of arguments beside a generation config, so it gets one only where the
    caller gave one.

    Args:
        config: generation config with the options in it, from `generation_config_of`.
        rest: options that are not part of it.
        options: options of the caller.
    """
    values = vars(config)
    off = {name: None for name in options if values.get(name, 0) is None and name not in NEEDED}
    if options.get("generation_config") is not None:
        return {**rest, "generation_config": config, **off}
    given = {name: value for name, value in values.items() if value is not None}
    return {**rest, **given, **off}
