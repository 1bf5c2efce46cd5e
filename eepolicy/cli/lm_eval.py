"""`eepolicy lm-eval`: the Language Model Evaluation Harness, with the model class `eepolicy`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from eepolicy.cli.shared import app
from eepolicy.errors import EepolicyError

#: its class is imported when the harness makes the model
TARGET = "eepolicy.harness.lm_eval:EarlyExitLM"
COMMANDS = ("run", "ls", "validate")


@app.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def lm_eval(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="arguments of the harness's own command; 'eepolicy lm-eval run -- --help' "
            "lists them"
        ),
    ],
) -> None:
    """Evaluate a model with lm-evaluation-harness, by its own command line.

    Without --model, the harness evaluates the model 'eepolicy', which exits early.

    Example: eepolicy lm-eval --model_args pretrained=FOLDER,policy=text=static@20 --tasks gsm8k
    """
    if find_spec("lm_eval") is None:
        raise EepolicyError(
            "lm-evaluation-harness is not installed: pip install 'eepolicy[lm-eval]'"
        )
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry
    from lm_eval.models import MODEL_MAPPING

    assert MODEL_MAPPING  # the import registers the harness's own models
    if "eepolicy" not in model_registry:
        model_registry.register("eepolicy", target=TARGET)
    sys.argv = ["eepolicy lm-eval", *harness_arguments(arguments)]
    try:
        cli_evaluate()
    except EepolicyError:
        raise
    except ValueError as error:  # the harness refuses its arguments with it
        raise EepolicyError(f"lm-evaluation-harness: {error}") from error


def harness_arguments(arguments: list[str]) -> list[str]:
    """Arguments for the harness: with its command, and with the model `eepolicy` by default.

    Examples:
        >>> harness_arguments(["--tasks", "gsm8k"])
        ['run', '--model', 'eepolicy', '--tasks', 'gsm8k']
        >>> harness_arguments(["ls", "tasks"])
        ['ls', 'tasks']
    """
    command, *rest = arguments if arguments[0] in COMMANDS else ["run", *arguments]
    rest = [a for i, a in enumerate(rest) if a != "--" or i]
    names = {argument.partition("=")[0] for argument in rest}
    if (
        command == "run"
        and rest
        and names.isdisjoint({"--model", "-M", "--config", "-C", "--help"})
    ):
        rest = ["--model", "eepolicy", *rest]
    return [command, *rest]
