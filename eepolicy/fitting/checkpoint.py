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
from eepolicy.fitting.formats import CheckpointHeader
from eepolicy.formats import parse
from eepolicy.io import write_atomically
from eepolicy.tensor_files import check_tensors, open_tensors

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


def check_parts(
    checkpoint: Checkpoint, heads: nn.Module, best: set[str], metrics: Mapping[str, list[float]]
) -> None:
    """Refuse a checkpoint whose tensors or metrics do not fit the heads.

    Args:
        checkpoint: what was read.
        heads: heads that are fitted.
        best: names of the best weights.
        metrics: metrics of the fit, by name and depth.

    Raises:
        EepolicyError: with the name that is missing, or the shape.
    """
    tensors = checkpoint.tensors
    check_tensors(tensors, "the checkpoint")
    shapes = {name: parameter.shape for name, parameter in heads.named_parameters()}
    expected: dict[str, torch.Size | None] = {f"best.{n}": shapes.get(n) for n in best}
    for name, shape in shapes.items():
        expected |= {f"weights.{name}": shape, f"step.{name}": None}
        expected |= {f"{key}.{name}": shape for key in ADAM_STATE[1:]}
    wrong = [
        name
        for name, shape in expected.items()
        if name not in tensors or shape not in (None, tensors[name].shape)
    ]
    wrong += [name for name in tensors if name not in expected]
    lengths = {name: len(values) for name, values in metrics.items()}
    if {name: len(values) for name, values in checkpoint.metrics.items()} != lengths:
        wrong.append("metrics")
    if wrong:
        raise EepolicyError(
            f"the checkpoint of the fit is damaged: {wrong[0]!r} is missing, unknown or of another "
            "shape; delete the checkpoint to begin again"
        )


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
