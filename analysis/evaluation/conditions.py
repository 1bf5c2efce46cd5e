"""How the replies of a run were decoded, in words."""

from __future__ import annotations

from typing import Any

from eepolicy.analysis.evaluation.formats import TimingLine
from eepolicy.analysis.evaluation.records import RunFolder


def conditions(folder: RunFolder) -> str:
    """Describe how quality and time of a run were measured.

    Args:
        folder: folder of the run.
    """
    identity, notes = folder.read()
    decoding, batch = identity.get("decoding", {}), identity.get("batch")
    compiled = decoding.get("compile", False)
    how = "one by one" if batch in (None, 1) else f"in batches of {batch} questions"
    sentence = f"Quality: replies were decoded {how}, {_layers(compiled)}."
    timed = len({line.question for line in folder.lines(TimingLine)})
    if not timed:
        return f"{sentence} Time was not measured."
    layers = _layers(compiled or identity.get("compile_timed", False))
    threads = identity.get("threads", 1)
    return (
        f"{sentence} Time: the replies to {timed} question{'s' * (timed > 1)} were decoded again, "
        f"one at a time, with the policies in turns, {layers}, on {threads} "
        f"thread{'s' * (threads > 1)}{_beside(identity, notes)}."
    )


def _beside(identity: dict[str, Any], notes: dict[str, Any]) -> str:
    """What other processes did while replies were timed."""
    transcribed = identity.get("speech recognition") and notes.get("workers")
    return ", while other processes transcribed speech" if transcribed else ""


def _layers(compiled: bool) -> str:
    return "with compiled layers" if compiled else "without compiling"
