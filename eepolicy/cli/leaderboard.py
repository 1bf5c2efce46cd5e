"""`eepolicy leaderboard`: run one list of policies, and rank the rows of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eepolicy.cli.comparison import (
    MetricOptions,
    count_usage,
    has_compiler,
    terminal_table,
    warnings_of,
)
from eepolicy.cli.options import (
    DeviceOption,
    JsonOption,
    ThreadsOption,
    check_parent,
    held_out_questions,
    load_model,
)
from eepolicy.cli.progress import step_progress
from eepolicy.cli.shared import app, out, print_json, print_note
from eepolicy.cli.workers import GpusOption, ModelSource, RayOption, WorkersOption, connected
from eepolicy.errors import EepolicyError
from eepolicy.workers import WorkerConfig

#: folder of run folders that the command reads if none is given
RESULTS = Path("results")


@app.command()
def leaderboard(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="folders of comparisons, or folders that contain them; 'results' by default"
        ),
    ] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(
            "--run",
            help="first run the leaderboard's list of policies on the pocket model into this "
            "folder, or continue there",
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option(help="number of test questions of the pocket model for --run", min=1)
    ] = 300,
    out_file: Annotated[
        Path,
        typer.Option("--out", help="Markdown file; the sortable page .html is written beside it"),
    ] = Path("leaderboard.md"),
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Rank policies: those that are not worse than full depth first, the fastest on top.

    Each folder is one of 'eepolicy compare', or of --run.  A stopped --run continues when the
    command is run again.

    Example: eepolicy leaderboard results --out docs/leaderboard.md

    Example: eepolicy leaderboard --run results/pocket
    """
    from eepolicy.analysis.evaluation.leaderboard import HEADINGS, Leaderboard
    from eepolicy.analysis.evaluation.leaderboard_runs import read_runs
    from eepolicy.io import write_text

    check_parent(out_file)
    if out_file.suffix == ".html":
        raise EepolicyError(f"--out is the page in Markdown, as board.md; got {out_file}")
    if run_folder is not None:
        run_list(run_folder, prompts, device, threads, connected(WorkerConfig(workers, ray, gpus)))
    paths = list(folders or ([RESULTS] if RESULTS.is_dir() or run_folder is None else []))
    board = Leaderboard(tuple(read_runs([*paths, *([run_folder] if run_folder else [])])))
    page = out_file.with_suffix(".html")
    write_text(out_file, board.markdown(page.name))
    write_text(page, board.page())
    if as_json:
        rows = [
            {"folder": run.name, **run.rows[number]} for run, number in board.ordered
        ]  # in their order
        print_json({"results": rows, "files": [out_file, page]})
        return
    runs = f"{len(board.runs)} folder" + ("" if len(board.runs) == 1 else "s")
    out.print(terminal_table(f"{runs}, 95 % intervals", HEADINGS, board.lines()))
    for note in board.notes():
        print_note(note)
    print_note(f"The leaderboard is in {out_file}, the sortable page is {page}")


def run_list(
    folder: Path, prompts: int, device: str, threads: int | None, workers: WorkerConfig
) -> None:
    """Run the leaderboard's rows on the pocket model, as `eepolicy compare` runs its rows.

    Args:
        folder: run folder; an unfinished run continues.
        prompts: number of test questions.
        device: device of the model.
        threads: number of CPU threads; None for the default.
        workers: processes that help.
    """
    from eepolicy.analysis.evaluation.config import RunConfig
    from eepolicy.analysis.evaluation.leaderboard_rows import ROWS
    from eepolicy.analysis.evaluation.leaderboard_time import replies_left
    from eepolicy.analysis.evaluation.records import RunFolder
    from eepolicy.analysis.evaluation.run import run

    questions = held_out_questions("pocket", "test", prompts)
    left = replies_left(RunFolder(folder), questions, ROWS)
    if left:
        print_note(estimate(left))
    metrics = MetricOptions()
    warnings_of(metrics, None)
    spoken = load_model("pocket", device=device, threads=threads)
    config = RunConfig(  # what else is the default of `eepolicy compare` as well
        policies=ROWS,
        compile_timed=has_compiler(),
        workers=workers,
        load=ModelSource("pocket", "float32", device).for_workers(spoken, workers, least=2),
    )
    with count_usage(RunFolder(folder)):
        run(spoken, questions, RunFolder(folder), config, metrics, step_progress)


def estimate(replies: int) -> str:
    """A sentence on how long the replies take, from the speed of the machine at this moment."""
    from eepolicy.analysis.evaluation.leaderboard_time import estimated_seconds, minutes
    from eepolicy.analysis.timing.reference import reference_seconds

    seconds = estimated_seconds(replies, reference_seconds().all_threads_ratio)
    return f"{replies:,} replies to decode; estimate: {minutes(seconds)}"
