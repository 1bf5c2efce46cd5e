"""`eepolicy bench`: time exit policies against full depth and the roofline of the machine."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.options import (
    CompileOption,
    DeviceOption,
    DtypeOption,
    HeadsOption,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    PredictorOption,
    ThreadsOption,
    check_parent,
    held_out_questions,
    integers,
    load_model,
)
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import app, command_line, out, print_json, print_note
from eepolicy.errors import EepolicyError
from eepolicy.io import write_text

if TYPE_CHECKING:
    from eepolicy.analysis.timing.runner import Bench
    from eepolicy.hooked import HookedModel


@dataclass(frozen=True)
class BenchOptions:
    """Options of a benchmark that its page and its JSON document state.

    Attributes:
        prompts: number of held-out questions.
        max_new_tokens: maximum number of tokens per reply.
        exactly: whether every reply has that number of tokens.
        rounds: number of replies per policy and batch.
        first_token: whether the time to the first token is measured apart.
        compiled: whether the layers are compiled.
        dtype: data type of the weights.
        device: device of the model.
    """

    prompts: int
    max_new_tokens: int
    exactly: bool
    rounds: int
    first_token: bool
    compiled: bool
    dtype: str
    device: str


@app.command()
def bench(
    policies: Annotated[
        list[str] | None, typer.Argument(help="exit policies; a usual selection by default")
    ] = None,
    model: ModelOption = "pocket",
    heads: HeadsOption = None,
    predictor: PredictorOption = None,
    prompts: Annotated[int, typer.Option(help="number of held-out questions", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="number of runs per policy and batch", min=1)] = 2,
    batch: Annotated[str, typer.Option(help="batch size, or several: 1,8")] = "1",
    context: Annotated[
        str | None,
        typer.Option(
            help="number of prompt tokens, or several: 128,4096; questions are repeated to it"
        ),
    ] = None,
    max_new_tokens: MaxNewTokensOption = 400,
    exactly: Annotated[
        bool,
        typer.Option(
            "--exactly",
            help="decode exactly --max-new-tokens tokens per reply; always so for a text model "
            "and with --context",
        ),
    ] = False,
    first_token: Annotated[
        bool,
        typer.Option("--first-token", help="report the time to the first token (TTFT) apart"),
    ] = False,
    stock: Annotated[
        bool, typer.Option(help="also time the stock generate of transformers")
    ] = True,
    compiled: CompileOption = False,
    threads: ThreadsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    write: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Markdown file to write the tables to (.md), with a figure beside it"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time exit policies against full depth and the stock generate, alternating in one run.

    Each time is compared with the roofline: the time to read the weights, keys and values at the
    machine's bandwidth, or to multiply at its peak rate. Nothing is stored by a stopped run,
    because times of different runs are not comparable.

    Example: eepolicy bench spark:triple@14 static@10 --batch 1,8 --context 128,900 --compile
    """
    import transformers

    import eepolicy
    from eepolicy.analysis.timing.contenders import default_policies

    for spec in policies or ():
        eepolicy.parse_policy(spec)
    sizes, lengths = _sizes(batch), _lengths(context)
    uneven = [rows for rows in sizes if prompts % rows]
    if uneven:
        raise EepolicyError(
            f"all batches have the same number of rows: --prompts {prompts} is no multiple of "
            f"--batch {uneven[0]}; give another number of prompts"
        )
    if first_token and max_new_tokens < 2:
        raise EepolicyError(
            "there is no time after the first token with --max-new-tokens 1: give 2 or more"
        )
    check_parent(write)
    transformers.logging.set_verbosity_error()  # its self-speculation warns of its own options
    spoken = load_model(model, dtype, device, threads, heads, predictor)
    questions = [q["question"] for q in held_out_questions("pocket", "test", prompts)]
    exactly = exactly or context is not None or not spoken.layout.has_speech
    options = BenchOptions(
        prompts, max_new_tokens, exactly, rounds, first_token, compiled, _dtype_of(spoken), device
    )
    names = list(policies or default_policies(spoken))
    for spec in policies or ():
        eepolicy.parse_policy(spec).check(spoken.depth)
    tables: dict[str, list[dict[str, Any]]] = {}
    pages: list[str] = []
    for length, rows in product(lengths, sizes):
        timing = _timing(spoken, questions, length, options)
        contenders = timing.contenders(names, rows, stock)
        records = timing.run(contenders, rows, progress(f"trials of batch size {rows}"))
        tokens = sum(map(len, timing.prompts)) / len(timing.prompts)
        title = _title(rows, length)
        tables[title] = [record | {"prompt_tokens": tokens} for record in records]
        pages += _page(title, timing, records, compiled)
        if not as_json:
            _print_table(title, timing, records, compiled)
    results = [record for records in tables.values() for record in records]
    about = _about(model, spoken, results, options)
    files = _write(write, about, tables, pages) if write else []
    if as_json:
        print_json(about | {"results": results, "files": files})


