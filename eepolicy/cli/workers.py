"""Options of commands that spread their work, and the model that workers load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psutil
import typer

from eepolicy.cli.options import load_model
from eepolicy.cli.shared import print_note
from eepolicy.machine import within_container
from eepolicy.workers import WorkerConfig

if TYPE_CHECKING:
    from eepolicy.hooked import HookedModel
    from eepolicy.prompts import Voice

WORKERS_PANEL = "Options of workers"

WorkersOption = Annotated[
    int | None,
    typer.Option(
        help="number of processes that help, with 0 for none; by default one less than the cores, "
        "at least 1, or all of the Ray cluster",
        min=0,
        rich_help_panel=WORKERS_PANEL,
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="address of a Ray cluster whose workers help, as HOST:PORT or 'auto'; 'local' starts "
        "one on this machine",
        rich_help_panel=WORKERS_PANEL,
    ),
]
GpusOption = Annotated[
    float,
    typer.Option(
        "--gpus-per-worker",
        help="GPUs of each worker of the Ray cluster; a fraction shares a GPU",
        min=0,
        rich_help_panel=WORKERS_PANEL,
    ),
]


def connected(config: WorkerConfig) -> WorkerConfig:
    """The config, after connecting to its Ray cluster and printing the link to the dashboard.

    Raises:
        EepolicyError: Ray is not installed, or there is no cluster at the address.
    """
    dashboard = config.connect()
    if dashboard is not None:
        print_note(f"The dashboard of the Ray cluster is at {dashboard}")
    return config


@dataclass(frozen=True)
class ModelSource:
    """Loads the model of a command in a worker; it can be sent to other processes.

    Attributes:
        name: name, folder or Hub id of the model.
        dtype: its data type.
        device: its device.
        heads: file of exit heads; None for those of the model.
        predictor: file of an exit predictor; None for none.
        voice: recording whose voice the model imitates; None for none.
    """

    name: str
    dtype: str = "auto"
    device: str = "cpu"
    heads: str | None = None
    predictor: Path | None = None
    voice: Voice | None = None

    def load(self) -> HookedModel:
        """Load the model for one thread."""
        model = load_model(self.name, self.dtype, self.device, 1, self.heads, self.predictor)
        model.voice = self.voice
        return model

    def for_workers(
        self, model: HookedModel, config: WorkerConfig, least: int = 1
    ) -> Callable[[], HookedModel] | None:
        """`load` if it is useful that workers run the model, otherwise None.

        On a Ray cluster it is.  On this machine it is on a CPU, if the memory suffices for the
        models of all workers.  A note says why workers that the user asks for do not run the model.

        Args:
            model: the model in the calling process.
            config: where work runs.
            least: number of worker processes from which on it is useful.
        """
        if config.ray is not None:  # a worker sees its own GPUs only, and counts them from 0
            return replace(self, device=self.device.partition(":")[0]).load
        size = sum(weight.nbytes for weight in model.model.parameters())
        reason, free = "", within_container(psutil.virtual_memory().available)
        if model.device.type != "cpu":
            reason = f"it is on the device {model.device}"
        elif config.processes * size >= free / 2:
            reason = "their models would take more than half of the free memory"
        if reason and config.number and config.number >= least:
            print_note(f"The {config.number} workers do not run the model: {reason}")
        return None if reason or config.processes < least else self.load
