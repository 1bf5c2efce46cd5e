"""The tuned lens: an affine translator a depth, then the model's own norm and head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fingerprint import describe, fingerprint
from eepolicy.heads.lens import LogitLens


class TunedLens(ExitHead):
    """h + W_d h + b_d, then the model's final norm and head (Belrose et al. 2023, 2303.08112).

    A small form of the head a depth that SPAR-K trains: the output embedding is shared.

    Args:
        lens: the model's norm and head.
        weight: (depths, width, width) for depths 1 to full - 1.
        bias: (depths, width).
    """

    def __init__(self, lens: LogitLens, weight: Tensor, bias: Tensor) -> None:
        self.lens = lens
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def __repr__(self) -> str:
        return f"TunedLens(depths 1 to {len(self.weight)})"

    @classmethod
    def identity(cls, lens: LogitLens, depths: int, width: int) -> TunedLens:
        """Translators that change nothing: the plain logit lens."""
        return cls(lens, torch.zeros(depths, width, width), torch.zeros(depths, width))

    def translate(self, hidden: Tensor, depth: int) -> Tensor:
        """Hidden states as the last layer would have them: (..., width) -> (..., width)."""
        return hidden + hidden @ self.weight[depth - 1].T + self.bias[depth - 1]

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.lens.logits(self.translate(hidden, depth), depth)

    def save(self, path: Path, model: PreTrainedModel, notes: dict[str, Any] | None = None) -> None:
        """Write the translators in half precision, with the model's fingerprint and notes."""
        metadata = {
            "kind": "tuned",
            "model": json.dumps(fingerprint(model)),
            "notes": json.dumps(notes),
        }
        tensors = {"weight": self.weight.detach().half(), "bias": self.bias.detach().half()}
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata)
        part.rename(path)

    @classmethod
    def load(cls, path: Path, lens: LogitLens, model: PreTrainedModel) -> TunedLens:
        """Read translators that were fitted on this model.

        Raises:
            EepolicyError: they were fitted on another model, or the file is none of heads.
        """
        try:
            with safe_open(path, "pt") as file:
                fitted_on = json.loads((file.metadata() or {}).get("model", "{}"))
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        except (SafetensorError, ValueError) as error:
            raise EepolicyError(f"{path} is no file of heads: {error}") from error
        here = fingerprint(model)
        if fitted_on != here:
            raise EepolicyError(
                f"the heads in {path} were fitted on {describe(fitted_on)}, "
                f"this model is {describe(here)}; fit heads for it with eepolicy.heads.fit"
            )
        dtype, device = model.dtype, model.device
        return cls(lens, weight.to(device, dtype), bias.to(device, dtype))
