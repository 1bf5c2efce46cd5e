"""`eepolicy fit`: exit heads on the model's own replies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.shared import JsonOption, app, load, note, numbers, out, progress, tell
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from eepolicy.fitting.trainer import Fitted


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="'pocket', a folder, or an id on the Hub")],
    out_file: Annotated[Path, typer.Option("--out", help="the heads go here (.safetensors)")],
    prompts: Annotated[
        Path | None,
        typer.Option(help="a file with one prompt a line; a pocket model's dev questions without"),
    ] = None,
    heads: Annotated[str, typer.Option(help="tuned, linear or low-rank")] = "tuned",
    depths: Annotated[
        str | None, typer.Option(help="such as 8,12,16; all below full where none are given")
    ] = None,
    rank: Annotated[int, typer.Option(help="of low-rank heads", min=1)] = 32,
    loss: Annotated[str, typer.Option(help="soft (the paper's), reverse_kl or top:K")] = "soft",
    on: Annotated[str, typer.Option(help="positions that count: text, speech or both")] = "both",
    epochs: Annotated[int, typer.Option(help="most passes over the replies", min=1)] = 5,
    held_out: Annotated[
        float, typer.Option(help="share of the replies to judge by", min=0.01, max=0.9)
    ] = 0.1,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of a reply", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="a seed gives one file")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit a head for each depth on the model's own full-depth replies.

    Replies and checkpoints lie beside the heads until they are done; stopped in the middle and run
    again, the command goes on.

    Example: eepolicy fit pocket --depths 8,12,16 --out heads.safetensors
    """
    from eepolicy.fitting import trainer as fitting
    from eepolicy.fitting.replies import generate_replies
    from eepolicy.loading import held_out as questions_of

    if not out_file.parent.is_dir():
        raise EepolicyError(f"there is no folder {out_file.parent} to write {out_file.name} to")
    how = fitting.FitConfig(
        kind=heads,
        depths=None if depths is None else tuple(numbers(depths)),
        rank=rank,
        loss=loss,
        on=on,
        epochs=epochs,
        seed=seed,
    )
    fitted_on = load(model)
    if prompts is not None:
        questions = [line for line in prompts.read_text().splitlines() if line.strip()]
    else:
        source = None if model == "pocket" else Path(model)
        questions = [q["question"] for q in questions_of("dev", source)]
    if len(questions) < 2:
        raise EepolicyError(f"fitting takes two prompts at least; got {len(questions)}")
    kept, checkpoint = (out_file.with_suffix(end) for end in (".replies.jsonl", ".checkpoint"))
    replies = generate_replies(
        fitted_on,
        questions,
        max_new_tokens=max_new_tokens,
        save=kept,
        progress=progress("batches of replies"),
    )
    judged = max(1, round(held_out * len(replies)))
    chosen = {round((i + 0.5) * len(replies) / judged) for i in range(judged)}
    found = fitting.fit(
        fitted_on,
        [r for i, r in enumerate(replies) if i not in chosen],
        [r for i, r in enumerate(replies) if i in chosen],
        how,
        checkpoint=checkpoint,
        report=note,
        progress=progress("steps"),
    )
    found.heads.save(out_file, fitted_on.model, found.notes)
    for file in (kept, checkpoint):
        file.unlink(missing_ok=True)
    if as_json:
        told = {k: found.notes[k] for k in ("fitting", "replies", "held_out_replies", "epochs")}
        tell({"model": model, **told, "results": _rows(found), "files": [out_file]})
        return
    out.print(_table(found))
    note(f"heads are in {out_file}; a model folder takes them as heads.safetensors")


def _rows(found: Fitted) -> list[dict[str, Any]]:
    """What the heads bring, a row a depth."""
    values = {
        f"{name}_{when}": found.notes[when][name]
        for name in ("kl", "agreement")
        for when in ("before", "after")
    }
    return [
        {"depth": depth} | {name: each[i] for name, each in values.items()}
        for i, depth in enumerate(found.heads.depths)
    ]


def _table(found: Fitted) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, title="on held-out replies, the plain lens and the heads")
    for heading in ("depth", "KL before", "KL after", "agreement before", "agreement after"):
        shown.add_column(heading, justify="right")
    for depth, *values in (row.values() for row in _rows(found)):
        shown.add_row(str(depth), *(f"{v:.3f}" for v in values))
    return shown
