"""The command line; one module a command."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from eepolicy.cli import (
    bench,
    compare,
    doctor,
    fit,
    generate,
    models,
    policies,
    probe,
    report,
    studies,
    tune,
)
from eepolicy.cli.shared import app, say
from eepolicy.errors import EepolicyError

__all__ = [
    "app",
    "bench",
    "compare",
    "doctor",
    "fit",
    "generate",
    "main",
    "models",
    "policies",
    "probe",
    "report",
    "studies",
    "tune",
]


@app.callback()
def every_command(
    debug: Annotated[bool, typer.Option("--debug", help="show where an error is from")] = False,
) -> None:
    """Early exit for language models that speak."""


def main() -> NoReturn:
    """Run the command line; errors that users are meant to see are one sentence, exit status 2."""
    if "--debug" in sys.argv[1:2]:
        sys.exit(app(standalone_mode=False) or 0)
    try:
        # typer gives the exit status back, or None where a command ran to its end
        code = app(standalone_mode=False) or 0
    except EepolicyError as error:
        say(str(error))
        code = 2
    except OSError as error:
        say(str(error))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        error.show() if hasattr(error, "show") else say(str(error))
        code = error.exit_code
    if code == 130:
        kept = "; what was finished is kept, and the same command goes on"
        goes_on = {"compare", "fit", "stats"} & {*sys.argv[1:2]} or "--keep" in sys.argv
        say("stopped" + (kept if goes_on else ""))
    sys.exit(code)
