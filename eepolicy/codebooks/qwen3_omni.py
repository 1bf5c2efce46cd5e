"""The adapter of Qwen3-Omni's talker: one code of a frame, and a code predictor for the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers import StoppingCriteriaList as Criteria

from eepolicy.codebooks.adapter import CODEBOOK_FAMILIES, LEFT_OUT, CodebookAdapter, parts_of_llama
from eepolicy.codebooks.prompt import FramePrompt
from eepolicy.errors import EepolicyError
from eepolicy.model.families import DecoderParts

#: options of the stock talker that describe prompts and the text that it speaks
PROMPT_OPTIONS = ("inputs_embeds", "attention_mask", "trailing_text_hidden", "tts_pad_embed")
#: options that only describe images and sound in the prompt, by which positions are computed
POSITION_OPTIONS = (
    "talker_input_ids",
    "audio_feature_lengths",
    "image_grid_thw",
    "video_grid_thw",
    "video_second_per_grid",
)


class TalkerAdapter(CodebookAdapter):
    """The talker of Qwen3-Omni, `Qwen3OmniMoeTalkerForConditionalGeneration` of transformers.

    Args:
        model: the talker, which is `talker` of the whole model.
    """

    processors_read_codes: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.depth_model = self.model.code_predictor
        self.num_codebooks = int(self.model.config.num_code_groups)
        self.num_codes = int(self.depth_model.config.vocab_size)

    def backbone_parts(self) -> DecoderParts:
        return parts_of_llama(self.model.model, self._embed, self.model.codec_head, axes=3)

    def depth_parts(self) -> DecoderParts:
        inner: Any = self.depth_model.model
        config = self.depth_model.config
        return replace(
            parts_of_llama(inner, inner.codec_embedding[0], self.heads()[0]),
            attention=tuple(config.layer_types),
            window=config.sliding_window,
        )

    def heads(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(self.depth_model.lm_head)

    def prompt(self, inputs: dict[str, Any]) -> FramePrompt:
        prompts = {name: inputs.pop(name, None) for name in PROMPT_OPTIONS}
        call = {name: inputs.pop(name) for name in POSITION_OPTIONS if name in inputs}
        embeddings, mask, text, pad = prompts.values()
        for name in ("inputs_embeds", "trailing_text_hidden", "tts_pad_embed"):
            if not isinstance(prompts[name], Tensor) or prompts[name].ndim != 3:
                raise EepolicyError(
                    f"the talker's prompt is what talker_inputs(model, ...) returns; its {name} is "
                    f"(rows, tokens, width); got {prompts[name]!r:.60}"
                )
        rows = len(embeddings)
        call |= {"inputs_embeds": embeddings, "attention_mask": mask}
        return FramePrompt(
            call, embeddings, None, text.expand(rows, -1, -1), pad.expand(rows, -1, -1)
        )

    def _embed(self, codes: Tensor) -> Tensor:
        """Sum the embeddings of codes: (rows, frames, codebooks) -> (rows, frames, width)."""
        first, others = self.model.model.codec_embedding, self.depth_model.model.codec_embedding
        embeddings = [first, *others]
        each = [
            embed(codes[..., i].clamp(min=0)) * (codes[..., i, None] != LEFT_OUT)
            for i, embed in enumerate(embeddings)
        ]
        return torch.stack(each, -2).sum(-2)

    def embed_frames(self, codes: Tensor) -> Tensor:
        return self._embed(codes[:, None])

    def embed_state(self, states: Tensor) -> Tensor:
        return states[:, None]

    def embed_code(self, codes: Tensor, codebook: int) -> Tensor:
        embed: Any = self.model.model.codec_embedding
        if codebook:
            embed = self.depth_model.model.codec_embedding[codebook - 1]
        embedded: Tensor = embed(codes[:, None])
        return embedded

    def stock_logits(self, codes: Tensor) -> Tensor:
        states = self.model.model(inputs_embeds=self._embed(codes)).last_hidden_state
        logits: Tensor = self.model.codec_head(states)
        return logits

    def stock_depth_logits(self, states: Tensor, codes: Tensor) -> Tensor:
        inputs = [states[:, None]]
        inputs += [self.embed_code(codes[:, i], i) for i in range(self.num_codebooks - 1)]
        predictor: Any = self.depth_model
        hidden = predictor.model(inputs_embeds=torch.cat(inputs, 1)).last_hidden_state
        return torch.stack([head(hidden[:, i + 1]) for i, head in enumerate(self.heads())], 1)

    def default_options(self) -> dict[str, Any]:
        return {"eos_token_id": int(self.model.config.codec_eos_token_id)}

    def depth_options(self, do_sample: bool) -> dict[str, Any]:
        # as the stock talker calls it
        return dict(do_sample=True, top_k=50, top_p=0.8) if do_sample else dict(do_sample=False)


CODEBOOK_FAMILIES.add("qwen3_omni_moe_talker_text", TalkerAdapter)


class _Reached(Exception):
    """Raised when the whole model calls its talker, with the arguments of the talker."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.inputs = inputs


def _reached(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Criteria,
    generation_config: GenerationConfig,
    **arguments: Any,
) -> None:
    """A decoding method for the talker that raises its arguments."""
    names = (*PROMPT_OPTIONS, *POSITION_OPTIONS)
    inputs = {name: arguments[name] for name in names if arguments.get(name) is not None}
    generation_config = copy.deepcopy(generation_config)
    if generation_config.max_new_tokens is not None:
        generation_config.max_length = None  # it follows from the former
    raise _Reached(inputs | {"generation_config": generation_config})


@torch.no_grad()
def talker_inputs(model: PreTrainedModel, **inputs: Any) -> dict[str, Any]:
    """Let the thinker of Qwen3-Omni answer, and return what its talker is to speak.

    The stock model runs its thinker and stops where it calls the talker.  The result is a prompt
    for `HookedCodebookModel(model.talker)`, with the stock options of sampling.

    Args:
        model: the whole stock model, `Qwen3OmniMoeForConditionalGeneration`.
        **inputs: arguments of its `generate`: what its processor returns, `speaker`,
            `thinker_max_new_tokens` and so on.

    Raises:
        EepolicyError: the model has no talker.
    """
    if not getattr(model, "has_talker", False):
        raise EepolicyError(
            f"{type(model).__name__} has no talker: load Qwen3OmniMoeForConditionalGeneration "
            "with enable_audio_output"
        )
    try:
        model.generate(return_audio=True, talker_custom_generate=_reached, **inputs)
    except _Reached as reached:
        return reached.inputs
    raise EepolicyError(f"{type(model).__name__} did not call its talker")
