"""A pipeline of transformers whose replies exit early."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, TextGenerationPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from eepolicy.stock import CustomGenerate, custom_generate

#: task of the pipeline, once `register_pipeline` has run
TASK = "early-exit-text-generation"
#: options of the pipeline that are not those of `TextGenerationPipeline`
OPTIONS = (
    "policy",
    "heads",
    "layout",
    "config",
    "fill",
    "accept",
    "max_pending",
    "rebatch",
    "compile",
)


class EarlyExitPipeline(TextGenerationPipeline):  # type: ignore[misc]
    """A `text-generation` pipeline with the options of `eepolicy.early_exit`.

    Give the options to the pipeline or to a call; all others are those of transformers.

    Examples:
        >>> model = eepolicy.load("pocket")
        >>> pipe = eepolicy.EarlyExitPipeline(
        ...     model=model.unwrap(), tokenizer=model.tokenizer, policy="text=static@16"
        ... )
        >>> type(pipe("Hello", max_new_tokens=4)[0]["generated_text"])
        <class 'str'>
    """

    _method: tuple[dict[str, Any], CustomGenerate] | None = None

    def _sanitize_parameters(
        self, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        own = {name: options.pop(name) for name in OPTIONS if name in options}
        preprocess, forward, postprocess = super()._sanitize_parameters(**options)
        return preprocess, {**forward, **own}, postprocess

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        own = {name: options.pop(name) for name in OPTIONS if name in options}
        if self._method is None or self._method[0] != own:  # hooking a model runs it once
            self._method = own, custom_generate(**own)
        with self._method[1].inside(self.model):
            outputs: dict[str, Any] = super()._forward(model_inputs, **options)
            return outputs


def register_pipeline() -> None:
    """Register the task `"early-exit-text-generation"` for `transformers.pipeline`.

    Examples:
        >>> import transformers
        >>> eepolicy.register_pipeline()
        >>> "early-exit-text-generation" in transformers.pipelines.get_supported_tasks()
        True
    """
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=EarlyExitPipeline, pt_model=AutoModelForCausalLM, type="text"
    )
