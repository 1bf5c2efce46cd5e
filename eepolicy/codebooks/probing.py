"""Probing of the backbone: every layer reads out the first codebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from eepolicy.codebooks.frames import code_layout
from eepolicy.codebooks.output import CodebookOutput
from eepolicy.decode.recorder import Recorder
from eepolicy.errors import EepolicyError
from eepolicy.model.backbone import Backbone
from eepolicy.probing import Document, ProbeResult, recorded_document
from eepolicy.probing.plan import ProbeConfig, ProbePlan
from eepolicy.probing.run import DocumentReader, run_probe


def probe_frames(
    backbone: Backbone,
    outputs: Sequence[CodebookOutput],
    save: str | Path | None,
    options: dict[str, Any],
) -> ProbeResult:
    """Probe replies; see `HookedCodebookModel.probe`.

    Args:
        backbone: the backbone.
        outputs: replies.
        save: folder to write to; None keeps the result in memory.
        options: fields of `ProbeConfig`.

    Raises:
        EepolicyError: an option does not fit the model, or something else is to be probed.
    """
    names = [field.name for field in fields(ProbeConfig)]
    unknown = sorted(options.keys() - set(names))
    if unknown:
        raise EepolicyError(f"options of probe are {', '.join(names)}; got {', '.join(unknown)}")
    for output in outputs:
        if not isinstance(output, CodebookOutput):
            raise EepolicyError(f"probe takes outputs of generate; got {type(output).__name__}")
    config = ProbeConfig(**options)
    backbone = backbone.with_heads(config.heads)
    plan = ProbePlan.of(backbone, config)
    reader = DocumentReader(backbone, plan, code_layout(backbone.vocab_size))
    return run_probe(reader, documents_of(outputs), save)


def documents_of(outputs: Sequence[CodebookOutput]) -> Iterator[Document]:
    """The replies as documents of first codes after ids of the prompt."""
    for output in outputs:
        first = output.codes[:, 0]
        length = len(output.inputs) - len(first) + 1  # of the prompt
        prompt = output.prompt if len(output.prompt) == length else first.new_full((length,), -1)
        tokens = torch.cat([prompt, first])
        yield Document(tokens, length, output.trace.backbone.depth, output.inputs)


def with_records(
    backbone: Backbone, outputs: list[CodebookOutput], recorder: Recorder, plan: ProbePlan
) -> list[CodebookOutput]:
    """Attach the records of the backbone's layers that ran.

    Args:
        backbone: the backbone.
        outputs: all rows of a batch.
        recorder: states of the rows.
        plan: what to read out and keep.
    """
    layout, documents = code_layout(backbone.vocab_size), documents_of(outputs)
    return [
        replace(out, record=recorded_document(backbone, document, recorder, plan, layout, row))
        for row, (out, document) in enumerate(zip(outputs, documents, strict=True))
    ]
