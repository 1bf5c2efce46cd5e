"""What decoding with several codebooks uses of a stock model, and the table of adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.codebooks.prompt import FramePrompt
from eepolicy.codebooks.vocoder import CodebookVocoder
from eepolicy.errors import EepolicyError
from eepolicy.model.families import FULL, DecoderParts, Rotation, text_config
from eepolicy.registry import NameTable

#: code of a codebook that was neither computed nor filled
LEFT_OUT = -1


class CodebookAdapter(ABC):
    """The parts of a stock model whose positions are frames of several codes.

    Such a model has two decoders.  The *backbone* has one position for each frame, and its output
    embedding gives the first code.  The *depth decoder* has one position for each code of a frame.
    Its first input is the backbone's state, and each codebook has an output embedding of its own.

    Codebooks count from 0.  A code of `LEFT_OUT` stands for none.

    Args:
        model: the stock model.

    Attributes:
        model: the stock model.
        num_codebooks: number of codes of a frame.
        num_codes: number of codes of each codebook after the first.
        depth_model: the stock model that contains the depth decoder, with its config.
        processors_read_codes: whether the stock `generate` shows the first codes of a reply to
            logits processors; otherwise it shows frames, which most processors cannot read.
        text_options: options of the processor for prompts in text.
    """

    num_codebooks: int
    num_codes: int
    depth_model: PreTrainedModel
    processors_read_codes: ClassVar[bool] = False
    text_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model

    @abstractmethod
    def backbone_parts(self) -> DecoderParts:
        """The parts of the backbone; `embed` takes frames (rows, frames, codebooks)."""

    @abstractmethod
    def depth_parts(self) -> DecoderParts:
        """The parts of the depth decoder; its `head` reads the second codebook."""

    @abstractmethod
    def heads(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Output embeddings of the depth decoder, of the second codebook first.

        Each maps normed states (..., width) to logits (..., codes).
        """

    @abstractmethod
    def prompt(self, inputs: dict[str, Any]) -> FramePrompt:
        """Take prompts and their masks out of the options of `generate`, and embed them.

        Args:
            inputs: options, from which those that describe prompts are removed.
        """

    @abstractmethod
    def embed_frames(self, codes: Tensor) -> Tensor:
        """Sum the embeddings of the codes of a frame: (rows, codebooks) -> (rows, 1, width)."""

    @abstractmethod
    def embed_state(self, states: Tensor) -> Tensor:
        """The first input of the depth decoder.

        Args:
            states: (rows, width) normed states of the backbone.

        Returns:
            (rows, 1, width of the depth decoder).
        """

    @abstractmethod
    def embed_code(self, codes: Tensor, codebook: int) -> Tensor:
        """A further input of the depth decoder.

        Args:
            codes: (rows,) codes of a codebook.
            codebook: index of the codebook.

        Returns:
            (rows, 1, width of the depth decoder).
        """

    @abstractmethod
    def stock_logits(self, codes: Tensor) -> Tensor:
        """Logits of the first codes, by the stock forward pass.

        Args:
            codes: (rows, frames, codebooks).

        Returns:
            (rows, frames, first codes).
        """

    @abstractmethod
    def stock_depth_logits(self, states: Tensor, codes: Tensor) -> Tensor:
        """Logits of the other codes of some frames, by the stock forward pass.

        Args:
            states: (rows, width) normed states of the backbone.
            codes: (rows, codebooks).

        Returns:
            (rows, codebooks - 1, codes).
        """

    def may_end(self, codes: Tensor) -> Tensor:
        """Whether the codes of a frame so far are those of a frame that ends a reply.

        Args:
            codes: (rows, codes), the first codes of a frame.

        Returns:
            (rows,) of bool.
        """
        return torch.zeros(len(codes), dtype=torch.bool, device=codes.device)

    def default_options(self) -> dict[str, Any]:
        """Options of the stock `generate` where the caller leaves them open."""
        return {}

    def depth_options(self, do_sample: bool) -> dict[str, Any]:
        """Options with which the stock model calls the `generate` of its depth decoder.

        Args:
            do_sample: whether the first codes are sampled.
        """
        return {}

    def vocoder(self) -> CodebookVocoder | None:
        """The codec of the model; None for a model without one."""
        return None


def parts_of_llama(
    inner: Any, embed: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor], axes: int = 1
) -> DecoderParts:
    """The parts of a decoder with the names and the full attention of Llama.

    Args:
        inner: the module with the layers, the final norm and the rotary embedding.
        embed: embedding of its inputs; see `CodebookAdapter.backbone_parts`.
        head: output embedding.
        axes: number of dimensions of its positions.
    """
    return DecoderParts(
        embed=embed,
        layers=inner.layers,
        norm=inner.norm,
        head=head,
        attention=(FULL,) * len(inner.layers),
        rotary=partial(_rotations, inner.rotary_emb, axes),
    )


def _rotations(module: Any, axes: int, like: Tensor, positions: Tensor, kind: str) -> Rotation:
    """Cosines and sines of a stock rotary embedding; see `DecoderParts.rotary`.

    Args:
        module: the rotary embedding.
        axes: number of dimensions of its positions; they are equal in all of them.
        like: a tensor of the dtype and device of the result.
        positions: (rows, tokens).
        kind: kind of attention.
    """
    if axes > 1:
        positions = positions.expand(axes, *positions.shape)
    cosines, sines = module(like, positions)
    return cosines, sines


#: adapters by the `model_type` of the config, or of its text config
CODEBOOK_FAMILIES: NameTable[type[CodebookAdapter]] = NameTable(
    kind="model with several codebooks", group="eepolicy.codebook_families"
)


def adapter_of(model: PreTrainedModel) -> CodebookAdapter:
    """The adapter of a stock model.

    Raises:
        EepolicyError: its type has no adapter.
    """
    if isinstance(model, PreTrainedModel):
        for config in (model.config, text_config(model)):  # some outer configs have no type
            if config.model_type and config.model_type in CODEBOOK_FAMILIES:
                return CODEBOOK_FAMILIES.get(config.model_type)(model)
    raise EepolicyError(
        f"{type(model).__name__} has no adapter for several codebooks; there are adapters for "
        f"{', '.join(CODEBOOK_FAMILIES.names())}. A model with one stream of tokens needs "
        "none: use eepolicy.wrap"
    )
