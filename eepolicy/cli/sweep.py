"""`eepolicy sweep`: comparisons on several models and tasks, from one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eepolicy.cli.comparison import (
    MetricOptions,
    QuestionOptions,
    has_compiler,
    print_comparison,
    run_comparison,
    warnings_of,
)
from eepolicy.cli.leaderboard import leaderboard
from eepolicy.cli.options import ThreadsOption, held_out_questions, load_model, sampling_options
from eepolicy.cli.shared import app, print_error, print_note
from eepolicy.cli.workers import GpusOption, ModelSource, RayOption, WorkersOption, connected
from eepolicy.errors import Caught, EepolicyError, described
from eepolicy.folder_lock import locked
from eepolicy.workers import WorkerConfig

if TYPE_CHECKING:
    from eepolicy.analysis.evaluation.sweep import Cell, SweepFile
    from eepolicy.hooked import HookedModel


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="TOML file of the sweep")],
    out_folder: Annotated[
        Path, typer.Option("--out", help="folder of the sweep; each comparison has one below it")
    ] = Path("sweep"),
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    threads: ThreadsOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="print the comparisons and their rows, and stop")
    ] = False,
) -> None:
    """Compare the same policies on several models and tasks, one comparison after the other.

    The file lists models, policies, fills, acceptance rules and tasks. Each model on each task is a
    comparison, as 'eepolicy compare' makes it, in its own folder. A leaderboard ranks all rows. A
    stopped sweep continues when the command is run again. A comparison that fails does not stop the
    others.

    Example: eepolicy sweep sweep.toml --out results/sweep

    Example: eepolicy sweep sweep.toml --ray auto --gpus-per-worker 1
    """
    from eepolicy.analysis.evaluation.sweep import read_sweep

    settings = read_sweep(file)
    rows, cells = settings.rows(), settings.cells()
    for number, cell in enumerate(cells, 1):
        print_note(f"{number} of {len(cells)}: {cell.name}, {len(rows)} rows")
    if plan:
        for row in rows:
            print_note(f"row: {row}")
        return
    config = connected(WorkerConfig(workers, ray, gpus))
    models = _LastModel(settings, threads)
    with locked(out_folder):
        failed: list[str] = []
        for number, cell in enumerate(cells, 1):
            print_note(f"{number} of {len(cells)}: {cell.name}")
            with Caught() as caught:
                _compare(settings, cell, out_folder / cell.name, models, config)
            if caught.error is not None:
                print_error(f"{cell.name}: {described(caught.error)}")
                failed.append(cell.name)
        if len(failed) < len(cells):
            folders = [out_folder / cell.name for cell in cells if cell.name not in failed]
            leaderboard(folders, out_file=out_folder / "leaderboard.md")
    if failed:
        raise EepolicyError(
            f"{len(failed)} of {len(cells)} comparisons failed: {', '.join(failed)}; run the "
            "command again to continue"
        )


class _LastModel:
    """Loads models, and keeps the last one: the comparisons of a sweep come model by model.

    Args:
        settings: the sweep.
        threads: number of CPU threads; None for the default.
    """

    def __init__(self, settings: SweepFile, threads: int | None) -> None:
        self.settings, self.threads = settings, threads
        self._name: str | None = None
        self._model: HookedModel | None = None

    def __call__(self, name: str) -> HookedModel:
        """The model of a name."""
        if self._model is None or self._name != name:
            self._model = None  # two models may not fit into memory
            dtype, device = self.settings.dtype, self.settings.device
            self._model, self._name = load_model(name, dtype, device, self.threads), name
        return self._model


def _compare(
    settings: SweepFile, cell: Cell, folder: Path, models: _LastModel, workers: WorkerConfig
) -> None:
    """Run or continue a comparison as `eepolicy compare` does."""
    from eepolicy.analysis.evaluation.config import RunConfig
    from eepolicy.analysis.evaluation.records import RunFolder

    metrics = MetricOptions(rater=settings.mos)
    notes = warnings_of(metrics, None)
    tasks = () if cell.task is None else (cell.task,)
    own = QuestionOptions("test", settings.prompts, tasks, None).own(folder)
    model = models(cell.model)
    source = ModelSource(cell.model, settings.dtype, settings.device)
    config = RunConfig(
        policies=settings.rows(),
        sampling=sampling_options(settings.temperature, settings.top_p),
        seeds=settings.seeds,
        max_new_tokens=settings.max_new_tokens,
        calibration=() if own else held_out_questions(cell.model, "dev"),
        batch=settings.batch,
        timed=settings.timed,
        compile_timed=has_compiler(),
        workers=workers,
        load=source.for_workers(model, workers, least=2),  # a single one is busy with speech
    )
    questions = own or held_out_questions(cell.model, "test", settings.prompts)
    results = run_comparison(model, questions, RunFolder(folder), config, metrics, notes)
    print_comparison(results, folder / "index.html")
