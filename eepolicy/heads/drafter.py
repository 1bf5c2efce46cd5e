"""The drafter: a head at depth 0, which drafts the next token without a layer of the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eepolicy.errors import EepolicyError
from eepolicy.heads.branch import BranchHead, copy_module, copy_weights
from eepolicy.heads.fitted import KINDS, HeadSize
from eepolicy.heads.lens import LogitLens


@KINDS.register
class DrafterHead(BranchHead):
    """Decoder layers over the last state of the position before and the token's embedding.

    It looks one step ahead: a drafted position runs no layer of the model.  After several drafts,
    the state of the position before is the drafter's own.  Its layers start as copies of the
    model's last layers.

    Source: EAGLE, arXiv 2401.15077, section 3; here with a norm before the linear map, a norm after
    the layers, and layers of the model's own kind.

    Args:
        lens: output embedding and layers of the model.
        layers: layers of the drafter.
        norm: norm after the layers, (..., width) -> (..., width).
        input_norm: norm of the state of the position before, (..., width) -> (..., width).
        mix: linear map of that state and the embedding, (..., 2 width) -> (..., width).
    """

    name = "drafter"
    summary = "decoder layers over the last state of the position before and the token; at depth 0"
    paper = "EAGLE, arXiv 2401.15077"
    source = "https://arxiv.org/abs/2401.15077"

    def __init__(
        self,
        lens: LogitLens,
        layers: nn.ModuleList,
        norm: nn.Module,
        input_norm: nn.Module,
        mix: nn.Linear,
    ) -> None:
        super().__init__(lens, layers, norm)
        self.input_norm = input_norm
        self.mix = mix

    @classmethod
    def default_depths(cls, full_depth: int) -> tuple[int, ...]:
        return (0,)

    @classmethod
    def initial(
        cls, lens: LogitLens, depth: int, size: HeadSize, generator: torch.Generator
    ) -> DrafterHead:
        if depth != 0:
            raise EepolicyError(f"a drafter is a head at depth 0; got depth {depth}")
        if not lens.layers or not isinstance(lens.norm, nn.Module):
            raise EepolicyError(
                "a drafter copies decoder layers and a norm that is a torch.nn.Module; this lens "
                "has none: use the lens of a HookedModel"
            )
        sources = cls.sources(0, size.num_layers, len(lens.layers))
        layers = nn.ModuleList([copy_module(lens.layers[i]) for i in sources])
        mix = nn.Linear(2 * size.width, size.width, bias=False)
        bound = (2 * size.width) ** -0.5
        mix.requires_grad_(False).weight.uniform_(-bound, bound, generator=generator)
        return cls(lens, layers, copy_module(lens.norm), copy_module(lens.norm), mix)

    @classmethod
    def restore(cls, lens: LogitLens, depth: int, weights: Mapping[str, Tensor]) -> DrafterHead:
        num_layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
        size = HeadSize(width=len(weights.get("mix.weight", ())), num_layers=num_layers)
        return copy_weights(cls.initial(lens, depth, size, torch.Generator()), weights)

    @staticmethod
    def sources(depth: int, num_layers: int, full_depth: int) -> tuple[int, ...]:
        return tuple(max(0, full_depth - num_layers + i) for i in range(num_layers))

    @staticmethod
    def count(size: HeadSize) -> int:
        return size.num_layers * size.layer_weights + 2 * size.width + 2 * size.width**2

    def inputs(self, previous: Tensor, embedding: Tensor) -> Tensor:
        """Inputs of the layers.

        Args:
            previous: (..., width), state after the last layer at the position before; zeros at the
                first position.
            embedding: (..., width), embedding of the token.

        Returns:
            (..., width).
        """
        mixed: Tensor = self.mix(torch.cat((self.input_norm(previous), embedding), -1))
        return mixed
