"""`eepolicy stats` and `eepolicy drift`: studies of a model that speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eepolicy.cli.shared import JsonOption, ModelOption, app, load, note, out, progress, tell
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eepolicy.hooked import HookedModel

PromptsOption = Annotated[int, typer.Option(help="held-out questions", min=2)]
OutOption = Annotated[Path, typer.Option("--out", help="folder of tables and figures")]


@app.command()
def stats(
    prompts: PromptsOption = 50,
    out_folder: OutOption = Path("stats"),
    model: ModelOption = "pocket",
    lens: Annotated[
        bool, typer.Option(help="the plain logit lens in place of fitted heads")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What layers know of speech and of text, whether confidence serves, how tokens repeat.

    The probe is kept in the folder: stopped in the middle and run again, the command goes on.

    Example: eepolicy stats --prompts 100 --out stats
    """
    import eepolicy
    from eepolicy.analysis.studies.calibration import reliability
    from eepolicy.analysis.studies.layers import token_statistics
    from eepolicy.analysis.studies.sequences import by_modality, sequence_statistics
    from eepolicy.fitting.replies import generate_replies

    spoken, questions = _asked(model, prompts)
    out_folder.mkdir(parents=True, exist_ok=True)
    replies = generate_replies(
        spoken,
        questions,
        max_new_tokens=400,
        save=out_folder / "replies.jsonl",
        progress=progress("batches of replies"),
    )
    result = eepolicy.probe(
        spoken,
        replies,
        heads=spoken.lens if lens else None,
        save=out_folder / "probe",
        progress=progress("probed"),
    )
    tokens = token_statistics(result)
    sure = reliability(result)
    sequences = sequence_statistics(by_modality(spoken.layout, replies))
    depth = round(0.7 * spoken.depth)
    files = [
        out_folder / "replies.jsonl",
        out_folder / "probe",
        *_write(out_folder, "statistics", tokens.table(), tokens.figure),
        *_write(out_folder, "reliability", sure.table(), lambda: sure.figure(depth)),
        *_write(out_folder, "sequences", sequences.table(), sequences.figure),
    ]
    if as_json:
        tell(
            {
                "model": model,
                "prompts": prompts,
                "lens": lens,
                "tokens": tokens.tokens,
                "statistics": tokens.to_pandas(),
                "reliability": sure.to_pandas(),
                "sequences": sequences.to_pandas(),
                "files": files,
            }
        )
        return
    out.print(tokens.table(), highlight=False, markup=False, soft_wrap=True)
    note(f"tables, figures and the probe are in {out_folder}")


@app.command()
def drift(
    policies: Annotated[
        list[str] | None, typer.Argument(help="policies; spark:triple at 0.7 of full depth without")
    ] = None,
    fill: Annotated[
        list[str] | None, typer.Option(help="catch_up, propagate, mask; each where none is given")
    ] = None,
    prompts: PromptsOption = 24,
    out_folder: OutOption = Path("drift"),
    model: ModelOption = "pocket",
    as_json: JsonOption = False,
) -> None:
    """What drifts between refreshes: on the same tokens, and from the same prompt.

    Example: eepolicy drift spark:triple@14 static@14 --fill catch_up --fill mask --prompts 50
    """
    from eepolicy.analysis.studies import drift as drifting

    spoken, questions = _asked(model, prompts)
    chosen = policies or [f"spark:triple@{round(0.7 * spoken.depth)}"]
    runs = [(p, f) for p in chosen for f in fill or list(drifting.FILLS)]
    out_folder.mkdir(parents=True, exist_ok=True)
    found = drifting.drift(spoken, questions, runs, progress=progress("batches", _run))
    files = _write(out_folder, "drift", found.table(), lambda: found.figure("kl"))
    for name, rows in (("tokens", found.tokens), ("replies", found.replies)):
        files.append(out_folder / f"{name}.csv")
        rows.to_csv(files[-1], index=False)
    if as_json:
        tell({"model": model, "prompts": prompts, "results": found.to_pandas(), "files": files})
        return
    out.print(found.table(), highlight=False, markup=False, soft_wrap=True)
    note(f"tables and figures are in {out_folder}")


def _run(item: tuple[str, str, int]) -> str:
    return f"{item[0]} {item[1]}"


def _asked(model: str, prompts: int) -> tuple[HookedModel, list[str]]:
    """A model that speaks, and some of its held-out questions."""
    from eepolicy.loading import held_out

    spoken = load(model)
    if not spoken.layout.has_speech:
        raise EepolicyError(f"this study is of speech, of which {model} has none")
    everything = held_out("test", None if model == "pocket" else Path(model))
    if prompts > len(everything):
        raise EepolicyError(f"there are {len(everything)} questions; got --prompts {prompts}")
    return spoken, [q["question"] for q in everything[:prompts]]


def _write(folder: Path, name: str, table: str, figure: Callable[[], Figure]) -> list[Path]:
    """Write a table and its figure; gives the files."""
    from eepolicy.analysis.style import figures

    text, *pictures = files = [folder / f"{name}.{kind}" for kind in ("md", "svg", "png")]
    text.write_text(table + "\n")
    with figures():
        drawn = figure()
        for file in pictures:
            drawn.savefig(file, dpi=150)
    return files
