"""Early exit inside the stock `generate`: for code that has a transformers model and keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    GenerationMixin,
    StoppingCriteriaList,
)

from eepolicy.arguments import checked
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.prompt_inputs import read_prompt
from eepolicy.decode.request import Request, capture, prepare_stock_request
from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.hooked import HookedModel
from eepolicy.modality import TokenLayout
from eepolicy.policies import ExitPolicy
from eepolicy.prompts import PromptBatch
from eepolicy.trace import Trace

#: attribute of a model that exits early; nesting is refused
_ACTIVE = "_eepolicy_early_exit"


@dataclass
class EarlyExitDecoderOnlyOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """What the stock `generate` returns with `return_dict_in_generate`, and the depths.

    Attributes:
        sequences: (rows, tokens) ids of prompts and replies, padded on the right.
        traces: depth and cost of each new token, one trace a row.
    """

    traces: list[Trace] | None = None


class CustomGenerate:
    """A decoding method for the `custom_generate` of a stock model.

    Make one with `eepolicy.custom_generate`.  Transformers prepares the call, and this object
    decodes it.

    Args:
        config: options of early exit.
        heads: exit heads; None for the logit lens.
        layout: vocabulary and chunks of a speech model; None for text only.
    """

    def __init__(
        self, config: EarlyExitConfig, heads: ExitHead | None, layout: TokenLayout | None
    ) -> None:
        self.config, self.heads, self.layout = config, heads, layout
        self._hooked: tuple[object, HookedModel] | None = None

    def __repr__(self) -> str:
        return f"CustomGenerate({self.config!r}, heads={self.heads!r}, layout={self.layout!r})"

    def hooked(self, model: PreTrainedModel) -> HookedModel:
        """The hooked model of a stock model; made at the first call with it.

        Raises:
            EepolicyError: the family of the model has no adapter, or heads or layout do not fit.
        """
        if self._hooked is None or self._hooked[0] is not model:  # a PeftModel wraps another one
            self._hooked = model, HookedModel(model, self.layout, heads=self.heads)
        self._hooked[1].model.eval()  # its user may have trained it since the last call
        return self._hooked[1]

    def inside(self, model: PreTrainedModel) -> AbstractContextManager[HookedModel]:
        """Let the `generate` of a stock model exit early inside a `with` block.

        See `eepolicy.early_exit`, which makes an object for one block.

        Args:
            model: model of transformers.
        """
        return _replace_generate(model, self)

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **arguments: Any,
    ) -> Tensor | EarlyExitDecoderOnlyOutput:
        """Decode what the stock `generate` prepared.

        Args:
            model: the stock model.
            input_ids: (rows, tokens).
            logits_processor: logits processors.
            stopping_criteria: stopping criteria.
            generation_config: all other options.
            **arguments: arguments of the model, such as `attention_mask`.

        Returns:
            What the stock `generate` returns: sequences (rows, tokens), or an object with them if
            `return_dict_in_generate` is set.
        """
        prepared = capture(
            model, input_ids, logits_processor, stopping_criteria, generation_config, **arguments
        )
        is_dict = bool(generation_config.return_dict_in_generate)
        if is_dict and (generation_config.output_scores or generation_config.output_logits):
            raise EepolicyError(
                "output_scores and output_logits are not supported: use eepolicy.probe"
            )
        with _same_mode(model):
            return self.decode(model, prepared.request(), is_dict)

    def decode(
        self, model: PreTrainedModel, request: Request, is_dict: bool
    ) -> Tensor | EarlyExitDecoderOnlyOutput:
        """Decode a request, and return what the stock `generate` returns."""
        outputs = self.hooked(model).decode(request, self.config)
        longest = max(len(out.tokens) for out in outputs)
        replies = [
            F.pad(out.tokens, (0, longest - len(out.tokens)), value=request.pad_id)
            for out in outputs
        ]
        sequences = torch.cat([request.ids, torch.stack(replies).to(request.ids)], 1)
        if not is_dict:
            return sequences
        return EarlyExitDecoderOnlyOutput(
            sequences=sequences, traces=[out.trace for out in outputs]
        )


@checked()
def custom_generate(
    policy: ExitPolicy | str | None = None,
    *,
    heads: ExitHead | None = None,
    layout: TokenLayout | None = None,
    config: EarlyExitConfig | None = None,
    **options: Any,
) -> CustomGenerate:
    """A decoding method for `model.generate(custom_generate=...)` of a stock model.

    Transformers hands neither a streamer nor stop strings to such a method.  With those, use
    `eepolicy.early_exit`.

    Args:
        policy: exit policy or its spec string; default: full depth.
        heads: exit heads; default: the logit lens.
        layout: vocabulary and chunks of a speech model; default: text only.
        config: all options of early exit; the arguments override it.
        **options: fields of `EarlyExitConfig`, such as `fill`, `accept` and `compile`.

    Returns:
        A callable.  Keep it for many calls: it hooks the model at the first one.

    Raises:
        EepolicyError: an option has a wrong type or value.

    Examples:
        >>> model = eepolicy.load("pocket")
        >>> stock, ids = model.unwrap(), model.encode("What color is snow?")[None]
        >>> decode = eepolicy.custom_generate("text=static@16")
        >>> stock.generate(ids, max_new_tokens=4, custom_generate=decode).shape[1] - ids.shape[1]
        4
    """
    if policy is not None:
        options["policy"] = policy
    unknown = options.keys() - EarlyExitConfig.__dataclass_fields__.keys()
    if unknown:
        raise EepolicyError(
            f"{', '.join(sorted(unknown))}: the options of early exit are "
            f"{', '.join(EarlyExitConfig.__dataclass_fields__)}"
        )
    return CustomGenerate((config or EarlyExitConfig()).replace(**options), heads, layout)


@contextmanager
def early_exit(
    policy: ExitPolicy | str | None,
    model: PreTrainedModel,
    *,
    heads: ExitHead | None = None,
    layout: TokenLayout | None = None,
    config: EarlyExitConfig | None = None,
    **options: Any,
) -> Iterator[HookedModel]:
    """Let the `generate` of a stock model exit early inside a `with` block.

    The block replaces `generate` of this one object and restores it, also after an exception.
    Arguments and results of `generate` stay those of transformers.  So a `pipeline`, a streamer,
    or an evaluation script around the model exits early, too.

    Args:
        policy: exit policy or its spec string; None for full depth.
        model: model of transformers.
        heads: exit heads; default: the logit lens.
        layout: vocabulary and chunks of a speech model; default: text only.
        config: all options of early exit; the arguments override it.
        **options: fields of `EarlyExitConfig`, such as `fill`, `accept` and `compile`.

    Yields:
        The hooked model, for `eepolicy.probe` and for the heads.

    Raises:
        EepolicyError: the model exits early already, or an option does not fit.

    Examples:
        >>> model = eepolicy.load("pocket").unwrap()
        >>> ids = torch.tensor([[1, 70, 80, 2]])
        >>> with eepolicy.early_exit("text=static@16", model):
        ...     out = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True)
        >>> out.traces[0].depth
        array([16, 16, 16, 16])
    """
    method = custom_generate(policy, heads=heads, layout=layout, config=config, **options)
    with method.inside(model) as hooked:
        yield hooked


@contextmanager
def _replace_generate(model: PreTrainedModel, method: CustomGenerate) -> Iterator[HookedModel]:
    """Let the `generate` of a stock model decode by a method."""
    if isinstance(model, HookedModel):
        raise EepolicyError(
            "early_exit is for a model of transformers; this one is hooked already: give the "
            "policy to its generate, or pass model.unwrap()"
        )
    if getattr(model, _ACTIVE, False):
        raise EepolicyError(
            "this model exits early already: early_exit blocks cannot be nested; leave the outer "
            "one first"
        )
    with _same_mode(model):
        hooked = method.hooked(model)
        method.config.validate(hooked.depth, hooked.layout)  # before the first call of generate
        had_own = vars(model).get("generate")
        model.generate = _generate_of(model, method)
        setattr(model, _ACTIVE, True)
        try:
            yield hooked
        finally:
            delattr(model, _ACTIVE)
            del model.generate
            if had_own is not None:
                model.generate = had_own


@contextmanager
def _same_mode(model: object) -> Iterator[None]:
    """Leave every module in the mode that it was in: decoding is in evaluation mode."""
    modules = model.modules() if isinstance(model, nn.Module) else ()  # others are refused later
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _generate_of(model: PreTrainedModel, method: CustomGenerate) -> Any:
    """A `generate` for one model, with the arguments of the stock one."""
    layout = method.layout
    ends = layout.ends if layout is not None and layout.has_speech else ()

    @wraps(GenerationMixin.generate)
    def generate(
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **options: Any,
    ) -> Tensor | EarlyExitDecoderOnlyOutput:
        given = {
            "generation_config": generation_config,
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
        }
        options |= {name: value for name, value in given.items() if value is not None}
        ids, mask = read_prompt(inputs, options.pop("attention_mask", None), options)
        if ids is not None and (not isinstance(ids, Tensor) or ids.ndim != 2):
            raise EepolicyError(f"the stock generate takes ids (rows, tokens); got {ids!r:.80}")
        device = method.hooked(model).device  # as in the stock generate, prompts may be elsewhere
        ids, mask, embeddings = (
            given if given is None else given.to(device)
            for given in (ids, mask, options.pop("inputs_embeds", None))
        )
        prompts = PromptBatch(ids, mask, embeddings)
        if prompts.ids is None and prompts.embeddings is None:
            raise EepolicyError("give ids as inputs or input_ids, or inputs_embeds")
        is_dict = options.pop("return_dict_in_generate", None)
        for chosen in (generation_config, model.generation_config):
            if is_dict is None and chosen is not None:
                is_dict = chosen.return_dict_in_generate
        request = prepare_stock_request(model, prompts, options, ends)
        return method.decode(model, request, bool(is_dict))

    return generate
