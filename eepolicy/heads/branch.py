"""Exit branches: decoder layers of their own after an exit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from eepolicy.errors import EepolicyError
from eepolicy.heads.fitted import KINDS, DepthHead, HeadSize
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.weights import weights_obstacle


@KINDS.register
class BranchHead(DepthHead):
    """Decoder layers of its own, a norm of its own, and the output embedding of the model.

    A branch at depth d attends to the states after d layers at all positions.  The backbone stays
    frozen.  The layers start as copies of the model's layers d + 1, d + 2, ..., and the norm starts
    as a copy of the final norm.  BranchyNet (arXiv 1709.01686) has layers after its exits too;
    here they are transformer layers with keys and values.

    Decoding runs the layers with a KV cache, as further layers of the model.  `logits` therefore
    takes the states after the branch; `Backbone.branch_states` computes them for a whole text.

    Args:
        lens: output embedding and layers of the model.
        layers: layers of the branch.
        norm: norm of the branch, (..., width) -> (..., width).
    """

    name = "branch"
    summary = "decoder layers of its own with a KV cache, a norm, and the model's output embedding"
    paper = "after BranchyNet, arXiv 1709.01686"
    source = "https://arxiv.org/abs/1709.01686"

    def __init__(self, lens: LogitLens, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__(lens)
        self.layers = layers
        self.norm = norm

    @classmethod
    def initial(
        cls, lens: LogitLens, depth: int, size: HeadSize, generator: torch.Generator
    ) -> BranchHead:
        if not lens.layers or not isinstance(lens.norm, nn.Module):
            raise EepolicyError(
                "a branch copies decoder layers and a norm that is a torch.nn.Module; this lens "
                "has none: use the lens of a HookedModel"
            )
        sources = cls.sources(depth, size.num_layers, len(lens.layers))
        layers = nn.ModuleList([copy_module(lens.layers[i]) for i in sources])
        return cls(lens, layers, copy_module(lens.norm))

    @classmethod
    def restore(cls, lens: LogitLens, depth: int, weights: Mapping[str, Tensor]) -> BranchHead:
        num_layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
        size = HeadSize(num_layers=num_layers)
        return copy_weights(cls.initial(lens, depth, size, torch.Generator()), weights)

    @staticmethod
    def sources(depth: int, num_layers: int, full_depth: int) -> tuple[int, ...]:
        """Indices of the model's layers that the layers of a branch are copies of."""
        return tuple(min(depth + i, full_depth - 1) for i in range(num_layers))

    @staticmethod
    def count(size: HeadSize) -> int:
        return size.num_layers * size.layer_weights + size.width

    @property
    def readout(self) -> LogitLens:
        """The norm of the branch and the output embedding of the model."""
        return LogitLens(self.norm, self.lens.head, self.lens.logit_softcap)

    def layers_at(self, depth: int) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self.layers)

    def sources_at(self, depth: int) -> tuple[int, ...]:
        return self.sources(depth, len(self.layers), len(self.lens.layers))

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.readout.logits(hidden, depth)

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        return self.readout.logits_over(hidden, depth, ids)


def copy_module(module: nn.Module) -> nn.Module:
    """A copy in float32 with weights of its own, without hooks and without gradients.

    Raises:
        EepolicyError: the weights are quantised or offloaded.
    """
    if (reason := weights_obstacle(module)) is not None:
        raise EepolicyError(
            f"a branch and a drafter copy {type(module).__name__}, which has {reason}; load the "
            "model unquantised on one device, or fit a tuned lens"
        )
    # hooks belong to the model: transformers and users record its layers with them
    own = copy.deepcopy(module).float().requires_grad_(False)
    for part in own.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):
            hooks.clear()
    return own


BranchT = TypeVar("BranchT", bound=BranchHead)


def copy_weights(branch: BranchT, weights: Mapping[str, Tensor]) -> BranchT:
    """Copy stored weights into a branch.

    Raises:
        EepolicyError: names or shapes differ.
    """
    parameters = dict(branch.named_parameters())
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if shapes != {name: parameter.shape for name, parameter in parameters.items()}:
        raise EepolicyError(
            f"the weights of the {branch.name} in the file do not fit the layers of the model"
        )
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
    return branch
