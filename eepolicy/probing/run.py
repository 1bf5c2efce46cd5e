"""Run a probe: one teacher-forced pass of each document, in blocks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.errors import EepolicyError
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.probing.documents import LABELS, Document
from eepolicy.probing.plan import ProbePlan
from eepolicy.probing.readout import StateReader, States
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.store import Columns, FolderStore, MemoryStore

#: tokens that run through the layers together
BLOCK = 256


@torch.no_grad()
def run_probe(
    backbone: Backbone,
    documents: Iterable[Document],
    plan: ProbePlan,
    layout: TokenLayout,
    save: str | Path | None = None,
    executor: CompiledExecutor | None = None,
) -> ProbeResult:
    """Probe documents; `eepolicy.probe` is the public function.

    Args:
        backbone: model whose layers are probed.  Where the plan's heads have branches, they are its
            own heads.
        documents: documents to probe, run one by one.
        plan: what to read out and keep.
        layout: vocabulary and chunks, for the labels.
        save: folder to write to; None keeps the result in memory.
        executor: compiled layers, whose kernels also compute the statistics; None runs the
            model's own layers.

    Returns:
        Labelled statistics, (depths, tokens) each.  The result has no tokenizer yet.

    Raises:
        EepolicyError: no documents, or a folder with another probe.
    """
    store = MemoryStore() if save is None else FolderStore(save, plan.identity(backbone))
    reader = StateReader(backbone, plan, executor.run if executor else None)
    number = -1
    for number, document in enumerate(documents):
        if store.skip(document.tokens.cpu().numpy(), document.prompt):
            continue
        columns = _read_document(reader, document, executor)
        labels = document.labels(layout, backbone.depth)
        columns |= dict(zip(LABELS, labels, strict=True))
        columns["document"] = np.full(labels.shape[1], number)
        store.add(columns)
    if number < 0:
        raise EepolicyError("there is nothing to probe: the inputs contain no document")
    store.finish()
    return ProbeResult.of(backbone, plan, store.columns())


def _read_document(
    reader: StateReader, document: Document, executor: CompiledExecutor | None
) -> Columns:
    """The readouts of one document, (readouts, ...) each."""
    backbone, (start, end) = reader.backbone, document.span
    depths = reader.plan.state_depths(backbone.depth)
    ids = document.tokens.to(backbone.device)
    following = torch.cat([ids[1:], ids.new_tensor([-1])])
    branches = tuple(d for d in reader.plan.heads.branch_depths if d in reader.plan.depths)
    options = BatchOptions(branch_depths=branches)
    batch = Batch(backbone, [0], end, options, executor=executor)
    parts: list[dict[str, Tensor]] = []
    for first in range(0, end, BLOCK):
        stop = min(first + BLOCK, end)
        skipped = max(start - first, 0)  # positions of the prompt need no readout
        states = _run_block(batch, ids[first:stop], depths, skipped)
        after = {depth: batch.run_branch([0], depth)[0, skipped:] for depth in branches}
        if stop > start:
            parts.append(reader.read(states, following[first + skipped : stop], after))
    names = parts[0] if parts else ()
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in names}


def _run_block(batch: Batch, ids: Tensor, depths: set[int], skipped: int) -> States:
    """Run ids (tokens,) through all layers.

    Returns:
        Hidden states of the positions after the skipped ones, of the given depths and 0.
    """
    block = batch.begin_block(ids[None])
    states: States = {0: block.hidden[0, skipped:]}
    for depth in range(1, max(depths) + 1):
        batch.run(block, depth)
        if depth in depths:
            states[depth] = block.hidden[0, skipped:]
    return states
