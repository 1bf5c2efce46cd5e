"""`eepolicy fit-predictor`: fit where the exit heads agree with the full model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eepolicy.cli.fit_prompts import partition, read_questions, spread_over
from eepolicy.cli.options import (
    DeviceOption,
    HeadsOption,
    JsonOption,
    MaxNewTokensOption,
    ModelArgument,
    ThreadsOption,
    check_parent,
    integers,
    load_model,
)
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import app, print_json, print_note


@app.command("fit-predictor")
def fit_predictor(
    model: ModelArgument,
    depths: Annotated[str, typer.Option(help="depths of the predictor, such as 4,6,8")],
    out_file: Annotated[
        Path, typer.Option("--out", help="file to write the predictor to (.safetensors)")
    ],
    heads: HeadsOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="file with a prompt per line, or .jsonl with a text or chat turns per line; the "
            "model's dev questions by default"
        ),
    ] = None,
    hidden: Annotated[
        int, typer.Option(help="width of the layer in between; 0 for a linear map", min=0)
    ] = 64,
    on: Annotated[str, typer.Option(help="positions to fit on: text, speech or both")] = "speech",
    epochs: Annotated[int, typer.Option(help="number of passes over the positions", min=1)] = 10,
    held_out: Annotated[
        float, typer.Option(help="share of the replies for evaluation", min=0.01, max=0.9)
    ] = 0.1,
    max_new_tokens: MaxNewTokensOption = 300,
    seed: Annotated[int, typer.Option(help="seed of initialisation and data order")] = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the exit predictor that policies such as 'predictor>0.9@[4,6,8]' read.

    It predicts where the exit heads have the full model's token, on the model's own full-depth
    replies. Fit it after the heads, because it belongs to them.

    Example: eepolicy fit-predictor pocket --depths 8,10,12 --out predictor.safetensors
    """
    from eepolicy import fitting
    from eepolicy.heads import save_predictor

    check_parent(out_file)
    config = fitting.PredictorConfig(
        depths=tuple(integers(depths)), hidden=hidden, on=on, epochs=epochs, seed=seed
    )
    fitted_model = load_model(model, device=device, threads=threads, heads=heads)
    replies = fitting.generate_replies(
        fitted_model,
        read_questions(model, prompts),
        max_new_tokens=max_new_tokens,
        progress=progress("batches of replies"),
    )
    result = fitting.fit_predictor(
        fitted_model,
        *partition(replies, spread_over(replies, held_out)),
        config,
        report=print_note,
    )
    save_predictor(result.predictor, out_file, fitted_model.model, result.notes)
    if as_json:
        print_json({"model": model, **result.notes, "files": [out_file]})
        return
    print_note(
        f"The predictor is in {out_file}; a model folder loads it under the name "
        "predictor.safetensors"
    )
