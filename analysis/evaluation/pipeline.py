"""The steps of a comparison: decode, process speech at the same time, time, and judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch

from eepolicy.analysis.evaluation.formats import (
    JudgementLine,
    RatingLine,
    RecordLine,
    SpeechLine,
)
from eepolicy.analysis.evaluation.measure import Blocks, DecodeItem, decode, reply_key
from eepolicy.analysis.evaluation.metrics import MetricsSource
from eepolicy.analysis.evaluation.preflight import preflight
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.sound import Clip, SoundItem, SoundResult, make_stage
from eepolicy.analysis.evaluation.timing import Timer
from eepolicy.hooked import HookedModel
from eepolicy.modality import TokenLayout
from eepolicy.workers import Workers

T = TypeVar("T")
SoundWorkers = Workers[SoundItem, SoundResult]


class Progress(Protocol):
    """Shows the progress of a step."""

    def __call__(self, label: str, items: Iterable[T], /) -> Iterable[T]:
        """Wrap the items of a step; the label says what they are."""


def no_progress(label: str, items: Iterable[T], /) -> Iterable[T]:
    """Show nothing."""
    return items


@dataclass(frozen=True)
class Pipeline:
    """Measures what a run folder lacks.

    This process decodes.  Worker processes synthesize, transcribe and rate the speech of what is
    decoded.  Each result is on disk before the next one of its step.

    Attributes:
        model: model that replies.
        blocks: questions, policies and settings.
        folder: folder of the run.
        metrics: loads the models that score replies.
        progress: see `Progress`.
    """

    model: HookedModel
    blocks: Blocks
    folder: RunFolder
    metrics: MetricsSource
    progress: Progress

    def run(self) -> None:
        """Run all steps."""
        config = self.blocks.config
        timer = Timer(self.model, self.blocks.questions, self.blocks.rows, config)
        if self._lacks_replies():
            preflight(self.model, self.metrics.load())
        make = partial(make_stage, self.model.vocoder, self.metrics)
        processes = config.workers if self.model.vocoder is not None else 0
        with SoundWorkers(make, processes) as workers:
            self._decode(workers)
            for _ in timer.run(self.folder, partial(self.progress, "replies timed")):
                self._store_completed(workers)
            results = workers.finish()
            for _ in self.progress("batches of speech", range(len(workers))):
                self._store(next(results))
        self._judge()

    def _lacks_replies(self) -> bool:
        done = {reply_key(line) for line in self.folder.lines(RecordLine)}
        items = self.blocks.items()
        return any(key not in done for item in items for key in self.blocks.keys(item))

    def _decode(self, workers: SoundWorkers) -> None:
        """Decode missing replies; hand the speech of each item to the workers."""
        done = {reply_key(line): line for line in self.folder.lines(RecordLine)}
        rated = self.blocks.config.rated if self.metrics.rates else 0
        speech = SpeechQueue(self.blocks, self.model.layout, self.folder, rated)
        for item in self.progress("batches decoded", self.blocks.items()):
            keys = self.blocks.keys(item)
            if any(key not in done for key in keys):
                # a batch is decoded as a whole, though a stopped run may have stored a part of it
                lines = decode(self.model, self.blocks, item)
                new = {reply_key(line): line for line in lines if reply_key(line) not in done}
                self.folder.append(list(new.values()))
                done |= new
            if self.model.vocoder is not None:
                speech.submit(item, [done[key] for key in keys], workers)
            self._store_completed(workers)

    def _store_completed(self, workers: SoundWorkers) -> None:
        for result in workers.completed():
            self._store(result)

    def _store(self, result: SoundResult) -> None:
        if result.speech.clips:
            self.folder.append([result.speech])
        self.folder.append(result.ratings)

    def _judge(self) -> None:
        """Ask the judge about the replies without a score."""
        judge = self.metrics.judge
        if judge is None:
            return
        judged = {(j.question, j.policy, j.seed) for j in self.folder.lines(JudgementLine)}
        questions = {q["question"]: q for q in self.blocks.questions}
        missing = [
            record
            for (question, policy), records in self.folder.records().items()
            for record in records
            if question in questions and policy in self.blocks.policies
            if (question, policy, record.seed) not in judged
        ]
        for record in self.progress("replies judged", missing):
            question, transcript = questions[record.question], record.transcript
            reply = record.text if transcript is None else transcript
            line = JudgementLine(
                question=record.question,
                policy=record.policy,
                seed=record.seed,
                score=judge.judge(question, reply, is_transcript=transcript is not None),
            )
            self.folder.append([line])


class SpeechQueue:
    """Hands in the speech of decoded items, each distinct speech with the first item that has it.

    Args:
        blocks: questions, rows and settings.
        layout: tells the speech units of a reply.
        folder: folder of the run.
        rated: number of questions whose replies are rated.
    """

    def __init__(
        self, blocks: Blocks, layout: TokenLayout, folder: RunFolder, rated: int = 0
    ) -> None:
        self.blocks, self.layout, self.folder, self.rated = blocks, layout, folder, rated
        lines = folder.lines(SpeechLine)
        self._stored = {clip.speech for line in lines for clip in line.clips}
        self._rated = {line.speech for line in folder.lines(RatingLine)}
        self._seen: set[str] = set()

    def submit(
        self, item: DecodeItem, replies: Sequence[RecordLine], workers: SoundWorkers
    ) -> None:
        """Hand in what is missing of an item, if anything.

        Args:
            item: a decoded item; items come in the order of `Blocks.items`.
            replies: its replies.
            workers: workers that process speech.
        """
        clips = []
        for number, line in zip(self.blocks.numbers(item.block), replies, strict=True):
            if not line.speech or line.speech in self._seen:
                continue
            self._seen.add(line.speech)
            is_new = line.speech not in self._stored
            is_rated = number < self.rated and line.speech not in self._rated
            if is_new or is_rated:
                units = self.layout.units(torch.tensor(line.tokens)).tolist()
                file = self.folder.speech_file(line.speech)
                clips.append(Clip(line.speech, tuple(units), file, is_new, is_rated))
        if clips:
            workers.submit(SoundItem(tuple(clips)))
