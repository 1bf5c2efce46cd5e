"""The adapter of CSM: a backbone for the first of 32 codes, and a depth decoder for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.codebooks.adapter import CODEBOOK_FAMILIES, LEFT_OUT, CodebookAdapter, parts_of_llama
from eepolicy.codebooks.prompt import FramePrompt
from eepolicy.codebooks.vocoder import MimiVocoder
from eepolicy.errors import EepolicyError
from eepolicy.heads.weights import obstacle
from eepolicy.modality import is_ids
from eepolicy.model.families import DecoderParts
from eepolicy.model.multimodal import embeddings_into

#: options of the stock `generate` that describe prompts
PROMPT_OPTIONS = ("input_ids", "attention_mask", "input_values", "input_values_cutoffs")


class CsmAdapter(CodebookAdapter):
    """CSM of Sesame, `CsmForConditionalGeneration` of transformers.

    Args:
        model: the stock model.
    """

    # the authors put marks of begin and end around each text
    text_options: ClassVar[Mapping[str, Any]] = {"add_special_tokens": True}

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.depth_model = self.model.depth_decoder
        self.num_codebooks = int(model.config.num_codebooks)
        self.num_codes = int(model.config.vocab_size)

    def backbone_parts(self) -> DecoderParts:
        inner = self.model.backbone_model
        return parts_of_llama(inner, inner.embed_tokens, self.model.lm_head)

    def depth_parts(self) -> DecoderParts:
        inner = self.depth_model.model
        return parts_of_llama(inner, inner.inputs_embeds_projector, self.heads()[0])

    def heads(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self._logits, codebook) for codebook in range(1, self.num_codebooks)]

    def _logits(self, codebook: int, hidden: Tensor) -> Tensor:
        """Logits of a codebook after the first: (rows, width) -> (rows, codes)."""
        head: Any = self.depth_model.codebooks_head
        if obstacle(head) is None:  # the stock module copies the weights of the codebook
            return F.linear(hidden, head.weight[codebook - 1].T)
        index = torch.tensor([codebook], device=hidden.device)
        logits: Tensor = head(hidden[..., None, :], index)
        return logits[..., 0, :]

    def prompt(self, inputs: dict[str, Any]) -> FramePrompt:
        prompts = {name: inputs.pop(name, None) for name in PROMPT_OPTIONS}
        ids, mask = prompts["input_ids"], prompts["attention_mask"]
        if not isinstance(ids, Tensor) or ids.ndim != 2 or not is_ids(ids):
            raise EepolicyError(
                "a prompt of CSM is text ids (rows, tokens), with input_values for sound in it; "
                f"got {ids!r}"
            )
        limit = int(self.model.config.text_vocab_size)
        if not ids.numel() or not 0 <= int(ids.min()) <= int(ids.max()) < limit:
            raise EepolicyError(f"text ids of CSM are 0 to {limit - 1}, one or more; got {ids}")
        prompts = {name: value for name, value in prompts.items() if value is not None}
        embeddings = embeddings_into(self.model.backbone_model, self.model, prompts)
        return FramePrompt({"inputs": ids, "attention_mask": mask}, embeddings, ids)

    def embed_frames(self, codes: Tensor) -> Tensor:
        embed: Any = self.model.backbone_model.embed_tokens
        if not bool((codes == LEFT_OUT).any()):
            embedded: Tensor = embed(codes[:, None])
            return embedded
        offset = codes.clamp(min=0) + embed.audio_tokens_offsets
        each = embed.embed_audio_tokens(offset) * (codes != LEFT_OUT)[..., None]
        total: Tensor = each.sum(1, keepdim=True)
        return total

    def embed_state(self, states: Tensor) -> Tensor:
        projected: Tensor = self.depth_model.model.inputs_embeds_projector(states[:, None])
        return projected

    def embed_code(self, codes: Tensor, codebook: int) -> Tensor:
        inner: Any = self.depth_model.model
        embedded: Tensor = inner.embed_tokens(codes[:, None] + codebook * inner.vocab_size)
        projected: Tensor = inner.inputs_embeds_projector(embedded)
        return projected

    def stock_logits(self, codes: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=codes).logits
        return logits

    def stock_depth_logits(self, states: Tensor, codes: Tensor) -> Tensor:
        inputs = F.pad(codes[:, :-1], (1, 0))  # the first position is that of the state
        logits: Tensor = self.model.depth_decoder(
            input_ids=inputs, backbone_last_hidden_state=states
        ).logits
        return logits

    def may_end(self, codes: Tensor) -> Tensor:
        # as the stock generate, which does not look at the last codebook
        first = codes[:, : self.num_codebooks - 1]
        end = int(self.model.config.codebook_eos_token_id)
        return (first == end).all(1)

    def vocoder(self) -> MimiVocoder:
        return MimiVocoder(self.model.codec_model)


CODEBOOK_FAMILIES.add("csm", CsmAdapter)
