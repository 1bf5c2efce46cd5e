"""`eepolicy probe`: what the layers say of a text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from eepolicy.cli.shared import (
    CompileOption,
    JsonOption,
    app,
    load,
    note,
    numbers,
    out,
    progress,
    tell,
)
from eepolicy.errors import EepolicyError


@app.command()
def probe(
    model: Annotated[str, typer.Argument(help="'pocket', a folder, or an id on the Hub")],
    text: Annotated[str, typer.Argument(help="a text, or a file with one document a line")],
    reply: Annotated[
        bool, typer.Option(help="let the model answer each document, and probe its reply")
    ] = False,
    lens: Annotated[
        bool, typer.Option(help="the plain logit lens in place of fitted heads")
    ] = False,
    depths: Annotated[
        str | None, typer.Option(help="to read out, such as 4,8,12; all where none are given")
    ] = None,
    top_k: Annotated[int, typer.Option(help="keep so many of the likeliest tokens")] = 0,
    save: Annotated[
        Path | None, typer.Option(help="a folder for the arrays (.npy); goes on where it stopped")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="write layers.png and heatmap.png to this folder")
    ] = None,
    compiled: CompileOption = False,
    csv: Annotated[Path | None, typer.Option(help="write a row a depth and token here")] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every layer out, at every token.

    Example: eepolicy probe pocket "What color is snow?" --reply --plot pictures
    """
    import eepolicy

    probed = load(model)
    file = Path(text)
    documents = file.read_text().splitlines() if _is_file(file) else [text]
    documents = [line for line in documents if line.strip()]
    if not documents:
        raise EepolicyError(f"{text} holds no text")
    asked = None if depths is None else numbers(depths)
    shown: Iterable[str] = progress("documents")(documents)
    inputs: Any = (probed.generate(d) for d in shown) if reply else shown
    result = eepolicy.probe(
        probed,
        inputs,
        depths=asked,
        heads=probed.lens if lens else None,
        top_k=top_k,
        save=save,
        compile=compiled,
    )
    files = [file for file in (save, csv) if file]
    if not as_json:
        out.print(str(result), highlight=False, markup=False, soft_wrap=True)
    if save:
        note(f"the arrays are in {save}")
    if csv:
        result.to_pandas().to_csv(csv, index=False)
        note(f"a table is in {csv}")
    if plot:
        plot.mkdir(parents=True, exist_ok=True)
        for name in ("layers", "heatmap"):
            files.append(plot / f"{name}.png")
            getattr(result.plot, name)().savefig(files[-1], dpi=150)
        note(f"pictures are in {plot}")
    if as_json:
        tell(
            {
                "model": model,
                "reply": reply,
                "lens": lens,
                "full_depth": result.full_depth,
                "documents": len(documents),
                "tokens": len(result),
                "results": result.by_modality().reset_index(),
                "files": files,
            }
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text that is too long to be a name
        return False
