"""How long a run of the leaderboard takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eepolicy.analysis.evaluation.formats import RecordLine
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.rows import parse_row

#: wall-clock seconds per reply on the machine of the docs, decoding, timing and speech recognition
#: included: 800 replies of `eepolicy compare` took 314 s
SECONDS_PER_REPLY = 0.39


def replies_left(
    folder: RunFolder, questions: Sequence[Mapping[str, Any]], rows: Sequence[str]
) -> int:
    """Count the replies that a run still has to decode.

    Args:
        folder: folder of the run, which need not exist.
        questions: dicts with `question`.
        rows: rows as `parse_row` reads them.
    """
    done = {(line.question, line.policy) for line in folder.lines(RecordLine)}
    specs = [parse_row(row).spec for row in rows]
    return sum((q["question"], spec) not in done for q in questions for spec in specs)


def estimated_seconds(replies: int, ratio: float) -> float:
    """Estimate the wall-clock time of a run.

    Args:
        replies: number of replies to decode.
        ratio: time of the reference loop over that of the machine of the docs, see
            `ReferenceTime.all_threads_ratio`.

    Examples:
        >>> estimated_seconds(100, 2.0) == 200 * SECONDS_PER_REPLY
        True
    """
    return replies * SECONDS_PER_REPLY * ratio


def minutes(seconds: float) -> str:
    """A time in whole minutes, in words.

    Examples:
        >>> minutes(20), minutes(90.0), minutes(5400)
        ('less than a minute', '2 minutes', '90 minutes')
    """
    whole = round(seconds / 60)
    if seconds < 60:
        return "less than a minute"
    return f"{whole} minute" + ("" if whole == 1 else "s")
