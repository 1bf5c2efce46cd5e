"""`eepolicy models` and `eepolicy convert`: model cards and checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.options import DtypeOption, JsonOption, load_model, torch_dtype
from eepolicy.cli.shared import app, err, out, print_json, print_note
from eepolicy.errors import EepolicyError
from eepolicy.io import read_toml

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
    return [read_toml(file, "a model card") for file in sorted(folder.glob("*.toml"))]


@models.command()
def check(
    folder: Annotated[Path, typer.Argument(help="folder of the checkpoint")],
) -> None:
    """Print what a checkpoint contains, what fits, what is missing, and its memory.

    One weight is read at a time. The exit status is 1 if something is missing.

    Example: eepolicy models check ~/checkpoints/Step-Audio-2-mini
    """
    from transformers.utils import logging

    from eepolicy.loading.inspect import inspect

    logging.disable_progress_bar()  # of weights that are not read
    is_good = True
    for finding in inspect(folder):
        is_good &= finding.ok
        console, mark = (out, "✓") if finding.ok else (err, "✗")
        console.print(f"{mark} {finding.sentence}", highlight=False, markup=False, soft_wrap=True)
    for line in _estimates(folder) if is_good else ():
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if is_good else 1)


def _estimates(folder: Path) -> list[str]:
    """Memory of fitting and hours of the paper's table, for a checkpoint at the paper's sizes."""
    from eepolicy.analysis.evaluation.spark_table2 import ROWS
    from eepolicy.analysis.evaluation.table2_estimate import Load, estimate
    from eepolicy.analysis.evaluation.table2_sizes import published_sizes
    from eepolicy.loading.auto import UPSTREAM
    from eepolicy.loading.huggingface import read_config

    config = read_config(folder / "config.json")
    _, name = UPSTREAM.get(config.get("model_type", ""), (None, ""))
    size = published_sizes().get(name)
    text = config | config.get("text_config", {})
    layers = text.get("num_layers") or text.get("num_hidden_layers")
    if size is None or (layers, text.get("hidden_size")) != (size.layers, size.width):
        return []
    whole = estimate(size, ROWS[name], Load())
    fitting = whole.memory["while fitting: one depth"]
    return [
        f"Estimate: fitting a linear head takes {fitting / 1e9:.1f} GB beside the weights.",
        f"Estimate: Table 2 of the paper takes {whole.hours:.1f} hours on {whole.machine.name}, "
        "and the time of vocoder, recognition, rating and judge: see 'eepolicy compare --preset "
        "spark-table2 --dry-run'.",
    ]


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="folder or Hub id of GLM-4-Voice, Step-Audio-2-mini or Covo-Audio-Chat; with "
            "--card of any model in Hugging Face format"
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="new folder for the converted model")],
    dtype: DtypeOption = "bfloat16",
    card: Annotated[
        str | None,
        typer.Option(help="model card to write into the new folder: a name or a TOML file"),
    ] = None,
) -> None:
    """Convert a model from its authors' file layout to the Hugging Face format.

    The converted model loads with every option of transformers, such as device_map and
    quantization_config. With --card, its config contains the card, and later commands need no card.

    Example: eepolicy convert zai-org/glm-4-voice-9b glm-4-voice
    """
    import eepolicy
    from eepolicy.loading.convert import save_converted
    from eepolicy.loading.new_folder import check_new_folder

    check_new_folder(folder)  # before the model is loaded, which takes minutes
    if dtype == "int8":
        raise EepolicyError("weights in int8 are not saved: give float32, bfloat16 or float16")
    if card is None:
        model = load_model(source, dtype)
    else:
        model = eepolicy.load(source, torch_dtype(dtype, source, "cpu"), card)
    save_converted(model, folder)
    print_note(f"The model in Hugging Face format is in {folder}, in {str(model.dtype)[6:]}")
