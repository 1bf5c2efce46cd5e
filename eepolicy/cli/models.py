"""`eepolicy models` and `eepolicy convert`: which models speak, and what a checkpoint is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.shared import (
    DtypeOption,
    JsonOption,
    app,
    err,
    load,
    note,
    out,
    tell,
    torch_dtype,
)

models = typer.Typer(
    help="Speech models that ship with a card, and what a checkpoint is.",
    invoke_without_command=True,
)
app.add_typer(models, name="models")


@models.callback()
def list_models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the speech models that ship with a card.

    Example: eepolicy models check ~/checkpoints/glm-4-voice-9b
    """
    if context.invoked_subcommand is not None:
        return
    from eepolicy.loading import shipped_cards

    if as_json:
        tell([asdict(card) for card in shipped_cards().values()])
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("card", "on the Hub", "backbone", "text : speech", "units a second", "vocoder"):
        table.add_column(heading)
    for card in shipped_cards().values():
        chunks = f"{card.text_chunk} : {card.speech_chunk}" if card.text_chunk else "speech alone"
        rate = "" if card.rate is None else f"{card.rate:g}"
        table.add_row(card.name, card.source, card.model_type, chunks, rate, card.vocoder)
    out.print(table)


@models.command()
def check(
    folder: Annotated[Path, typer.Argument(help="of the checkpoint")],
) -> None:
    """Say what a checkpoint is, what fits, what is missing, and how much memory it takes.

    Nothing is loaded. Exit status 1 where something is missing.

    Example: eepolicy models check ~/checkpoints/Step-Audio-2-mini
    """
    from eepolicy.loading.inspect import inspect

    good = True
    for finding in inspect(folder):
        good &= finding.ok
        console, mark = (out, "✓") if finding.ok else (err, "✗")
        console.print(f"{mark} {finding.sentence}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if good else 1)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="GLM-4-Voice or Step-Audio-2-mini: folder or id")],
    folder: Annotated[Path, typer.Argument(help="new folder, in Hugging Face format")],
    dtype: DtypeOption = "bfloat16",
) -> None:
    """Write a model that its authors publish in a layout of their own in Hugging Face format.

    It then loads with every option of transformers: on several devices, quantised.

    Example: eepolicy convert zai-org/glm-4-voice-9b glm-4-voice
    """
    from eepolicy.loading.convert import check_new_folder, save_converted

    check_new_folder(folder)  # before the model is loaded, which takes minutes
    save_converted(load(source, dtype=torch_dtype(dtype)), folder)
    note(f"{folder} holds the model in Hugging Face format, {dtype}")
