"""HTML for notebooks: small pieces that need no style sheet and no other file.

All text is escaped here.  Text has the colour of the page, so the pieces are readable on light and
dark pages.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape

from eepolicy.errors import Caught, EepolicyError

#: colours of text and speech: blue and vermilion of the palette of Okabe and Ito, both readable on
#: light and dark pages, which colour-blind readers can tell apart
TEXT_COLOUR, SPEECH_COLOUR = "#3B8FC4", "#D55E00"

#: sorts the table by the column of the clicked heading, by numbers if its cells begin with them
_SORT = (
    "const b=this.closest('table').tBodies[0],i=this.cellIndex,"
    "s=this.dataset.up==='1'?-1:1,v=r=>r.cells[i].textContent.trim(),n=r=>parseFloat(v(r));"
    "this.dataset.up=s===1?'1':'0';"
    "[...b.rows].sort((x,y)=>s*((n(x)-n(y))||(isNaN(n(x))-isNaN(n(y)))||v(x).localeCompare(v(y))))"
    ".forEach(r=>b.append(r))"
)
_HEADING = "cursor:pointer;text-align:left;vertical-align:bottom;padding:.25em .8em .25em 0"
_CELL = "text-align:left;padding:.2em .8em .2em 0"


def paragraph(text: str, small: bool = False) -> str:
    """A paragraph; line breaks of the text stay.

    Args:
        text: plain text.
        small: smaller letters.
    """
    size = ";font-size:85%" if small else ""
    return f'<p style="white-space:pre-wrap;margin:.3em 0{size}">{escape(text)}</p>'


def or_error(make: Callable[[], str], name: str) -> str:
    """A piece, or a sentence with its error: a display that raises would hide its other pieces.

    Args:
        make: makes the piece.
        name: what it shows, for the sentence.

    Examples:
        >>> "(the table cannot be shown: IndexError(" in or_error([].pop, "the table")
        True
    """
    with Caught() as caught:
        return make()
    error = caught.error
    reason = str(error) if isinstance(error, EepolicyError) else repr(error)
    return paragraph(f"({name} cannot be shown: {reason})", small=True)


def audio_player(wave_file: bytes) -> str:
    """A player of a sound file in WAV format, which it contains."""
    sound = base64.b64encode(wave_file).decode()
    return f'<audio controls src="data:audio/wav;base64,{sound}"></audio>'


def picture(png: bytes, description: str) -> str:
    """A picture, which the piece contains.

    Args:
        png: the picture.
        description: text for readers who do not see it.
    """
    data = base64.b64encode(png).decode()
    return (
        f'<img alt="{escape(description)}" style="max-width:100%;background:#fff" '
        f'src="data:image/png;base64,{data}">'
    )


def sortable_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that a click on a heading sorts; a second click reverses the order.

    Args:
        headings: column headings, plain text.
        rows: cells of each row, plain text.

    Examples:
        >>> "&lt;b&gt;" in sortable_table(["policy"], [["<b>"]])
        True
    """
    head = "".join(
        f'<th scope="col" title="sort" style="{_HEADING}" onclick="{escape(_SORT)}">'
        f"{escape(heading)}</th>"
        for heading in headings
    )
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
