"""`eepolicy models` and `eepolicy convert`: model cards and checkpoints."""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.options import DtypeOption, JsonOption, load_model
from eepolicy.cli.shared import app, err, out, print_json, print_note

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

models = typer.Typer(invoke_without_command=True)
app.add_typer(models, name="models")


@models.callback()
def list_models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the speech models with a model card, or check a checkpoint.

    Example: eepolicy models check ~/checkpoints/glm-4-voice-9b
    """
    if context.invoked_subcommand is not None:
        return
    if as_json:
        from eepolicy.loading import shipped_cards

        print_json([asdict(card) for card in shipped_cards().values()])
        return
    table = Table(box=box.SIMPLE_HEAD)
    headings = ("card", "id on the Hub", "backbone", "text : speech", "units per second", "vocoder")
    for heading in headings:
        table.add_column(heading)
    for card in _cards():
        interleaved = f"{card['text_chunk']} : {card['speech_chunk']}"
        table.add_row(
            card["name"],
            card["source"],
            card["model_type"],
            interleaved if card["text_chunk"] else "speech only",
            f"{card['rate']:g}" if "rate" in card else "",
            card.get("vocoder", ""),
        )
    out.print(table)


def _cards() -> list[dict[str, Any]]:
    """The fields of the model cards, read without torch: the list is there at once."""
    folder = Path(str(files("eepolicy") / "loading" / "model_cards"))
    return [
        tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.toml"))
    ]


@models.command()
def check(
    folder: Annotated[Path, typer.Argument(help="folder of the checkpoint")],
) -> None:
    """Print what a checkpoint contains, what fits, what is missing, and its memory.

    The weights are not loaded. The exit status is 1 if something is missing.

    Example: eepolicy models check ~/checkpoints/Step-Audio-2-mini
    """
    from eepolicy.loading.inspect import inspect

    is_good = True
    for finding in inspect(folder):
        is_good &= finding.ok
        console, mark = (out, "✓") if finding.ok else (err, "✗")
        console.print(f"{mark} {finding.sentence}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if is_good else 1)


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="folder or Hub id of GLM-4-Voice or Step-Audio-2-mini")
    ],
    folder: Annotated[Path, typer.Argument(help="new folder for the converted model")],
    dtype: DtypeOption = "bfloat16",
) -> None:
    """Convert a model from its authors' file layout to the Hugging Face format.

    The converted model loads with every option of transformers, such as device_map and
    quantization_config.

    Example: eepolicy convert zai-org/glm-4-voice-9b glm-4-voice
    """
    from eepolicy.loading.convert import check_new_folder, save_converted

    check_new_folder(folder)  # before the model is loaded, which takes minutes
    save_converted(load_model(source, dtype), folder)
    print_note(f"The model in Hugging Face format is in {folder}, in {dtype}")
