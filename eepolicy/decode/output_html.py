"""A reply in a notebook: its text, a player of its speech, and the depth of each position."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from torch import Tensor

from eepolicy.html import SPEECH_COLOUR, TEXT_COLOUR, audio_player, or_error, paragraph
from eepolicy.modality import Modality
from eepolicy.speech.audio import audio_bytes
from eepolicy.trace import DraftStatus, Trace

COLOURS = {Modality.TEXT: TEXT_COLOUR, Modality.SPEECH: SPEECH_COLOUR}
#: tokens in one row of the strip, and tokens that it shows at most
ROW_TOKENS, MAX_TOKENS = 96, 960
#: width of a token, height at full depth, and distance of the rows, in pixels
CELL, HEIGHT, GAP = 7, 40, 12


def reply_html(
    text: str | None, sound: Callable[[], tuple[Tensor, int]] | None, depths: str
) -> str:
    """A reply as HTML that needs no other file.

    Args:
        text: text of the reply.
        sound: computes its speech, (samples,), and samples per second; None for none.
        depths: HTML of its depths.
    """
    parts = [paragraph(text or "(no text)")]
    if sound is not None:
        parts.append(or_error(lambda: _player(*sound()), "the sound"))
    return f"<div>{''.join(parts)}{depths}</div>"


def _player(wave: Tensor, rate: int) -> str:
    return audio_player(audio_bytes(wave.detach().float().cpu(), rate, "WAV"))


def depth_strip(trace: Trace, unit: str = "token") -> str:
    """Draw a bar for each token, as high as its depth, in the colour of its modality.

    A dot above a bar marks a token that replaced a rejected draft.

    Args:
        trace: trace of the reply.
        unit: what an entry of the trace is called.

    Returns:
        An SVG drawing with a legend below; empty for a trace without tokens.
    """
    shown = trace[:MAX_TOKENS]
    if not len(shown):
        return ""
    rows = [shown[i : i + ROW_TOKENS] for i in range(0, len(shown), ROW_TOKENS)]
    width = CELL * min(len(shown), ROW_TOKENS)
    height = len(rows) * (HEIGHT + GAP)
    drawn = "".join(
        _row(row, number * ROW_TOKENS, GAP + number * (HEIGHT + GAP), unit)
        for number, row in enumerate(rows)
    )
    return (
        f'<svg role="img" aria-label="depth of each {unit}" viewBox="0 0 {width} {height}" '
        f'width="{width}" style="max-width:100%;height:auto;display:block">{drawn}</svg>'
        + _legend(trace, unit)
    )


def _row(row: Trace, first: int, top: int, unit: str) -> str:
    """Bars of some tokens, and a line at full depth.

    Args:
        row: the tokens.
        first: number of the first one in the reply.
        top: position of full depth.
        unit: what one of them is called.
    """
    line = (
        f'<line x1="0" x2="{CELL * len(row)}" y1="{top}" y2="{top}" stroke="currentColor" '
        'stroke-opacity=".35" stroke-dasharray="2 3"/>'
    )
    bars = []
    columns = (row.depth, row.modality, row.draft_status)
    for i, (depth, modality, status) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        high = max(HEIGHT * depth / row.full_depth, 1)
        kind = Modality(modality)
        title = f"{unit} {first + i}: {kind.name.lower()}, depth {depth} of {row.full_depth}"
        bars.append(
            f'<rect x="{CELL * i}" y="{top + HEIGHT - high:.1f}" width="{CELL - 1}" '
            f'height="{high:.1f}" fill="{COLOURS[kind]}"><title>{title}</title></rect>'
        )
        if status == DraftStatus.REPLACEMENT:
            bars.append(f'<circle cx="{CELL * i + 3}" cy="{top - 5}" r="2" fill="currentColor"/>')
    return line + "".join(bars)


def _legend(trace: Trace, unit: str) -> str:
    """What colours, heights and marks stand for."""
    parts = [
        f'<span style="color:{colour}">&#9632;</span> {kind.name.lower()}'
        for kind, colour in COLOURS.items()
        if (trace.modality == kind).any()
    ]
    parts.append(f"height: depth, dashed line: full depth ({trace.full_depth} layers)")
    if (trace.draft_status == DraftStatus.REPLACEMENT).any():
        parts.append("dot: replaces a rejected draft")
    if len(trace) > MAX_TOKENS:
        parts.append(escape(f"the first {MAX_TOKENS} of {len(trace)} {unit}s"))
    return f'<div style="font-size:85%">{" &nbsp; ".join(parts)}</div>'
