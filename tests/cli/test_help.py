"""The help texts of the commands."""

from __future__ import annotations

import pytest
import typer
from typer.core import TyperGroup

from eepolicy.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)
#: commands that run a model
RUNNING = (
    *("bench", "compare", "drift", "fit", "generate", "leaderboard", "probe", "report", "stats"),
    "tune",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_no_emoji_and_has_an_example(run, command):
    shown, _ = run(command, "--help")
    assert all(ord(character) < 0x1F000 for character in shown)
    assert "Example: eepolicy" in " ".join(shown.split())


@pytest.mark.parametrize("command", RUNNING)
def test_every_command_that_runs_a_model_takes_device_and_threads(command):
    options = {p.name for p in typer.main.get_command(app).commands[command].params}
    assert {"device", "threads", "as_json"} <= options


def test_every_option_has_a_help_text():
    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if isinstance(command, TyperGroup) else (command,)

    for command in commands(typer.main.get_command(app)):
        for parameter in command.params:
            assert parameter.help, (command.name, parameter.name)
