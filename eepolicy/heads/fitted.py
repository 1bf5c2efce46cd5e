"""Heads with weights of their own: the interface for one depth, and the collection of depths."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.heads.lens import LogitLens
from eepolicy.io import write_atomically
from eepolicy.registry import Registry


@dataclass(frozen=True)
class HeadSize:
    """Sizes that the number of weights of a head depends on.

    Attributes:
        width: width of the model.
        vocabulary: number of ids in the vocabulary.
        rank: rank of low-rank weights.
        num_layers: number of layers of a branch.
        layer_weights: number of weights of a decoder layer.
    """

    width: int = 0
    vocabulary: int = 0
    rank: int = 32
    num_layers: int = 2
    layer_weights: int = 0


class DepthHead(ExitHead):
    """A head of one depth with weights of its own; subclasses can be fitted.

    A subclass declares `name`, `summary`, `paper` and `source`.  `KINDS.register` or an entry point
    of the group `eepolicy.heads` makes it known to files and to `eepolicy fit`.

    Its weights do not require gradients until `requires_grad_()` is called; `fit` calls it.

    Args:
        lens: norm and output embedding of the model.
        **weights: tensors by name, stored as parameters.

    Attributes:
        name: name of the kind of head in files and on the command line.
        summary: one line for help and tables.
        paper: reference of the paper, or `""`.
        source: link to the paper or to its code, or `""`.
    """

    name: ClassVar[str]
    usage: ClassVar[str]
    example: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def __init__(self, lens: LogitLens, **weights: Tensor) -> None:
        super().__init__()
        self.lens = lens
        for name, tensor in weights.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # a head needs the lens of a model, so its spec string names the class and nothing else
        if "name" in vars(cls):
            cls.usage = cls.example = cls.name

    @classmethod
    def from_spec(cls, rest: str) -> type[DepthHead]:
        """The class: the spec string of a head is its name.

        Raises:
            EepolicyError: the spec string goes on after the name.
        """
        if rest:
            raise EepolicyError("")
        return cls

    @property
    def spec(self) -> str:
        """Name of the kind of head."""
        return self.name

    @classmethod
    @abstractmethod
    def initial(
        cls, lens: LogitLens, depth: int, size: HeadSize, generator: torch.Generator
    ) -> DepthHead:
        """Create the head in float32 with weights at which `logits` equals the logit lens.

        Args:
            lens: norm and output embedding of the model.
            depth: depth of the head.
            size: width of the model, and sizes that the user chooses.
            generator: source of weights that start at random.
        """

    @staticmethod
    @abstractmethod
    def count(size: HeadSize) -> int:
        """Number of weights of the head, for `fitting_memory`."""

    @classmethod
    def default_depths(cls, full_depth: int) -> tuple[int, ...]:
        """Depths that get a head where none are named: all below full depth."""
        return tuple(range(1, full_depth))

    @classmethod
    def restore(cls, lens: LogitLens, depth: int, weights: Mapping[str, Tensor]) -> DepthHead:
        """Build the head from its weights.

        Args:
            lens: norm and output embedding of the model.
            depth: depth of the head.
            weights: tensors by the names of `named_parameters()`.
        """
        return cls(lens, **weights)

    @classmethod
    def untrained(
        cls,
        lens: LogitLens,
        depths: Iterable[int],
        *,
        width: int = 0,
        rank: int = 32,
        num_layers: int = 2,
        seed: int = 0,
    ) -> FittedHead:
        """Create a head of this kind at some depths, with weights at which it equals the lens.

        Args:
            lens: norm and output embedding of the model.
            depths: depths that get a head, rising.
            width: width of the model.
            rank: rank of low-rank weights; other heads ignore it.
            num_layers: number of layers of a branch; other heads ignore it.
            seed: seed of weights that start at random.
        """
        size = HeadSize(width, rank=rank, num_layers=num_layers)
        # each depth draws the same numbers, so a depth that is fitted alone starts alike
        return FittedHead(
            {
                depth: cls.initial(lens, depth, size, torch.Generator().manual_seed(seed))
                for depth in depths
            }
        )


#: kinds of heads by name
KINDS: Registry[DepthHead] = Registry(kind="head", group="eepolicy.heads")


class FittedHead(ExitHead):
    """One head with weights of its own for each of some depths.

    Args:
        heads: head of each depth, depths rising; a drafter is at depth 0.

    Attributes:
        heads: the same, with depths as strings: `state_dict()` has names such as `heads.12.bias`.
    """

    def __init__(self, heads: Mapping[int, DepthHead]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({str(depth): head for depth, head in heads.items()})

    def __repr__(self) -> str:
        depths = tuple(map(int, self.heads))
        kinds = {type(head).__name__ for head in self.heads.values()}
        consecutive = depths == tuple(range(depths[0], depths[-1] + 1))
        listed = f"{depths[0]} to {depths[-1]}" if consecutive else ", ".join(map(str, depths))
        return f"{kinds.pop() if len(kinds) == 1 else 'FittedHead'}(depths {listed})"

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths that have a head, rising, without the drafter."""
        return tuple(depth for depth in map(int, self.heads) if depth)

    def at(self, depth: int) -> DepthHead:
        """The head of a depth.

        Raises:
            EepolicyError: the depth has no head.
        """
        key = str(depth)
        if key not in self.heads:
            raise EepolicyError(
                f"no head was fitted at depth {depth}: {self!r}; exit at these depths, or fit a "
                f"head at depth {depth} too"
            )
        return cast(DepthHead, self.heads[key])

    def layers_at(self, depth: int) -> Sequence[nn.Module]:
        return self.at(depth).layers_at(depth) if str(depth) in self.heads else ()

    def sources_at(self, depth: int) -> Sequence[int]:
        return self.at(depth).sources_at(depth) if str(depth) in self.heads else ()

    @property
    def branch_depths(self) -> tuple[int, ...]:
        return tuple(depth for depth in map(int, self.heads) if self.layers_at(depth))

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.at(depth).logits(hidden, depth)

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        return self.at(depth).logits_over(hidden, depth, ids)

    def save(
        self,
        path: str | Path,
        model: PreTrainedModel,
        notes: dict[str, Any],
        *,
        others: Sequence[FittedHead] = (),
    ) -> None:
        """Write the heads in half precision, with the fingerprint of the model.

        Args:
            path: safetensors file to write.
            model: model that the heads were fitted on.
            notes: description of the fit as JSON types, such as the data and the losses.
            others: heads of other kinds at the same depths.  `load_heads` reads them where a kind
                is named, and otherwise at depths that these heads lack.
        """
        of_depth: dict[tuple[int, str], DepthHead] = {}
        for heads in (self, *others):
            for depth in map(int, heads.heads):
                head = heads.at(depth)
                of_depth.setdefault((depth, head.name), head)
        order = sorted(of_depth, key=lambda key: key[0])  # stable: the order of kinds stays
        # one metadata entry: safetensors does not keep the order of several, and the same heads
        # would then give different files
        metadata = {
            "kinds": [kind for _, kind in order],
            "depths": [depth for depth, _ in order],
            "model": fingerprint(model),
            "notes": notes,
        }
        tensors = {
            f"{kind}.{depth}.{name}": weight.detach().cpu().half().contiguous()
            for (depth, kind), head in of_depth.items()
            for name, weight in head.named_parameters()
        }
        header = {"heads": json.dumps(metadata)}
        write_atomically(Path(path), lambda part: save_file(tensors, part, header))
