"""Decode the questions of a comparison: work items, and the record of each reply."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.formats import RecordLine
from eepolicy.analysis.evaluation.rows import Row
from eepolicy.decode.output import Output
from eepolicy.hooked import HookedModel

#: what identifies a reply: question, policy, seed, and whether the question was spoken
ReplyKey: TypeAlias = tuple[str, str, int, bool]


@dataclass(frozen=True)
class DecodeItem:
    """The replies of one policy to a block of questions.

    Attributes:
        block: number of the block.
        policy: spec string of the row.
        seed: seed of sampling.
    """

    block: int
    policy: str
    seed: int


@dataclass(frozen=True)
class Blocks:
    """Questions in blocks, and what is decoded of them.

    A block is a fixed range of question numbers.  So the rows of a batch do not depend on the
    time, on a stop, or on the number of workers.

    Attributes:
        questions: dicts with `question` and optionally `audio`.
        rows: rows of the comparison, full depth first.
        config: settings of the run.
    """

    questions: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]
    config: RunConfig

    @property
    def policies(self) -> list[str]:
        """Spec strings of the rows."""
        return [row.spec for row in self.rows]

    @property
    def number(self) -> int:
        """Number of blocks."""
        return -(-len(self.questions) // self.config.batch)

    def items(self) -> list[DecodeItem]:
        """All items: by block, seed and row."""
        blocks, seeds = range(self.number), range(self.config.seeds)
        rows = self.policies
        return [DecodeItem(b, policy, seed) for b in blocks for seed in seeds for policy in rows]

    def numbers(self, block: int) -> range:
        """Numbers of the questions of a block."""
        first = block * self.config.batch
        return range(first, min(first + self.config.batch, len(self.questions)))

    def keys(self, item: DecodeItem) -> list[ReplyKey]:
        """Keys of the replies of an item."""
        questions = (self.questions[number] for number in self.numbers(item.block))
        return [(q["question"], item.policy, item.seed, bool(q.get("audio"))) for q in questions]


def decode(model: HookedModel, blocks: Blocks, item: DecodeItem) -> list[RecordLine]:
    """Decode the replies of an item.

    The replies are one batch.  Sampled replies have random numbers of their own, so each is the one
    that its question gets alone with this seed, up to rounding.

    Args:
        model: model that replies.
        blocks: questions, policies and settings.
        item: what to decode.

    Returns:
        The record of each question of the block.
    """
    config = blocks.config
    row = next(row for row in blocks.rows if row.spec == item.policy)
    questions = [blocks.questions[number] for number in blocks.numbers(item.block)]
    options = config.generate_options(row) | {"seed": [item.seed] * len(questions)}
    outputs = model.generate([prompt_of(question) for question in questions], **options)
    reads_aloud = model.card is not None and model.card.reads_aloud
    return [
        record_line(output, question, item, reads_aloud)
        for output, question in zip(outputs, questions, strict=True)
    ]


def prompt_of(question: Mapping[str, Any]) -> str | Path:
    """Prompt of a question: its sound file if it is spoken, otherwise its text."""
    return Path(question["audio"]) if question.get("audio") else str(question["question"])


def record_line(
    output: Output, question: Mapping[str, Any], item: DecodeItem, reads_aloud: bool = False
) -> RecordLine:
    """The record of one reply.

    Args:
        output: the reply.
        question: its question.
        item: what was decoded.
        reads_aloud: the speech should say the text of the question; otherwise that of the reply.
    """
    trace = output.trace
    return RecordLine(
        question=question["question"],
        policy=item.policy,
        seed=item.seed,
        spoken=bool(question.get("audio")),
        text=str(question["question"]) if reads_aloud else output.text or "",
        ended=output.ended,
        layer_calls=int(trace.layer_calls.sum()),
        readouts=int(trace.readouts.sum()),
        tokens=output.tokens.tolist(),
        depths=(trace.depth + trace.branch_calls).tolist(),
        modalities=trace.modality.tolist(),
        speech=speech_key(output.units) if output.has_audio else "",
    )


def reply_key(line: RecordLine) -> ReplyKey:
    """Key of a stored reply."""
    return line.question, line.policy, line.seed, line.spoken


def speech_key(units: Tensor) -> str:
    """Key of a speech: equal units have equal sound.

    Args:
        units: (units,) speech units.
    """
    return hashlib.sha256(",".join(map(str, units.tolist())).encode()).hexdigest()[:16]
