"""Run a probe: one teacher-forced pass of each document, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice, tee
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.errors import EepolicyError
from eepolicy.folder_lock import locked
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.probing.attention import AttentionReader
from eepolicy.probing.documents import LABELS, Document
from eepolicy.probing.plan import ProbePlan
from eepolicy.probing.readout import Readouts, StateReader, States
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.store import Columns, FolderStore, MemoryStore

#: tokens that run through the layers together
BLOCK = 256


class DocumentReader:
    """Reads documents out: a document becomes columns, (readouts, ...) each.

    Args:
        backbone: model whose layers are probed.  Where the plan's heads have branches, they are its
            own heads.
        plan: what to read out and keep.
        layout: vocabulary and chunks, for the labels.
        executor: compiled layers, whose kernels also compute the statistics; None runs the
            model's own layers, whose attention can be read.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: ProbePlan,
        layout: TokenLayout,
        executor: CompiledExecutor | None = None,
    ) -> None:
        self.backbone, self.plan, self.layout, self.executor = backbone, plan, layout, executor
        self.states = StateReader(backbone, plan, layout, executor.run if executor else None)

    @torch.no_grad()
    def __call__(self, document: Document) -> Columns:
        """The readouts of a document with their labels."""
        labels = document.labels(self.layout, self.backbone.depth)
        return self._read(document) | dict(zip(LABELS, labels, strict=True))

    def given(self, document: Document) -> dict[str, Tensor]:
        """The given ids that the statistics read, by name."""
        vocabulary = self.backbone.vocab_size
        return {name: document.given_ids(name, vocabulary) for name in self.plan.given}

    def _read(self, document: Document) -> Columns:
        backbone, (start, end) = self.backbone, document.span
        given = self.given(document)
        ids = document.tokens.to(backbone.device)
        inputs = document.inputs.to(backbone.device)
        following = torch.cat([ids[1:], ids.new_tensor([-1])])
        branches = tuple(d for d in self.plan.heads.branch_depths if d in self.plan.depths)
        options = BatchOptions(branch_depths=branches)
        batch = Batch(backbone, [0], end, options, executor=self.executor)
        attention = None
        if self.plan.of_attention:
            attention = AttentionReader(self.layout.is_speech(ids[:end]))
        parts: list[dict[str, Tensor]] = []
        for first in range(0, end, BLOCK):
            stop = min(first + BLOCK, end)
            skipped = max(start - first, 0)  # positions of the prompt need no readout
            states, masses = _run_block(batch, inputs[first:stop], self.plan, skipped, attention)
            after = {depth: batch.run_branch([0], depth)[0, skipped:] for depth in branches}
            if stop > start:
                rows = slice(first + skipped - start, stop - start)
                own = {name: each[rows].to(backbone.device) for name, each in given.items()}
                here = following[first + skipped : stop]
                parts.append(self.states.read(Readouts(states, here, after, own, masses)))
        names = parts[0] if parts else ()
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in names}


def _extra(reader: DocumentReader, document: Document) -> bytes:
    """What a document has beside its tokens, for the digest of a stored probe."""
    parts = [ids.cpu().numpy() for ids in reader.given(document).values()]
    if document.depth is not None:
        parts.append(np.asarray(document.depth, np.int64))
    if document.embeddings is not None:
        parts.append(document.embeddings.float().cpu().numpy())
    return b"".join(part.tobytes() for part in parts)


def run_probe(
    reader: DocumentReader,
    documents: Iterable[Document],
    save: str | Path | None = None,
    read: Callable[[Iterable[Document]], Iterator[Columns]] | None = None,
    progress: Callable[[Iterator[Document]], Iterable[Document]] = iter,
) -> ProbeResult:
    """Probe documents; `eepolicy.probe` is the public function.

    Args:
        reader: reads a document out.
        documents: documents to probe.
        save: folder to write to; None keeps the result in memory.
        read: gives the columns of documents, in their order; None for the reader, one by one.
        progress: wraps the documents; a document is finished when the next one is taken.

    Returns:
        Labelled statistics, (depths, tokens) each.  The result has no tokenizer yet.

    Raises:
        EepolicyError: no documents, or a folder with another probe.
    """
    backbone, plan = reader.backbone, reader.plan
    with nullcontext() if save is None else locked(save):
        store = (
            MemoryStore()
            if save is None
            else FolderStore(save, plan.identity(backbone, reader.layout))
        )
        to_read, shown = tee(documents)
        results = (read or partial(map, reader))(islice(to_read, store.documents, None))
        number = -1
        for number, document in enumerate(progress(shown)):
            if store.skip(document.tokens.cpu().numpy(), document.prompt, _extra(reader, document)):
                continue
            columns = next(results)
            columns["document"] = np.full(len(columns["token"]), number)
            store.add(columns)
        if number < 0:
            raise EepolicyError("there is nothing to probe: the inputs contain no document")
        store.finish()
        return ProbeResult.of(backbone, plan, store.columns())


def _run_block(
    batch: Batch, inputs: Tensor, plan: ProbePlan, skipped: int, attention: AttentionReader | None
) -> tuple[States, States]:
    """Run ids (tokens,), or embeddings (tokens, width), through all layers.

    Returns:
        Hidden states of the positions after the skipped ones, of the depths that the plan uses and
        0; and their attention, (positions, heads, modalities), by depth, with a reader.
    """
    depths = plan.state_depths(batch.full_depth)
    block = batch.begin_block(inputs[None])
    states: States = {0: block.hidden[0, skipped:]}
    masses: States = {}
    for depth in range(1, max(depths) + 1):
        with attention or nullcontext():
            batch.run(block, depth)
        if attention is not None and depth in plan.depths:
            masses[depth] = attention.take(depth)[0, skipped:]
        if depth in depths:
            states[depth] = block.hidden[0, skipped:]
    return states, masses
