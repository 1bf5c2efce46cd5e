"""`eepolicy probe`: read out every layer at every token."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eepolicy.cli.options import (
    CompileOption,
    DeviceOption,
    DtypeOption,
    HeadsOption,
    JsonOption,
    LensOption,
    ModelArgument,
    ThreadsOption,
    integers,
    load_model,
)
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import app, out, print_json, print_note
from eepolicy.errors import EepolicyError
from eepolicy.io import read_lines

if TYPE_CHECKING:
    from eepolicy.probing import ProbeResult


@app.command()
def probe(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(help="a text, or a file with a document per line")],
    reply: Annotated[
        bool, typer.Option("--reply", help="probe the model's reply to each document")
    ] = False,
    heads: HeadsOption = None,
    lens: LensOption = False,
    depths: Annotated[
        str | None, typer.Option(help="depths to read out, such as 4,8,12; all by default")
    ] = None,
    top_k: Annotated[int, typer.Option(help="number of most likely tokens to store")] = 0,
    save: Annotated[
        Path | None,
        typer.Option(help="folder to store the arrays in (.npy); a stopped probe continues"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="folder to write layers.png and heatmap.png to")
    ] = None,
    compiled: CompileOption = False,
    csv: Annotated[
        Path | None, typer.Option(help="CSV file to write, with a row per depth and token")
    ] = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read out every layer at every token, and print statistics per depth.

    Example: eepolicy probe pocket "What color is snow?" --reply --plot pictures
    """
    import eepolicy

    requested = None if depths is None else integers(depths)
    documents = _documents(text)
    probed = load_model(model, dtype, device, threads, heads)
    shown: Iterable[str] = progress("documents")(documents)
    inputs: Any = (probed.generate(d) for d in shown) if reply else shown
    result = eepolicy.probe(
        probed,
        inputs,
        depths=requested,
        heads=probed.lens if lens else None,
        top_k=top_k,
        save=save,
        compile=compiled,
    )
    files = [file for file in (save, csv) if file]
    if not as_json:
        out.print(str(result), highlight=False, markup=False, soft_wrap=True)
    files += _write(result, save, csv, plot)
    if as_json:
        print_json(
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


def _documents(text: str) -> list[str]:
    """The text itself, or the lines of a file."""
    file = Path(text)
    documents = read_lines(file) if _is_file(file) else [text]
    if not any(document.strip() for document in documents):
        raise EepolicyError(f"{text} contains no text")
    return documents


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the text is too long for a file name
        return False


def _write(
    result: ProbeResult, save: Path | None, csv: Path | None, plot: Path | None
) -> list[Path]:
    """Write the table and the figures; returns the files of the figures."""
    if save:
        print_note(f"The arrays are in {save}")
    if csv:
        result.to_pandas().to_csv(csv, index=False)
        print_note(f"The table is in {csv}")
    if not plot:
        return []
    plot.mkdir(parents=True, exist_ok=True)
    files = []
    for name in ("layers", "heatmap"):
        files.append(plot / f"{name}.png")
        getattr(result.plot, name)().savefig(files[-1], dpi=150)
    print_note(f"The figures are in {plot}")
    return files
