"""`eepolicy fit`: fit exit heads on the model's own replies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.options import (
    DeviceOption,
    JsonOption,
    MaxNewTokensOption,
    ModelArgument,
    ThreadsOption,
    check_parent,
    held_out_questions,
    integers,
    load_model,
)
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import app, out, print_json, print_note
from eepolicy.errors import EepolicyError
from eepolicy.io import read_lines

if TYPE_CHECKING:
    from eepolicy.fitting import FitConfig, FitResult
    from eepolicy.hooked import HookedModel


@app.command()
def fit(
    model: ModelArgument,
    out_file: Annotated[
        Path, typer.Option("--out", help="file to write the heads to (.safetensors)")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="file with a prompt per line; the model's dev questions by default"),
    ] = None,
    heads: Annotated[
        str, typer.Option(help="kind of the heads: tuned, linear or low-rank")
    ] = "tuned",
    depths: Annotated[
        str | None,
        typer.Option(help="depths of the heads, such as 8,12,16; all below full by default"),
    ] = None,
    rank: Annotated[int, typer.Option(help="rank of low-rank heads", min=1)] = 32,
    loss: Annotated[
        str, typer.Option(help="loss: soft (the paper's), reverse_kl or top:K")
    ] = "soft",
    on: Annotated[
        str, typer.Option(help="positions that the loss is computed on: text, speech or both")
    ] = "both",
    epochs: Annotated[
        int, typer.Option(help="maximum number of passes over the replies", min=1)
    ] = 5,
    held_out: Annotated[
        float, typer.Option(help="share of the replies for evaluation", min=0.01, max=0.9)
    ] = 0.1,
    max_new_tokens: MaxNewTokensOption = 300,
    seed: Annotated[int, typer.Option(help="seed of initialisation and data order")] = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit an exit head per depth on the model's own full-depth replies.

    Replies and checkpoints are stored beside the heads until the fit is finished. A stopped fit
    continues when the command is run again.

    Example: eepolicy fit pocket --depths 8,12,16 --out heads.safetensors
    """
    from eepolicy.fitting import FitConfig

    check_parent(out_file)
    config = FitConfig(
        kind=heads,
        depths=None if depths is None else tuple(integers(depths)),
        rank=rank,
        loss=loss,
        on=on,
        epochs=epochs,
        seed=seed,
    )
    fitted_model = load_model(model, device=device, threads=threads)
    questions = _questions(model, prompts)
    result = _fit(fitted_model, questions, config, out_file, held_out, max_new_tokens)
    if as_json:
        keys = ("fitting", "replies", "held_out_replies", "epochs")
        notes = {key: result.notes[key] for key in keys}
        print_json({"model": model, **notes, "results": _rows(result), "files": [out_file]})
        return
    out.print(_table(result))
    print_note(
        f"The heads are in {out_file}; a model folder loads them under the name heads.safetensors"
    )


def _questions(model: str, prompts: Path | None) -> list[str]:
    """Prompts of the file, or the model's dev questions."""
    if prompts is None:
        questions = [q["question"] for q in held_out_questions(model, "dev")]
    else:
        questions = read_lines(prompts)
    if len(questions) < 2:
        raise EepolicyError(f"fitting takes at least two prompts; got {len(questions)}")
    return questions


def _fit(
    model: HookedModel,
    questions: list[str],
    config: FitConfig,
    out_file: Path,
    held_out: float,
    max_new_tokens: int,
) -> FitResult:
    """Generate the replies, fit the heads and save them."""
    from eepolicy import fitting

    replies_file, checkpoint = (
        out_file.with_suffix(end) for end in (".replies.jsonl", ".checkpoint")
    )
    replies = fitting.generate_replies(
        model,
        questions,
        max_new_tokens=max_new_tokens,
        save=replies_file,
        progress=progress("batches of replies"),
    )
    count = max(1, round(held_out * len(replies)))
    chosen = {round((i + 0.5) * len(replies) / count) for i in range(count)}
    result = fitting.fit(
        model,
        [r for i, r in enumerate(replies) if i not in chosen],
        [r for i, r in enumerate(replies) if i in chosen],
        config,
        checkpoint=checkpoint,
        report=print_note,
        progress=progress("steps"),
    )
    result.heads.save(out_file, model.model, result.notes)
    for file in (replies_file, checkpoint):
        file.unlink(missing_ok=True)
    return result


def _rows(result: FitResult) -> list[dict[str, Any]]:
    """KL divergence and agreement before and after the fit, with a row per depth."""
    values = {
        f"{name}_{when}": result.notes[when][name]
        for name in ("kl", "agreement")
        for when in ("before", "after")
    }
    return [
        {"depth": depth} | {name: each[i] for name, each in values.items()}
        for i, depth in enumerate(result.heads.depths)
    ]


def _table(result: FitResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="held-out replies: plain logit lens and fitted heads")
    for heading in ("depth", "KL before", "KL after", "agreement before", "agreement after"):
        table.add_column(heading, justify="right")
    for depth, *values in (row.values() for row in _rows(result)):
        table.add_row(str(depth), *(f"{value:.3f}" for value in values))
    return table
