"""The steps of a comparison: decode, process speech at the same time, time, and judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Protocol, TypeVar

import torch

from eepolicy.analysis.evaluation.formats import (
    JudgementLine,
    RatingLine,
    RecordLine,
    SpeechLine,
)
from eepolicy.analysis.evaluation.measure import Blocks, DecodeItem, ReplyKey, reply_key
from eepolicy.analysis.evaluation.metrics import MetricsSource
from eepolicy.analysis.evaluation.preflight import preflight
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.sound import Clip, SoundItem, SoundResult, SoundStage
from eepolicy.analysis.evaluation.stage import (
    Decoder,
    DecoderSource,
    SoundSource,
    Stage,
    StageResult,
    StageWorkers,
)
from eepolicy.analysis.evaluation.timing import Timer
from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.io import write_bytes
from eepolicy.modality import TokenLayout
from eepolicy.model.threads import one_thread
from eepolicy.speech.vocoders import required_vocoder

T = TypeVar("T")


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

    Workers synthesize, transcribe and rate the speech of what is decoded.  They also decode if they
    can load the model; otherwise this process decodes.  Replies are timed by this process alone.
    Only this process writes, and each result is on disk as soon as it is there.

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
        load = cache(self.metrics.load)
        self._check_rater()
        if self._lacks_replies():
            preflight(self.model, load())
        make = partial(
            Stage,
            DecoderSource.of(self.blocks, self.model),
            SoundSource(self.model.vocoder, self.metrics),
        )
        own = Stage(
            lambda: Decoder(self.model, self.blocks),
            lambda: SoundStage(required_vocoder(self.model.vocoder), load()),
        )
        spread = config.worker_config
        with spread.start(make, own) as workers:
            with one_thread(config.load is not None and spread.spreads):
                self._decode(workers)
            for _ in timer.run(self.folder, partial(self.progress, "replies timed")):
                for result in workers.completed():
                    self._store(result)
            results = workers.finish()
            for _ in self.progress("batches of speech", range(len(workers))):
                self._store(next(results))
        self._judge()

    def _check_rater(self) -> None:
        """Check that stored ratings are those of the rater of this run, if it has one."""
        others = {line.rater for line in self.folder.lines(RatingLine)}
        if self.metrics.rates and others - {self.metrics.rater_name}:
            raise EepolicyError(
                f"{self.folder.path} has ratings of {', '.join(sorted(others))}, and this run has "
                f"the rater {self.metrics.rater_name}: give another folder, or the same rater"
            )

    def _lacks_replies(self) -> bool:
        done = {reply_key(line) for line in self.folder.lines(RecordLine)}
        items = self.blocks.items()
        return any(key not in done for item in items for key in self.blocks.keys(item))

    def _decode(self, workers: StageWorkers) -> None:
        """Decode missing replies; hand the speech of each item to the workers."""
        done = {reply_key(line): line for line in self.folder.lines(RecordLine)}
        rated = self.blocks.config.rated if self.metrics.rates else 0
        speech = SpeechQueue(self.blocks, self.model.layout, self.folder, rated)
        items = self.blocks.items()
        decoder = self._decoder(workers, [i for i in items if self._lacks(i, done)])
        for item in self.progress("batches decoded", items):
            while self._lacks(item, done):
                self._store(decoder(item), done)
            if self.model.vocoder is not None:
                speech.submit(item, [done[key] for key in self.blocks.keys(item)], workers)
            for result in workers.completed():
                self._store(result, done)

    def _lacks(self, item: DecodeItem, done: Mapping[ReplyKey, RecordLine]) -> bool:
        return any(key not in done for key in self.blocks.keys(item))

    def _decoder(
        self, workers: StageWorkers, missing: Sequence[DecodeItem]
    ) -> Callable[[DecodeItem], StageResult]:
        """What gives the next result while an item is missing.

        Args:
            workers: workers, which decode if they can load the model.
            missing: all items to decode, in order.
        """
        if self.blocks.config.load is None:
            return Decoder(self.model, self.blocks)
        ahead = iter(missing)
        # enough that none waits, and few enough that speech is processed between them
        window = 2 * workers.size + 2

        def next_result(_: DecodeItem) -> StageResult:
            for item in islice(ahead, max(0, window - len(workers))):
                workers.submit(item)
            return workers.next()

        return next_result

    def _store(self, result: StageResult, done: dict[ReplyKey, RecordLine] | None = None) -> None:
        """Write a result to the folder.

        Args:
            result: the result of an item.
            done: stored replies; those of the result are added.
        """
        if isinstance(result, SoundResult):
            for file, sound in result.sounds:
                write_bytes(file, sound)
            if result.speech.clips:
                self.folder.append([result.speech])
            self.folder.append(result.ratings)
        elif done is not None:
            # a batch is decoded as a whole, though a stopped run may have stored a part of it
            new = {key: line for line in result.lines if (key := reply_key(line)) not in done}
            self.folder.append(list(new.values()))
            done |= new

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
        self, item: DecodeItem, replies: Sequence[RecordLine], workers: StageWorkers
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
