"""The application, its consoles, and what it prints."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from eepolicy.folder_lock import without_secrets

app = typer.Typer(
    help="Early exit for spoken language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# piped tables are not wrapped at the width of a terminal
out = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 140)
err = Console(stderr=True)


def command_line() -> str:
    """The command line of this process, as the user would type it, without keys."""
    return "eepolicy " + shlex.join(without_secrets(sys.argv[1:]))


def print_json(document: Any) -> None:
    """Print a document as one line of JSON; NaN and infinity become null.

    Args:
        document: JSON types, NumPy numbers, paths, and data frames as lists of rows.
    """
    text = json.dumps(document, default=_to_json)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None)))


def _to_json(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict("records")
    return value.item() if hasattr(value, "item") else os.fspath(value)


def print_markdown(text: str) -> None:
    """Print Markdown: rendered on a terminal, as it is into a pipe or file."""
    if out.is_terminal:
        out.print(Markdown(text))
    else:
        out.print(text, highlight=False, markup=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print an error as one sentence."""
    err.print(f"eepolicy: {message}", style="red", highlight=False, markup=False, soft_wrap=True)


def print_warning(message: str) -> None:
    """Print a warning."""
    err.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)


def print_note(message: str) -> None:
    """Print a remark beside the result, such as the files that were written."""
    out.print(message, style="dim", highlight=False, markup=False, soft_wrap=True)
