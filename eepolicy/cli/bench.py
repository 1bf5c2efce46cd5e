"""`eepolicy bench`: what policies save in seconds, here, and what the machine would allow."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.shared import (
    CompileOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    ThreadsOption,
    app,
    load,
    note,
    numbers,
    out,
    progress,
    tell,
    torch_dtype,
)
from eepolicy.errors import EepolicyError

FIRST = (
    "*First token*: from the call until it is known, the prompt's pass included; *behind it*: the "
    "rest of the same reply's time, and the speed against `full` there."
)


@app.command()
def bench(
    policies: Annotated[
        list[str] | None, typer.Argument(help="policies; some usual ones where none are given")
    ] = None,
    model: ModelOption = "pocket",
    prompts: Annotated[int, typer.Option(help="held-out questions", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="turns of each policy on each batch", min=1)] = 2,
    batch: Annotated[str, typer.Option(help="rows side by side, one or several: 1,8")] = "1",
    context: Annotated[
        str | None,
        typer.Option(
            help="tokens of a prompt, one or several: 128,4096; questions are repeated for it"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of a reply", min=1)] = 400,
    exactly: Annotated[
        bool, typer.Option("--exactly", help="no reply ends before; so it is for a text model")
    ] = False,
    first_token: Annotated[
        bool,
        typer.Option("--first-token", help="time the first token apart: for long prompts"),
    ] = False,
    stock: Annotated[bool, typer.Option(help="time transformers' own generate as well")] = True,
    compiled: CompileOption = False,
    threads: ThreadsOption = 1,
    dtype: DtypeOption = "float32",
    device: Annotated[str, typer.Option(help="that the model runs on: cpu, cuda ...")] = "cpu",
    write: Annotated[
        Path | None,
        typer.Option("--out", help="write the tables here as well (.md), their figure beside it"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time policies against full depth and the stock generate, in turns in one run.

    Beside each time stands what the machine would allow: the weights, keys and values that must be
    read, at the speed at which it reads, or the products, at the speed at which it multiplies.  A
    run that is stopped keeps nothing: times of another run do not compare.

    Example: eepolicy bench spark:triple@14 static@10 --batch 1,8 --context 128,900 --compile
    """
    import torch
    import transformers

    import eepolicy
    from eepolicy.analysis.timing import figure as timing_figure
    from eepolicy.analysis.timing import runner as benching
    from eepolicy.loading import held_out

    for spec in policies or ():
        eepolicy.parse_policy(spec)
    sizes = numbers(batch, "rows of a batch", "1,8")
    if min(sizes) < 1:
        raise EepolicyError(f"a batch has one row or more; got --batch {batch}")
    lengths = numbers(context, "tokens of a prompt", "128,4096") if context else (None,)
    if min(length or 2 for length in lengths) < 2:
        raise EepolicyError(f"a prompt to repeat has two tokens or more; got --context {context}")
    if first_token and max_new_tokens < 2:
        raise EepolicyError("nothing is behind the first token of --max-new-tokens 1")
    if write and not write.parent.is_dir():
        raise EepolicyError(f"there is no folder {write.parent} to write {write.name} to")
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()  # its self-speculation warns of its own options
    spoken = load(model, dtype=torch_dtype(dtype))
    spoken.to(device)
    known = held_out("test")
    if prompts > len(known):
        raise EepolicyError(f"there are {len(known)} test questions; got --prompts {prompts}")
    questions = [q["question"] for q in known[:prompts]]
    exactly = exactly or context is not None or not spoken.layout.has_speech
    named = list(policies or benching.usual_policies(spoken))
    results, pages = [], []
    tables: dict[str, list[dict[str, Any]]] = {}
    for length, rows in product(lengths, sizes):
        asked = benching.prompts_of(spoken, questions, length)
        timing = benching.Bench(
            spoken, asked, max_new_tokens, exactly, rounds, compiled, first_token
        )
        ways = timing.ways(named, rows, stock)
        found = timing.run(ways, rows, progress(f"turns of {rows} rows"))
        tokens = sum(map(len, asked)) / len(asked)
        results += [record | {"prompt_tokens": tokens} for record in found]
        tables[_title(rows, length)] = found
        gigabytes, gigaflops = timing.machine.bytes_per_second / 1e9, timing.machine.flops / 1e9
        limits = f"The machine reads {gigabytes:.1f} GB/s and multiplies {gigaflops:.0f} GFLOP/s."
        title = _title(rows, length) + (", compiled" if compiled else "")
        pages += ["", f"## {title}", "", limits, *benching.markdown(found)]
        if not as_json:
            note(limits)
            figures = benching.headings(found)
            cells = (benching.cells(record, figures) for record in found)
            out.print(_table(title, cells, figures.values()))
    about = {
        "model": Path(model).name,
        "layers": spoken.depth,
        "prompts": prompts,
        "prompt_tokens": sorted({record["prompt_tokens"] for record in results}),
        "max_new_tokens": max_new_tokens,
        "exactly": exactly,
        "rounds": rounds,
        "first_token": first_token,
        "compiled": compiled,
        "threads": threads,
        "dtype": dtype,
        "device": device,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if write:
        picture = Path("images") / f"{write.stem}.svg"
        timing_figure.draw(tables, write.parent / picture)
        shown = ["", f"![Milliseconds a token of each way of decoding]({picture})"]
        write.write_text("\n".join([*_heading(about), *shown, *pages]) + "\n")
    if as_json:
        tell(about | {"results": results})


def _title(rows: int, length: int | None) -> str:
    return f"Batch {rows}" + (f", prompts of {length} tokens" if length else "")


def _table(title: str, rows: Iterable[list[str]], headings: Iterable[str]) -> Table:
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("decoding", no_wrap=True)
    for heading in headings:
        shown.add_column(heading.replace("`", ""), justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


def _heading(about: dict[str, Any]) -> list[str]:
    """What was measured, for a page."""
    length = "exactly" if about["exactly"] else "at most"
    asked = ", ".join(f"{tokens:.0f}" for tokens in about["prompt_tokens"])
    return [
        f"# Decoding {about['model']}" + (", compiled" if about["compiled"] else ""),
        "",
        f"{about['layers']} layers, {about['dtype']}, {about['prompts']} prompts of "
        f"{asked} tokens on average, {length} {about['max_new_tokens']} "
        f"tokens a reply, {about['rounds']} rounds, {about['threads']} thread(s), torch "
        f"{about['torch']}, transformers {about['transformers']}. All ways take turns on the same "
        "prompts in one run.",
        "",
        "    eepolicy " + shlex.join(sys.argv[1:]),
        "",
        "*Promised*: the speed-up that the layer calls and head calls a token would give if each "
        "cost what it costs on one position a row, beside the prompt's pass, out of which the "
        "first token comes where its policy neither looks nor exits. *Harvest*: measured divided "
        "by promised. *Limit*: the time in which the machine could read, once a "
        "step, the weights, keys and values that the step needs, or multiply, whichever takes "
        "longer; *share of it*: limit divided by measured.",
        *(["", FIRST] if about["first_token"] else []),
    ]
