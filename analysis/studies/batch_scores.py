"""Scores of a policy's replies to a batch of questions, as work items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eepolicy import HookedModel
from eepolicy.analysis.evaluation.metrics import Recognizer, transcripts_of
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.speech.mel import SAMPLE_RATE


@dataclass(frozen=True)
class ScoreItem:
    """What to score.

    Attributes:
        number: number of the batch.
        policy: spec string.
        questions: dicts with `question` and `keys`.
    """

    number: int
    policy: str
    questions: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class BatchScores:
    """Scores of a batch.

    Attributes:
        number: number of the batch.
        rows: for each question `wer` (at most 1), `right`, `calls`, `tokens`.
    """

    number: int
    rows: list[dict[str, float]]


@dataclass(frozen=True)
class BatchScorer:
    """Generates replies, transcribes and scores them.

    Attributes:
        model: model that speaks.
        asr: speech recognition.
        max_new_tokens: maximum length of a reply.
    """

    model: HookedModel
    asr: Recognizer
    max_new_tokens: int

    def __call__(self, item: ScoreItem) -> BatchScores:
        """Score the replies of an item."""
        texts = [question["question"] for question in item.questions]
        outputs = self.model.generate(texts, item.policy, self.max_new_tokens, do_sample=False)
        transcripts = transcripts_of(self.asr, [output.audio_at(SAMPLE_RATE) for output in outputs])
        rows = []
        for question, output, transcript in zip(item.questions, outputs, transcripts, strict=True):
            errors, words = word_errors(output.text or "", transcript)
            rows.append(
                {
                    "wer": min(1.0, errors / words) if words else float(errors > 0),
                    "right": float(is_right(transcript, question["keys"])),
                    "calls": int(output.trace.layer_calls.sum()),
                    "tokens": len(output.trace),
                }
            )
        return BatchScores(item.number, rows)


def make_scorer(
    load: Callable[[], HookedModel], load_asr: Callable[[], Recognizer], max_new_tokens: int
) -> BatchScorer:
    """Load the models of a worker.

    Args:
        load: loads the model.
        load_asr: loads speech recognition.
        max_new_tokens: maximum length of a reply.
    """
    torch.set_num_threads(1)  # a process per core
    return BatchScorer(load(), load_asr(), max_new_tokens)
