"""The command line: `eepolicy compare`, `eepolicy generate`, `eepolicy policies`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eepolicy.errors import EepolicyError

app = typer.Typer(
    help="Early exit for language models that speak.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)

ModelOption = Annotated[str, typer.Option(help="'pocket' or a folder in its format")]


@app.command()
def generate(
    question: Annotated[str, typer.Argument(help="a question in text")],
    policy: Annotated[str, typer.Option(help="policy, see 'eepolicy policies'")] = "full",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="write the speech here (wav)")
    ] = None,
    model: ModelOption = "pocket",
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of the reply")] = 400,
) -> None:
    """Answer one question, say what was saved, write the speech.

    Example: eepolicy generate "What is the capital of France?" --policy spark:triple@14 --out a.wav
    """
    import soundfile

    import eepolicy
    from eepolicy.speech.mel import SAMPLE_RATE

    if out_file and not out_file.parent.is_dir():
        raise EepolicyError(f"there is no folder {out_file.parent} to write {out_file.name} to")
    spoken = eepolicy.load(model)
    output = spoken.generate(question, policy, max_new_tokens)
    trace = output.trace
    full = len(trace) * spoken.depth
    out.print(output.text, highlight=False)
    out.print(
        f"{trace!r}; {trace.layer_calls.sum()} layer calls instead of {full} "
        f"({1 - trace.layer_calls.sum() / full:.0%} saved), {output.seconds:.2f} s"
        + ("" if output.ended else "; cut off before its end"),
        style="dim",
        highlight=False,
    )
    if out_file:
        wave = output.wave()
        soundfile.write(out_file, wave.numpy(), SAMPLE_RATE)
        out.print(f"{len(wave) / SAMPLE_RATE:.2f} s of speech in {out_file}", style="dim")


@app.command()
def compare(
    policies: Annotated[
        list[str] | None, typer.Argument(help="policies; the paper's rows where none are given")
    ] = None,
    prompts: Annotated[int, typer.Option(help="held-out questions", min=1)] = 24,
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the report")] = Path(
        "report"
    ),
    model: ModelOption = "pocket",
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
) -> None:
    """Compare policies on held-out questions: table, figures, and a page to listen to.

    Stopped in the middle and run again, it goes on where it was; run with more prompts, it adds
    them.

    Example: eepolicy compare spark:triple@14 "entropy<0.5@14" --prompts 50 --out my-report
    """
    import torch

    import eepolicy
    from analysis import compare as comparing
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
        err.print(note, style="yellow")
    spoken = eepolicy.load(model)
    folder = comparing.open_run(out_folder)
    source = None if model == "pocket" else Path(model)
    everything = held_out("test", source)
    if prompts > len(everything):
        raise EepolicyError(
            f"there are {len(everything)} held-out questions; got --prompts {prompts}"
        )
    questions = everything[:prompts]
    rows = comparing.run(
        spoken,
        questions,
        folder,
        policies=policies,
        calibration=held_out("dev", source),
        asr=None if asr.missing_asr() else asr.Whisper(threads=threads),
        mos=None if mos.missing_mos() else mos.DistillMos(),
        progress=_progress,
    )
    command = "eepolicy " + shlex.join(sys.argv[1:])
    results = write_report(spoken, rows, questions, folder, command, notes)
    out.print(_terminal_table(results))
    out.print(f"Open {out_folder / 'index.html'}")


@app.command("policies")
def list_policies() -> None:
    """How policies are written."""
    from eepolicy.policies.spec import GRAMMAR

    out.print(f"A policy is one of: {GRAMMAR}", highlight=False, markup=False)


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

    shown = Table(title=f"{results[0]['prompts']} prompts; 95 % intervals in the report")
    shown.add_column("policy", no_wrap=True)
    for heading, _, _ in COLUMNS.values():
        shown.add_column(heading, justify="right")
    for row in results:
        cells = [
            "–" if row[name] is None else f"{scale * row[name]:.{digits}f}"
            for name, (_, scale, digits) in COLUMNS.items()
        ]
        shown.add_row(row["policy"], *cells)
    return shown


def main() -> NoReturn:
    """Run the command line; errors that users are meant to see are one sentence, exit status 2."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever fetched
    try:
        app(standalone_mode=False)
    except EepolicyError as error:
        err.print(f"eepolicy: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        err.print(f"eepolicy: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        err.print(
            "eepolicy: stopped; what was finished is kept, the same command goes on", style="red"
        )
        sys.exit(130)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            show = getattr(error, "show", None)
            if show:
                show()
            sys.exit(getattr(error, "exit_code", 2))
        raise
    sys.exit(0)


if __name__ == "__main__":
    main()
