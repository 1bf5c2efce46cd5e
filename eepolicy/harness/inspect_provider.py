"""A model provider for Inspect that exits early: `inspect eval TASK --model eepolicy/FOLDER`."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from anyio import to_thread
from inspect_ai.model import (
    ChatMessage,
    ChatMessageUser,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from torch import Tensor

from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.stock_options import MAX_NEW_TOKENS
from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.auto import load

DTYPES = ("float32", "bfloat16", "float16")
#: model arguments that go to `load`; `device` moves the model, others go to `EarlyExitConfig`
LOAD_ARGUMENTS = ("attn_implementation", "card", "device_map", "dtype", "heads", "threads")


@modelapi(name="eepolicy")
class EarlyExitAPI(ModelAPI):  # type: ignore[misc]  # the package is not always installed
    """A model that decodes one reply at a time, with early exit.

    A text model gets all messages through its chat template; without one it must get a single
    message.  A speech model answers a single message as a question, with its text.

    Args:
        model_name: model for `eepolicy.load`.
        base_url: unused, as the model runs here.
        api_key: unused.
        config: options of generation.
        **arguments: arguments of `EarlyExitConfig`, those in `LOAD_ARGUMENTS`, and `device`, such
            as `cuda`.

    Raises:
        EepolicyError: an argument is unknown, or its value cannot be used.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # as in the base class
        **arguments: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        # Inspect splits the values of its command line at commas
        arguments = {
            name: ",".join(map(str, value)) if isinstance(value, list) else value
            for name, value in arguments.items()
        }
        options = {name: arguments.pop(name) for name in LOAD_ARGUMENTS if name in arguments}
        dtype = options.pop("dtype", "float32")
        if dtype not in DTYPES:
            raise EepolicyError(f"dtype is {', '.join(DTYPES)}; got {dtype!r}")
        device = arguments.pop("device", None)
        known = {field.name for field in fields(EarlyExitConfig)}
        if unknown := sorted({*arguments} - known):
            raise EepolicyError(
                f"the provider eepolicy does not know {', '.join(unknown)}; its arguments are "
                f"{', '.join(sorted({'device', *LOAD_ARGUMENTS, *known}))}"
            )
        self.exit_config = EarlyExitConfig(**arguments)
        self.hooked = load(model_name, getattr(torch, dtype), **options)
        if device is not None:
            self.hooked.to(device)

    def max_connections(self) -> int:
        """Number of replies at a time."""
        return 1

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """The reply to some messages, with its depths in the metadata.

        Raises:
            EepolicyError: tools are offered, or the messages do not fit the model.
        """
        if tools:
            raise EepolicyError("the provider eepolicy calls no tools: use a task without them")
        if (config.num_choices or 1) > 1:
            raise EepolicyError(f"the provider eepolicy gives one reply; got {config.num_choices=}")
        names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed"}
        names |= {"max_tokens": "max_new_tokens", "stop_seqs": "stop_strings"}
        given = {ours: getattr(config, theirs) for theirs, ours in names.items()}
        options = {name: value for name, value in given.items() if value is not None}
        if options.get("temperature") == 0:
            for name in ("temperature", "top_p", "top_k"):
                options.pop(name, None)
            options["do_sample"] = False
        reply = partial(
            self.hooked.generate, prompt_of(self.hooked, input), config=self.exit_config
        )
        output = await to_thread.run_sync(partial(reply, **options))
        limit = options.get("max_new_tokens", MAX_NEW_TOKENS)
        # a stop string ends a reply without an end token
        is_whole = output.ended or ("stop_strings" in options and len(output.tokens) < limit)
        stop = "stop" if is_whole else "max_tokens"
        result = ModelOutput.from_content(self.model_name, output.text, stop)
        result.usage = ModelUsage(
            input_tokens=len(output.prompt),
            output_tokens=len(output.tokens),
            total_tokens=len(output.prompt) + len(output.tokens),
        )
        depths, calls = output.trace.depth, output.trace.layer_calls
        result.metadata = {"mean_depth": float(depths.mean()), "layer_calls": int(calls.sum())}
        return result


def prompt_of(model: HookedModel, messages: list[ChatMessage]) -> str | Tensor:
    """The prompt of some messages: ids (tokens,) by the chat template, or a question.

    Raises:
        EepolicyError: several messages, and the model has no chat template.
    """
    tokenizer = model.tokenizer
    if tokenizer is not None and tokenizer.chat_template and not model.layout.has_speech:
        chat = [{"role": message.role, "content": message.text} for message in messages]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        return ids[0]
    if len(messages) != 1 or not isinstance(messages[0], ChatMessageUser):
        raise EepolicyError(
            "a model without a chat template gets one message of the user; got "
            f"{', '.join(message.role for message in messages)}"
        )
    return str(messages[0].text)
