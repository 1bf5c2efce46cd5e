"""Heads with parameters of their own at some depths: what they share, and their files."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fingerprint import describe, fingerprint
from eepolicy.heads.lens import LogitLens

#: name of a kind of heads in files and on the command line: its class
KINDS: dict[str, type[FittedHead]] = {}


class FittedHead(ExitHead):
    """A head with parameters of its own at each of some depths.

    Args:
        lens: the model's norm and head.
        depths: at which there are parameters, rising.
        **parameters: by name, one tensor a depth each.
    """

    kind: ClassVar[str]

    def __init__(
        self, lens: LogitLens, depths: Sequence[int], **parameters: Sequence[Tensor]
    ) -> None:
        self.lens = lens
        self.depths = tuple(depths)
        self.parameters = {name: list(each) for name, each in parameters.items()}

    def __init_subclass__(cls) -> None:
        KINDS[cls.kind] = cls

    def __repr__(self) -> str:
        rise = self.depths == tuple(range(self.depths[0], self.depths[-1] + 1))
        some = (
            f"{self.depths[0]} to {self.depths[-1]}" if rise else ", ".join(map(str, self.depths))
        )
        return f"{type(self).__name__}(depths {some})"

    @classmethod
    @abstractmethod
    def untrained(
        cls, lens: LogitLens, depths: Sequence[int], *, width: int, rank: int, seed: int
    ) -> FittedHead:
        """Parameters in float32 with which the head is the plain lens.

        Args:
            lens: the model's norm and head.
            depths: that get some.
            width: of the model.
            rank: of heads that have one.
            seed: of what starts at random.
        """

    def at(self, depth: int) -> dict[str, Tensor]:
        """The parameters of a depth.

        Raises:
            EepolicyError: there are none.
        """
        if depth not in self.depths:
            raise EepolicyError(
                f"no head was fitted at depth {depth}: {self!r}; exit there, or fit it too"
            )
        index = self.depths.index(depth)
        return {name: each[index] for name, each in self.parameters.items()}

    def to(self, like: Tensor | PreTrainedModel) -> FittedHead:
        """The same heads on a device, in a precision."""
        moved = {
            name: [p.detach().to(like.device, like.dtype) for p in each]
            for name, each in self.parameters.items()
        }
        return type(self)(self.lens, self.depths, **moved)

    def save(self, path: str | Path, model: PreTrainedModel, notes: dict[str, Any]) -> None:
        """Write the heads in half precision.

        Args:
            path: a safetensors file.
            model: that they were fitted on; its fingerprint goes with them.
            notes: the data, the losses, whatever tells what they are worth, as JSON.
        """
        path = Path(path)
        # one entry: the order of several is not kept, and the same heads would be other files
        about = {
            "kind": self.kind,
            "depths": self.depths,
            "model": fingerprint(model),
            "notes": notes,
        }
        tensors = {
            name: torch.stack([p.detach().cpu().half() for p in each])
            for name, each in self.parameters.items()
        }
        part = path.with_name(f"{path.name}.part")
        save_file(tensors, part, {"heads": json.dumps(about)})
        part.replace(path)


def read_notes(path: str | Path) -> dict[str, Any]:
    """What a file of heads says about itself: `kind`, `depths`, `model` and `notes`.

    Raises:
        EepolicyError: the file is none of heads.
    """
    try:
        with safe_open(path, "pt") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {})["heads"])
            return found
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise EepolicyError(f"{path} is no file of heads: {error}") from error


def load_heads(path: str | Path, lens: LogitLens, model: PreTrainedModel) -> FittedHead:
    """Read heads that were fitted on this model.

    Args:
        path: a file that `FittedHead.save` wrote.
        lens: the model's norm and head, `HookedModel.lens`.
        model: the stock model.

    Raises:
        EepolicyError: they were fitted on another model, or the file is none of heads.
    """
    about, here = read_notes(path), fingerprint(model)
    if about["kind"] not in KINDS:
        raise EepolicyError(
            f"the heads in {path} are of the kind {about['kind']!r}; known are {', '.join(KINDS)}"
        )
    if about["model"] != here:
        raise EepolicyError(
            f"the heads in {path} were fitted on {describe(about['model'])}, "
            f"this model is {describe(here)}; fit heads for it with 'eepolicy fit'"
        )
    with safe_open(path, "pt") as file:
        parameters = {name: file.get_tensor(name).unbind() for name in file.keys()}  # noqa: SIM118
    return KINDS[about["kind"]](lens, about["depths"], **parameters).to(model)
