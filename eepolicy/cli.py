"""The command line: `eepolicy compare`, `eepolicy generate`, `eepolicy policies`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from eepolicy.model import HookedModel

app = typer.Typer(
    help="Early exit for language models that speak.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# a table that is piped is as wide as it needs to be
out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)

ModelOption = Annotated[str, typer.Option(help="'pocket' or a folder in its format")]
FillOption = Annotated[
    str, typer.Option(help="keys and values above an exit: catch_up, propagate, mask")
]
AcceptOption = Annotated[
    str, typer.Option(help="tokens read out early, once caught up: all, exact, ratio:0.3 ...")
]


@app.command()
def generate(
    question: Annotated[str, typer.Argument(help="a question in text")],
    policy: Annotated[str, typer.Option(help="policy, see 'eepolicy policies'")] = "full",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="write the speech here (wav)")
    ] = None,
    model: ModelOption = "pocket",
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of the reply")] = 400,
    fill: FillOption = "catch_up",
    accept: AcceptOption = "all",
) -> None:
    """Answer one question, say what was saved, write the speech.

    Example: eepolicy generate "What is the capital of France?" --policy spark:triple@14 --out a.wav
    """
    from eepolicy.speech.mel import SAMPLE_RATE
    from eepolicy.speech.wav import write_wav

    if out_file and not out_file.parent.is_dir():
        raise EepolicyError(f"there is no folder {out_file.parent} to write {out_file.name} to")
    if out_file and out_file.suffix != ".wav":
        raise EepolicyError(f"speech is written as .wav; got --out {out_file}")
    spoken = _load(model)
    output = spoken.generate(question, policy, max_new_tokens, fill=fill, accept=accept)
    trace = output.trace
    full = len(trace) * spoken.depth
    out.print(output.text, highlight=False, markup=False)
    out.print(
        f"{trace!r}; {trace.layer_calls.sum()} layer calls instead of {full} "
        f"({1 - trace.layer_calls.sum() / full:.0%} saved), {output.seconds:.2f} s"
        + ("" if output.ended else "; cut off before its end"),
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    if out_file:
        wave = output.wave()
        write_wav(out_file, wave)
        out.print(
            f"{len(wave) / SAMPLE_RATE:.2f} s of speech in {out_file}", style="dim", markup=False
        )


@app.command()
def compare(
    policies: Annotated[
        list[str] | None, typer.Argument(help="policies; the paper's rows where none are given")
    ] = None,
    prompts: Annotated[int, typer.Option(help="held-out questions", min=1)] = 24,
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the report")] = Path(
        "report"
    ),
    asked: Annotated[str, typer.Option("--set", help="held-out set: 'test' or 'dev'")] = "test",
    model: ModelOption = "pocket",
    fill: FillOption = "catch_up",
    accept: AcceptOption = "all",
    threads: Annotated[
        int, typer.Option(help="CPU threads of decoding; at this size one is fastest", min=1)
    ] = 1,
) -> None:
    """Compare policies on held-out questions: table, figures, and a page to listen to.

    Stopped in the middle and run again, it goes on where it was; run with more prompts, it adds
    them.

    Example: eepolicy compare spark:triple@14 "entropy<0.5@14" --prompts 50 --out my-report
    """
    import torch

    import eepolicy
    from analysis import compare as comparing
    from analysis.records import RunFolder
    from analysis.report import write_report
    from eepolicy.models import held_out
    from eepolicy.speech import asr, mos

    torch.set_num_threads(threads)
    for spec in policies or ():
        eepolicy.parse_policy(spec)
    notes = [
        f"{what} not installed, its columns are empty: {missing}"
        for what, missing in (
            ("Speech recognition", asr.missing_asr()),
            ("Speech rating", mos.missing_mos()),
        )
        if missing
    ]
    for note in notes:
        err.print(note, style="yellow", markup=False)
    spoken = _load(model)
    folder = RunFolder(out_folder)
    source = None if model == "pocket" else Path(model)
    everything = held_out(asked, source)
    if prompts > len(everything):
        raise EepolicyError(
            f"there are {len(everything)} {asked} questions; got --prompts {prompts}"
        )
    questions = everything[:prompts]
    rows = comparing.run(
        spoken,
        questions,
        folder,
        policies=policies,
        calibration=held_out("dev", source),
        fill=fill,
        accept=accept,
        asr=None if asr.missing_asr() else asr.Whisper(threads=threads),
        mos=None if mos.missing_mos() else mos.DistillMos(),
        progress=_progress,
    )
    command = "eepolicy " + shlex.join(sys.argv[1:])
    results = write_report(spoken, rows, questions, folder, command, notes)
    out.print(_terminal_table(results))
    out.print(f"Open {out_folder / 'index.html'}", highlight=False, markup=False, soft_wrap=True)


@app.command("policies")
def list_policies() -> None:
    """How policies are written."""
    from eepolicy.policies.spec import GRAMMAR

    out.print(f"A policy is one of: {GRAMMAR}", highlight=False, markup=False)


def _load(model: str) -> HookedModel:
    from transformers.utils import logging

    import eepolicy

    logging.disable_progress_bar()  # loading takes a second
    return eepolicy.load(model)


def _progress(items: Any) -> Any:
    """A progress bar with the time left, which vanishes when it is piped."""
    items = list(items)
    bar = Progress(
        TextColumn("replies"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[policy]}"),
        console=err,
        transient=True,
    )
    with bar:
        task = bar.add_task("replies", total=len(items), policy="")
        for item in items:
            bar.update(task, policy=item[1])
            yield item
            bar.advance(task)


def _terminal_table(results: list[dict[str, Any]]) -> Table:
    from analysis.report import COLUMNS

    shown = Table(
        title=f"{results[0]['prompts']} prompts; 95 % intervals in the report",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("policy", no_wrap=True)
    for heading, _, _ in COLUMNS.values():
        shown.add_column(heading, justify="right", min_width=5)
    for row in results:
        cells = [
            "–" if row[name] is None else f"{scale * row[name]:.{digits}f}"
            for name, (_, scale, digits) in COLUMNS.items()
        ]
        shown.add_row(row["policy"], *cells)
    return shown


def main() -> NoReturn:
    """Run the command line; errors that users are meant to see are one sentence, exit status 2."""
    try:
        # typer gives the exit status back, or None where a command ran to its end
        code = app(standalone_mode=False) or 0
    except EepolicyError as error:
        _say(str(error))
        code = 2
    except OSError as error:
        _say(str(error))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        error.show() if hasattr(error, "show") else _say(str(error))
        code = error.exit_code
    if code == 130:
        kept = "; replies that were finished are kept, and the same command goes on"
        _say("stopped" + (kept if "compare" in sys.argv[1:2] else ""))
    sys.exit(code)


def _say(sentence: str) -> None:
    err.print(f"eepolicy: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
