"""Fit the head of one depth, in this process or in a worker."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.identity import model_identity
from eepolicy.fitting.trainer import fit
from eepolicy.hooked import HookedModel
from eepolicy.probing.documents import Document


@dataclass(frozen=True)
class FitData:
    """What the fits of all depths share.

    Attributes:
        train: replies to fit on.
        held_out: replies on which the best weights are chosen.
        config: options.
        digests: hashes of the replies.
    """

    train: Sequence[Document]
    held_out: Sequence[Document]
    config: FitConfig
    digests: dict[str, str]


@dataclass(frozen=True)
class DepthResult:
    """The result of a depth.

    Attributes:
        file: content of the file of its heads.
        lines: what was reported.
        warnings: messages of warnings, if they were kept.
    """

    file: bytes
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class DepthFitter:
    """Fits the head of one depth.

    Attributes:
        model: the model.
        data: replies and options.
        folder: folder for checkpoints; None for no checkpoint.
        report: receives a line after each epoch; None keeps lines and warnings for the result.
        progress: wraps the batches of an epoch.
    """

    model: HookedModel
    data: FitData
    folder: Path | None
    report: Callable[[str], None] | None = None
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter

    def __call__(self, depth: int) -> DepthResult:
        if self.report is not None:
            return DepthResult(self._fit(depth, self.report))
        lines: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            file = self._fit(depth, lines.append)
        return DepthResult(file, lines, [str(each.message) for each in caught])

    def _fit(self, depth: int, report: Callable[[str], None]) -> bytes:
        data, config = self.data, replace(self.data.config, depths=(depth,))
        checkpoint = None if self.folder is None else self.folder / f"depth-{depth}.checkpoint"
        options: dict[str, Any] = {"report": report, "progress": self.progress}
        result = fit(
            self.model, data.train, data.held_out, config, checkpoint=checkpoint, **options
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "heads.safetensors"
            identity = model_identity(self.model, self.model.layout)
            notes = result.notes | {"digests": data.digests} | identity
            result.heads.save(file, self.model.model, notes)
            return file.read_bytes()


@dataclass(frozen=True)
class FitterSource:
    """Makes the fitter of a worker; it can be sent to other processes."""

    load: Callable[[], HookedModel]
    data: FitData
    folder: Path | None

    def __call__(self) -> DepthFitter:
        """Load the model."""
        torch.set_num_threads(1)  # a process per core
        return DepthFitter(self.load(), self.data, self.folder)
