"""Checkpoints of a fit, from which it resumes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.formats import CheckpointHeader, parse
from eepolicy.io import write_atomically


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
        try:
            with safe_open(file, "pt") as stored:
                metadata = json.loads((stored.metadata() or {})["fit"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            raise EepolicyError(f"{file} is not a checkpoint of a fit: {error}") from error
        header = parse(CheckpointHeader, metadata, str(file))
        checkpoint = cls(**header.model_dump(exclude={"version"}), tensors=tensors)
        if checkpoint.identity != identity:
            raise EepolicyError(
                f"the checkpoint {file} belongs to a fit with another model, other replies or "
                "other options; delete it, or give another file"
            )
        return checkpoint
