"""The command line, with a module per command."""

from __future__ import annotations

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
    tune,
)
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
    "tune",
]

#: commands that continue after they were stopped; `tune` does with --keep
RESUMABLE = {"compare", "fit", "leaderboard", "stats"}


@app.callback()
def every_command(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Early exit for spoken language models."""


def main() -> NoReturn:
    """Run the command line; an `EepolicyError` is printed as one sentence, with exit status 2."""
    if "--debug" in sys.argv[1:2]:
        sys.exit(app(standalone_mode=False) or 0)
    try:
        # typer returns the exit status, or None if the command finished
        code = app(standalone_mode=False) or 0
    except EepolicyError as error:
        print_error(str(error))
        code = 2
    except OSError as error:
        print_error(str(error))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        error.show() if hasattr(error, "show") else print_error(str(error))
        code = error.exit_code
    if code == 130:
        resumable = RESUMABLE & {*sys.argv[1:2]} or "--keep" in sys.argv
        saved = "; finished work is saved, and the same command continues"
        print_error("stopped" + (saved if resumable else ""))
    sys.exit(code)
