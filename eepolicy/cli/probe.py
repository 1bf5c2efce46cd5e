"""`eepolicy probe`: read out every layer at every token."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial
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
    check_parent,
    integers,
    load_model,
)
from eepolicy.cli.process import as_text
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import app, out, print_json, print_note
from eepolicy.cli.workers import GpusOption, ModelSource, RayOption, WorkersOption, connected
from eepolicy.errors import EepolicyError
from eepolicy.io import make_folder, read_lines, write_figure, write_text
from eepolicy.workers import OrderedWorkers, WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from eepolicy.hooked import HookedModel
    from eepolicy.probing import Document, ProbeResult

#: least number of documents for workers of this machine by default; starting one takes seconds
MANY_DOCUMENTS = 16


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
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Read out every layer at every token, and print statistics per depth.

    Workers help where there are at least 16 documents, or --workers or --ray is given.

    Example: eepolicy probe pocket "What color is snow?" --reply --plot pictures

    Example: eepolicy probe pocket corpus.txt --save probe --workers 3
    """
    import eepolicy

    check_parent(csv)
    requested = None if depths is None else integers(depths)
    documents = _documents(text)
    few = workers is None and ray is None and len(documents) < MANY_DOCUMENTS
    config = connected(WorkerConfig(0 if few else workers, ray, gpus))
    probed = load_model(model, dtype, device, threads, heads)
    load = None
    if config.spreads:
        load = ModelSource(model, dtype, device, heads).for_workers(probed, config)
    inputs: Any = _replies(probed, documents, config, load) if reply else documents
    result = eepolicy.probe(
        probed,
        inputs,
        depths=requested,
        heads=probed.lens if lens else None,
        top_k=top_k,
        save=save,
        compile=compiled,
        progress=progress("documents"),
        workers=config,
        load=load,
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
    documents = read_lines(file) if _is_file(file) else [as_text(text)]
    if not any(document.strip() for document in documents):
        raise EepolicyError(f"{text} contains no text")
    return documents


@dataclass(frozen=True)
class _Replier:
    """Replies to a text.

    Attributes:
        model: the model.
    """

    model: HookedModel

    @classmethod
    def make(cls, load: Callable[[], HookedModel] | None) -> _Replier:
        """Load the model in a worker."""
        assert load is not None  # otherwise there is no worker
        return cls(load())

    def __call__(self, text: str) -> Document:
        from eepolicy.probing import Document

        return Document.of(self.model.generate(text, do_sample=False))


def _replies(
    model: HookedModel,
    texts: list[str],
    config: WorkerConfig,
    load: Callable[[], HookedModel] | None,
) -> list[Document]:
    """The model's replies, in the order of the texts."""
    from eepolicy.model.threads import one_thread

    spread = config if load else WorkerConfig(0)
    make, own = partial(_Replier.make, load), _Replier(model)
    with one_thread(spread.spreads), OrderedWorkers(spread, make, own) as workers:
        replies = workers.run(texts)
        return [next(replies) for _ in progress("replies")(texts)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False  # the text is too long for a file name


def _write(
    result: ProbeResult, save: Path | None, csv: Path | None, plot: Path | None
) -> list[Path]:
    """Write the table and the figures; returns the files of the figures."""
    if save:
        print_note(f"The arrays are in {save}")
    if csv:
        write_text(csv, result.to_pandas().to_csv(index=False))
        print_note(f"The table is in {csv}")
    if not plot:
        return []
    make_folder(plot)
    files = []
    for name in ("layers", "heatmap"):
        files.append(plot / f"{name}.png")
        write_figure(files[-1], getattr(result.plot, name)(), dpi=150)
    print_note(f"The figures are in {plot}")
    return files