def _dtype_of(model: HookedModel) -> str:
    """Data type of the weights of a model, such as `float32`."""
    from eepolicy.heads.int8 import has_int8

    kind = str(model.dtype).removeprefix("torch.")
    return f"{kind} with weights in int8" if has_int8(model.model) else kind


def _sizes(batch: str) -> list[int]:
    sizes = integers(batch, "rows of a batch", "1,8")
    if min(sizes) < 1:
        raise EepolicyError(f"a batch has one row or more; got --batch {batch}")
    return sizes


def _lengths(context: str | None) -> Sequence[int | None]:
    if context is None:
        return (None,)
    lengths = integers(context, "tokens of a prompt", "128,4096")
    if min(lengths) < 2:
        raise EepolicyError(f"a prompt to repeat has two tokens or more; got --context {context}")
    return lengths


def _timing(
    model: HookedModel, questions: Sequence[str], length: int | None, options: BenchOptions
) -> Bench:
    """The benchmark on prompts of one length; None for the questions' own lengths."""
    from eepolicy.analysis.timing.contenders import BenchConfig, bench_prompts
    from eepolicy.analysis.timing.runner import Bench

    config = BenchConfig(
        options.max_new_tokens,
        options.exactly,
        options.rounds,
        options.compiled,
        options.first_token,
    )
    return Bench(model, bench_prompts(model, questions, length), config)


def _title(rows: int, length: int | None) -> str:
    return f"Batch {rows}" + (f", prompts of {length} tokens" if length else "")


def _peak_rates(timing: Bench) -> str:
    """The device's bandwidth and peak rate in one sentence."""
    machine = timing.roofline.machine
    return (
        f"The device reads {machine.bytes_per_second / 1e9:.1f} GB/s and computes "
        f"{machine.flops / 1e9:.0f} GFLOP/s."
    )


def _page(
    title: str, timing: Bench, records: Sequence[dict[str, Any]], compiled: bool
) -> list[str]:
    """Lines of one table for the Markdown file."""
    from eepolicy.analysis.timing.table import section

    heading = f"## {title}" + (", compiled" if compiled else "")
    return ["", heading, "", _peak_rates(timing), section(records)]


def _print_table(
    title: str, timing: Bench, records: Sequence[dict[str, Any]], compiled: bool
) -> None:
    from eepolicy.analysis.timing.table import cells, shown_columns

    columns = shown_columns(records)
    rows = (cells(record, columns) for record in records)
    print_note(_peak_rates(timing))
    out.print(
        _table(title + (", compiled" if compiled else ""), rows, (c.heading for c in columns))
    )


def _table(title: str, rows: Iterable[list[str]], headings: Iterable[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("decoding", no_wrap=True)
    for heading in headings:
        table.add_column(heading.replace("`", ""), justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _about(
    name: str,
    model: HookedModel,
    results: Sequence[dict[str, Any]],
    options: BenchOptions,
) -> dict[str, Any]:
    """What was measured, and where."""
    import torch
    import transformers

    return {
        "model": Path(name).name,
        "layers": model.depth,
        "prompt_tokens": sorted({record["prompt_tokens"] for record in results}),
        "rows": sorted({record["rows"] for record in results}),
        **asdict(options),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _write(
    file: Path,
    about: dict[str, Any],
    tables: dict[str, list[dict[str, Any]]],
    pages: Sequence[str],
) -> list[Path]:
    """Write the page and its figure; returns both files."""
    from eepolicy.analysis.timing import figure

    picture = Path("images") / f"{file.stem}.svg"
    figure.draw(tables, file.parent / picture)
    shown = ["", f"![Milliseconds a token of each decoding method]({picture})"]
    write_text(file, "\n".join([*_heading(about), *shown, *pages]) + "\n")
    return [file, file.parent / picture]


def _page_title(about: dict[str, Any], prompt_tokens: str) -> str:
    """Title of the page; it tells pages of one model apart in a search."""
    rows = " and ".join(map(str, about["rows"])) + (" row" if about["rows"] == [1] else " rows")
    kind = ", compiled" if about["compiled"] else ""
    return f"Decoding {about['model']}{kind}: {rows}, prompts of {prompt_tokens} tokens"


def _heading(about: dict[str, Any]) -> list[str]:
    """First lines of the page: what was measured, and what the columns mean."""
    from eepolicy.analysis.timing.table import LATENCY_LEGEND, LEGEND

    length = "exactly" if about["exactly"] else "at most"
    prompt_tokens = ", ".join(f"{tokens:.0f}" for tokens in about["prompt_tokens"])
    return [
        f"# {_page_title(about, prompt_tokens)}",
        "",
        f"{about['layers']} layers, {about['dtype']}, {about['prompts']} prompts of "
        f"{prompt_tokens} tokens on average, {length} {about['max_new_tokens']} tokens a reply, "
        f"{about['rounds']} rounds, {about['threads']} thread(s), torch {about['torch']}, "
        f"transformers {about['transformers']}. The trials of all methods are "
        "interleaved in one run, on the same prompts.",
        "",
        f"    {command_line()}",
        "",
        LEGEND,
        *(["", LATENCY_LEGEND] if about["first_token"] else []),
    ]
