"""The command line, with a module per command."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Annotated, NoReturn

import typer

from eepolicy.cli import (
    bench,
    compare,
    doctor,
    fit,
    fit_predictor,
    generate,
    leaderboard,
    lm_eval,
    models,
    policies,
    probe,
    report,
    studies,
    sweep,
    tune,
)
from eepolicy.cli.process import flush_output, prepared_process
from eepolicy.cli.shared import app, print_error
from eepolicy.errors import EepolicyError

__all__ = [
    "app",
    "bench",
    "compare",
    "doctor",
    "fit",
    "fit_predictor",
    "generate",
    "leaderboard",
    "lm_eval",
    "main",
    "models",
    "policies",
    "probe",
    "report",
    "studies",
    "sweep",
    "tune",
]

#: exit status after an interrupt
INTERRUPTED = 130
#: commands that continue after they were stopped; `tune` does with --keep
RESUMABLE = {"compare", "fit", "leaderboard", "stats", "sweep"}


@app.callback()
def every_command(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Early exit for spoken language models."""


def main() -> NoReturn:
    """Run the command line; an `EepolicyError` is printed as one sentence, with exit status 2.

    The status is 1 if a file or the output cannot be written, or if the reader of the output has
    left; 130 after an interrupt, and 143 after SIGTERM.
    """
    with prepared_process() as received:
        code = _run(received)
        failure = flush_output()
        if failure:
            print_error(failure)
    sys.exit(code if failure is None else code or 1)


def _run(received: list[int]) -> int:
    """Run the command and print its error.

    Args:
        received: signals that have arrived, which `prepared_process` fills.

    Returns:
        The exit status.
    """
    # typer returns the exit status, or None if the command finished, and 130 after a signal
    code: int
    if "--debug" in sys.argv[1:2]:
        code = app(standalone_mode=False) or 0
        return code
    try:
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # a library may have turned the exception of a signal into this one
        code = INTERRUPTED if received else _failed(error)
    return _stopped(received) if code == INTERRUPTED else code


def _failed(error: Exception) -> int:
    """Print the error of a command; gives the exit status."""
    if isinstance(error, EepolicyError):
        print_error(str(error))
        return 2
    if isinstance(error, OSError):
        if error.errno != errno.EPIPE:
            print_error(str(error))
        return 1
    if not hasattr(error, "exit_code"):
        raise error
    error.show() if hasattr(error, "show") else print_error(str(error))
    return int(error.exit_code)


def _stopped(received: list[int]) -> int:
    """Say that a command was stopped, and whether it continues; gives the exit status."""
    resumable = RESUMABLE & {*sys.argv[1:2]} or "--keep" in sys.argv
    saved = "; finished work is saved, and the same command continues"
    print_error("stopped" + (saved if resumable else ""))
    return 143 if received[-1:] == [signal.SIGTERM] else INTERRUPTED
