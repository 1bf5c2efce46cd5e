"""Time replies: each alone, on a warm model, with the policies in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.formats import TimingLine
from eepolicy.analysis.evaluation.measure import prompt_of
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.rows import Row
from eepolicy.hooked import HookedModel

#: largest number of times that a reply is decoded until no kernel was compiled meanwhile
MAX_TRIES = 5
#: wraps (number of the question, row), to show progress
TimingProgress = Callable[[Iterable[tuple[int, Row]]], Iterable[tuple[int, Row]]]


@dataclass(frozen=True)
class Timer:
    """Times the first questions of a comparison with every policy.

    Quality needs hundreds of questions, time does not: a speed-up differs little between
    questions.  So only a sample is decoded again, as a user would decode: one reply at a time.
    Each question starts with another policy.  A change in the speed of the machine then affects
    all policies alike.

    Attributes:
        model: model that replies.
        questions: questions of the comparison.
        rows: rows of the comparison.
        config: settings of the run.
    """

    model: HookedModel
    questions: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]
    config: RunConfig

    def missing(self, folder: RunFolder) -> list[tuple[int, Row]]:
        """Number of the question and row of each time that is not stored, in order.

        A run that was stopped has times of some rows of one question.  If several questions lack a
        row, the row is new: all rows of these questions are timed again, so that times which are
        compared were taken in turns.
        """
        done = {(line.question, line.policy) for line in folder.lines(TimingLine)}
        timed = [question["question"] for question in self.questions[: self.config.timed]]
        stored = [[(question, row.spec) in done for row in self.rows] for question in timed]
        again = sum(any(times) and not all(times) for times in stored) > 1
        count = len(self.rows)
        return [
            (i, self.rows[row])
            for i, times in enumerate(stored)
            for row in ((i + turn) % count for turn in range(count))
            if not times[row] or (again and not all(times))
        ]

    def run(self, folder: RunFolder, progress: TimingProgress = iter) -> Iterator[TimingLine]:
        """Time what is missing, store each time, and yield it.

        Args:
            folder: folder of the run.
            progress: wraps the replies.
        """
        missing = self.missing(folder)
        for row in {row.spec: row for _, row in missing}.values():
            self._decode(0, row)  # compiles kernels and fills caches
        for i, row in progress(missing):
            line = self._decode(i, row)
            folder.append([line])
            yield line

    def _decode(self, i: int, row: Row) -> TimingLine:
        """Decode one reply; again if its time contains that of compiling a kernel."""
        question = self.questions[i]
        options = self.config.generate_options(row, timed=True)
        if self.config.sampling:
            options["seed"] = [0]  # the reply of the first seed, as it was decoded in its batch
        for _ in range(MAX_TRIES):
            before = self._kernels(options)
            [output] = self.model.generate([prompt_of(question)], **options)
            if self._kernels(options) == before:
                break
        return TimingLine(
            question=question["question"],
            policy=row.spec,
            seconds=output.seconds,
            ttft=output.ttft,
            tokens=len(output.tokens),
        )

    def _kernels(self, options: Mapping[str, Any]) -> int:
        """Number of kernels that were compiled so far."""
        executor = self.model.compiled_executor() if options["config"].compile else None
        return executor.kernels if executor else 0
