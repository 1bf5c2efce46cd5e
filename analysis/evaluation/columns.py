"""The columns of a comparison: everything about a column stands here, in `COLUMNS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eepolicy.analysis.evaluation.records import Record
from eepolicy.errors import EepolicyError

Floats = NDArray[np.float64]


def one(_: Record) -> float:
    """Denominator of a mean over replies."""
    return 1.0


@dataclass(frozen=True)
class Column:
    """A column of a comparison: a sum over replies divided by another sum.

    With the default denominator it is the mean over replies.  A reply for which either function
    returns None does not count.

    Attributes:
        name: key in `results.json` and the CSV file; an identifier.
        heading: heading with its unit in all tables.
        numerator: a record's summand of the numerator.
        denominator: a record's summand of the denominator.
        scale: factor for display, such as 100 for a share in percent.
        digits: digits after the decimal point for display.
        optional: hide the column if nothing was measured; otherwise it shows "not measured".
        tested: show p-values of the differences from full depth in `results.md`.
        plot: `"quality"`: draw it against each cost; `"cost"`: draw the qualities against it.
        axis_label: label of its axis in figures; the heading by default.
        better: direction of a quality.
        short: slot in the short table of the terminal and the README; empty for none.  Of columns
            with the same slot, the first one that was measured is shown.
        relative: show the ratio of full depth over the ratio of the row, on the same questions.

    Raises:
        EepolicyError: the name is not an identifier, or a choice is unknown.

    Examples:
        >>> from eepolicy.analysis.evaluation.columns import COLUMNS, Column
        >>> speech = Column("speech_length", "speech, s", lambda record: record.speech_seconds)
        >>> columns = (*COLUMNS, speech)
    """

    name: str
    heading: str
    numerator: Callable[[Record], float | None]
    denominator: Callable[[Record], float | None] = one
    scale: float = 1.0
    digits: int = 2
    optional: bool = False
    tested: bool = False
    plot: Literal["quality", "cost"] | None = None
    axis_label: str = ""
    better: Literal["higher", "lower"] = "higher"
    short: str = ""
    relative: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise EepolicyError(f"the name of a column is an identifier; got {self.name!r}")
        if self.plot not in ("quality", "cost", None) or self.better not in ("higher", "lower"):
            raise EepolicyError(
                f"column {self.name}: plot is 'quality', 'cost' or None and better is 'higher' or "
                f"'lower'; got {self.plot!r} and {self.better!r}"
            )

    @property
    def label(self) -> str:
        """Label of the column's axis."""
        return self.axis_label or self.heading

    def sums(self, replies: Sequence[Sequence[Record]]) -> tuple[Floats, Floats]:
        """Sum numerators and denominators over the seeds of each prompt.

        Args:
            replies: records of each prompt, one per seed.

        Returns:
            Numerators and denominators, (prompts,) each.
        """
        sums = np.zeros((len(replies), 2))
        for prompt, records in enumerate(replies):
            for record in records:
                top, bottom = self.numerator(record), self.denominator(record)
                if top is not None and bottom is not None:
                    sums[prompt] += float(top), float(bottom)
        return sums[:, 0], sums[:, 1]


def _ms_per_later_token(record: Record) -> float | None:
    """Milliseconds of all tokens after the first one; None if there is none or no time."""
    if record.seconds is None or record.ttft is None or not _later_tokens(record):
        return None
    return 1000 * (record.seconds - record.ttft)


def _later_tokens(record: Record) -> int:
    """Number of tokens after the first one, of the reply that was timed."""
    return (record.timed_tokens or len(record.tokens)) - 1


#: the columns of `eepolicy compare`, in their order
COLUMNS = (
    Column(
        "accuracy_speech",
        "accuracy in speech, %",
        lambda r: r.right_speech,
        scale=100,
        digits=1,
        tested=True,
        plot="quality",
        short="accuracy",
    ),
    Column(
        "accuracy_text",
        "accuracy in text, %",
        lambda r: r.right_text,
        scale=100,
        digits=1,
        tested=True,
        plot="quality",
        short="accuracy",
    ),
    Column(
        "judge_score",
        "judge's score, %",
        lambda r: r.judge_score,
        scale=100,
        digits=1,
        optional=True,
        tested=True,
        plot="quality",
    ),
    Column(
        "wer",
        "WER, %",
        lambda r: r.errors,
        lambda r: r.words,
        scale=100,
        digits=1,
        tested=True,
        plot="quality",
        axis_label="word error rate, %",
        better="lower",
        short="wer",
    ),
    Column(
        "mos",
        "MOS",
        lambda r: r.mos,
        plot="quality",
        axis_label="predicted MOS (1 to 5)",
    ),
    Column(
        "speech_depth",
        "speech depth",
        lambda r: r.speech_layers,
        lambda r: r.speech_tokens,
        plot="cost",
        axis_label="mean speech depth, layers",
        short="depth",
    ),
    Column(
        "text_depth",
        "text depth",
        lambda r: r.text_layers,
        lambda r: r.text_tokens,
        short="depth",
    ),
    Column(
        "speedup",
        "speed-up",
        lambda r: r.seconds,
        relative=True,
        short="cost",
        axis_label="speed-up over full depth, ×",
    ),
    Column("layer_calls", "layer calls", lambda r: r.layer_calls, digits=0, short="cost"),
    Column(
        "seconds",
        "seconds",
        lambda r: r.seconds,
        tested=True,
        plot="cost",
        axis_label="seconds per reply",
    ),
    Column(
        "real_time_factor",
        "real-time factor",
        lambda r: r.seconds if r.speech_seconds else None,
        lambda r: r.speech_seconds,
    ),
    Column(
        "ttft",
        "TTFT, ms",
        lambda r: r.ttft,
        scale=1000,
        digits=1,
        optional=True,
    ),
    Column(
        "tpot",
        "TPOT, ms",
        _ms_per_later_token,
        _later_tokens,
        optional=True,
    ),
    Column(
        "repeats",
        "repeated units, %",
        lambda r: r.repeats,
        lambda r: max(0, r.speech_tokens - 1),
        scale=100,
        digits=1,
    ),
    Column("ended", "complete, %", lambda r: r.ended, scale=100, digits=0),
)


def check_columns(columns: Sequence[Column]) -> None:
    """Check that no name or heading occurs twice.

    Raises:
        EepolicyError: one does.
    """
    for field in ("name", "heading"):
        values = [getattr(column, field) for column in columns]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise EepolicyError(f"two columns have the {field} {twice!r}: give another one")


def shown_columns(
    results: Sequence[Mapping[str, Any]], columns: Sequence[Column] = COLUMNS
) -> list[Column]:
    """List the columns to show: all but optional ones without a measurement.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison.
    """
    return [c for c in columns if not c.optional or is_measured(results, c)]


def is_measured(results: Sequence[Mapping[str, Any]], column: Column) -> bool:
    """Check whether any row has a value in a column."""
    return any(row.get(column.name) is not None for row in results)
