"""Checkpoints of a fit, from which it resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eepolicy.errors import EepolicyError
from eepolicy.formats import CheckpointHeader, parse
from eepolicy.io import open_tensors, write_atomically

#: state of Adam for each parameter
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a fit.

    Attributes:
        identity: model, replies and options as JSON types; a fit resumes from its own checkpoint.
        epoch: number of finished epochs.
        epochs_without_gain: number of epochs since the KL of some depth fell.
        metrics: metrics of the best weights, by name and depth.
        tensors: current weights, best weights and state of the optimiser, by name.
        step: number of finished steps of the epoch that is not finished.
    """

    identity: dict[str, Any]
    epoch: int
    epochs_without_gain: int
    metrics: dict[str, list[float]]
    tensors: dict[str, Tensor]
    step: int = 0

    def write(self, file: Path) -> None:
        """Write the checkpoint: to a temporary name, which is renamed when it is complete."""
        fields = ("identity", "epoch", "epochs_without_gain", "metrics", "step")
        metadata = {name: getattr(self, name) for name in fields}
        header = {"fit": json.dumps(metadata)}
        write_atomically(file, lambda part: save_file(self.tensors, part, header))

    @classmethod
    def read(cls, file: Path, identity: dict[str, Any]) -> Checkpoint:
        """Read a checkpoint.

        Args:
            file: file that `write` wrote.
            identity: identity of the fit that resumes.

        Raises:
            EepolicyError: the file is not a checkpoint, or is the checkpoint of another fit.
        """
        with open_tensors(file, "fit", "a checkpoint of a fit") as (metadata, stored):
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        header = parse(CheckpointHeader, metadata, str(file))
        checkpoint = cls(**header.model_dump(exclude={"version"}), tensors=tensors)
        if checkpoint.identity != identity:
            raise EepolicyError(
                f"the checkpoint {file} belongs to a fit with another model, other replies or "
                "other options; delete it, or give another file"
            )
        return checkpoint


def tensors_of_fit(heads: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights under training and the state of their optimiser, by name, for a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in heads.named_parameters():
        tensors[f"weights.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    return tensors


@torch.no_grad()
def restore_fit(
    heads: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Take weights and optimiser state from what `tensors_of_fit` returned."""
    for name, parameter in heads.named_parameters():
        parameter.copy_(tensors[f"weights.{name}"])
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else parameter.device)
            for key in ADAM_STATE
        }
