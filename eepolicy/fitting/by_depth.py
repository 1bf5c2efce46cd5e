"""Fit the heads of one depth after another: the memory is that of one head."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.depth_fit import DepthFitter, FitData, FitterSource
from eepolicy.fitting.identity import model_identity
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.trainer import digest_of
from eepolicy.folder_lock import locked
from eepolicy.heads.files import load_heads, read_notes
from eepolicy.heads.fitted import KINDS, FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.io import as_json, write_bytes
from eepolicy.model.threads import one_thread
from eepolicy.probing.documents import Document
from eepolicy.workers import OrderedWorkers, WorkerConfig


def fit_by_depth(
    model: HookedModel,
    train: Sequence[Document],
    held_out: Sequence[Document],
    config: FitConfig,
    folder: str | Path,
    *,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    workers: WorkerConfig | int = 0,
    load: Callable[[], HookedModel] | None = None,
) -> FitResult:
    """Fit as `fit` does, one depth after another, or a depth on each worker.

    The losses of the depths do not depend on each other, so only the number of epochs of a depth
    can differ.  The model passes over the replies once for each depth and epoch.

    Args:
        model: model whose depths get heads.
        train: replies to fit on.
        held_out: replies on which the best weights are chosen.
        config: options.
        folder: folder for the heads of finished depths, and for checkpoints.  A stopped fit resumes
            from it.  Delete it when the heads are saved.
        report: receives a line after each epoch.
        progress: wraps the batches of an epoch, or with workers the depths, to show progress.
        workers: processes that help; a number for processes of this machine.  The weights are
            those of one process with one thread.
        load: loads the model in a worker; without it no worker helps.  Workers must be able to
            pickle it.

    Raises:
        EepolicyError: see `fit`; or the folder belongs to another fit, or another process works on
            it.

    Examples:
        >>> from eepolicy.fitting import FitConfig, fit_by_depth, generate_replies
        >>> import tempfile
        >>> model = eepolicy.load("pocket")
        >>> questions = [q["question"] for q in eepolicy.held_out("dev")[:6]]
        >>> replies = generate_replies(model, questions, max_new_tokens=40)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = fit_by_depth(
        ...         model, replies[:4], replies[4:], FitConfig(depths=(8, 12), epochs=1),
        ...         folder,
        ...     )
        >>> result.heads
        TunedLens(depths 8, 12)
    """
    folder = Path(folder)
    depths = config.depths or KINDS.get(config.kind).default_depths(model.depth)
    replies = {"train": digest_of(train), "held_out": digest_of(held_out)}
    files = {depth: folder / f"depth-{depth}.safetensors" for depth in depths}
    with locked(folder):
        for depth, file in files.items():
            if file.is_file():
                _check(file, model, replace(config, depths=(depth,)), replies)
        missing = [depth for depth, file in files.items() if not file.is_file()]
        spread = WorkerConfig.of(workers if len(missing) > 1 else 0)
        data = FitData(tuple(train), tuple(held_out), config, replies)
        if load is None or not spread.spreads:
            fitter = DepthFitter(model, data, folder, report, progress)
            for depth in missing:
                report(f"depth {depth}, {depths.index(depth) + 1} of {len(depths)}")
                write_bytes(files[depth], fitter(depth).file)
        else:
            own = DepthFitter(model, data, folder)
            # nodes of a cluster may not have the folder
            source = FitterSource(load, data, folder if spread.ray is None else None)
            with one_thread(), OrderedWorkers(spread, source, own) as started:
                results = started.run(missing)
                for depth in progress(missing):
                    fitted = next(results)
                    write_bytes(files[depth], fitted.file)
                    for line in fitted.lines:
                        report(f"depth {depth}: {line}")
                    for message in fitted.warnings:
                        warnings.warn(message, stacklevel=2)
        for file in files.values():
            file.with_suffix(".checkpoint").unlink(missing_ok=True)
        heads = {
            depth: load_heads(file, model.lens, model.model).at(depth)
            for depth, file in files.items()
        }
        notes = [read_notes(file)["notes"] for file in files.values()]
    return FitResult(FittedHead(heads), _joined(notes, config))


def _check(file: Path, model: HookedModel, config: FitConfig, replies: dict[str, str]) -> None:
    """Check that the head of a finished depth is of the same fit.

    Raises:
        EepolicyError: it is not.
    """
    stored = read_notes(file)
    expected = model_identity(model, model.layout) | as_json(
        {"fitting": asdict(config), "digests": replies}
    )
    notes = stored["notes"] | {"model": stored["model"]}
    if {name: notes.get(name) for name in expected} != expected:
        raise EepolicyError(
            f"{file} belongs to a fit with another model, other replies or other options; delete "
            f"{file.parent}, or give another file"
        )


def _joined(notes: Sequence[dict[str, Any]], config: FitConfig) -> dict[str, Any]:
    """Notes of all depths as `fit` writes them; the epochs are those of the longest fit."""
    return {
        "fitting": asdict(config),
        "replies": notes[0]["replies"],
        "held_out_replies": notes[0]["held_out_replies"],
        "epochs": max(n["epochs"] for n in notes),
        **{
            when: {
                name: [value for n in notes for value in n[when][name]] for name in notes[0][when]
            }
            for when in ("before", "after")
        },
    }
