"""`eepolicy stats` and `eepolicy drift`: studies of a speech model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eepolicy.cli.options import (
    DeviceOption,
    HeadsOption,
    JsonOption,
    LensOption,
    ModelOption,
    ThreadsOption,
    held_out_questions,
    load_model,
)
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import app, print_json, print_markdown, print_note
from eepolicy.cli.workers import GpusOption, ModelSource, RayOption, WorkersOption, connected
from eepolicy.errors import EepolicyError
from eepolicy.io import make_folder, write_figure, write_text
from eepolicy.workers import WorkerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eepolicy.hooked import HookedModel

PromptsOption = Annotated[int, typer.Option(help="number of held-out questions", min=2)]
OutOption = Annotated[Path, typer.Option("--out", help="folder to write tables and figures to")]


@app.command()
def stats(
    prompts: PromptsOption = 50,
    out_folder: OutOption = Path("stats"),
    model: ModelOption = "pocket",
    heads: HeadsOption = None,
    lens: LensOption = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure layer statistics, confidence calibration, and repetition in text and speech.

    The probe is stored in the output folder. A stopped command continues when it is run again.

    Example: eepolicy stats --prompts 100 --out stats
    """
    import eepolicy
    from eepolicy.analysis.studies.base import depths_without_branch
    from eepolicy.analysis.studies.calibration import reliability
    from eepolicy.analysis.studies.layers import token_statistics
    from eepolicy.analysis.studies.sequences import by_modality, sequence_statistics
    from eepolicy.fitting.replies import generate_replies

    worker_config = connected(WorkerConfig(workers, ray, gpus))
    spoken = _speech_model(model, device, threads, heads)
    questions = [q["question"] for q in held_out_questions(model, "test", prompts)]
    load = ModelSource(model, device=device, heads=heads).for_workers(spoken, worker_config)
    make_folder(out_folder)
    replies = generate_replies(
        spoken,
        questions,
        max_new_tokens=400,
        save=out_folder / "replies.jsonl",
        progress=progress("batches of replies"),
        workers=worker_config,
        load=load,
    )
    result = eepolicy.probe(
        spoken,
        replies,
        depths=None if lens else depths_without_branch(spoken.depth, spoken.heads),
        heads=spoken.lens if lens else None,
        save=out_folder / "probe",
        progress=progress("probed replies"),
        workers=worker_config,
        load=load,
    )
    tokens, calibration = token_statistics(result), reliability(result)
    sequences = sequence_statistics(by_modality(spoken.layout, replies))
    files = [
        out_folder / "replies.jsonl",
        out_folder / "probe",
        *_write(out_folder, "statistics", tokens.table(), tokens.figure),
        *_write(out_folder, "reliability", calibration.table(), calibration.figure),
        *_write(out_folder, "sequences", sequences.table(), sequences.figure),
    ]
    if as_json:
        print_json(
            {
                "model": model,
                "prompts": prompts,
                "lens": lens,
                "tokens": tokens.tokens,
                "statistics": tokens.to_pandas(),
                "reliability": calibration.to_pandas(),
                "sequences": sequences.to_pandas(),
                "files": files,
            }
        )
        return
    print_markdown(tokens.table())
    print_note(f"The tables, figures and the probe are in {out_folder}")


@app.command()
def drift(
    policies: Annotated[
        list[str] | None,
        typer.Argument(help="exit policies; by default spark:triple at 0.7 of full depth"),
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(help="fill strategy: catch_up, propagate or mask; all by default"),
    ] = None,
    prompts: PromptsOption = 24,
    out_folder: OutOption = Path("drift"),
    model: ModelOption = "pocket",
    heads: HeadsOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure the drift of states and tokens between full-depth refreshes.

    It is measured on the same tokens (teacher forcing) and on free-running replies.

    Example: eepolicy drift spark:triple@14 static@14 --fill catch_up --fill mask --prompts 50
    """
    from eepolicy.analysis.studies.base import BatchOptions
    from eepolicy.analysis.studies.drift import FILLS
    from eepolicy.analysis.studies.drift import drift as measure_drift
    from eepolicy.decode.fills import parse_fill
    from eepolicy.policies import parse_policy

    for spec in fill or ():  # before the model is loaded
        parse_fill(spec)
    for spec in policies or ():
        parse_policy(spec)
    config = connected(WorkerConfig(workers, ray, gpus))
    spoken = _speech_model(model, device, threads, heads)
    questions = [q["question"] for q in held_out_questions(model, "test", prompts)]
    chosen = policies or [f"spark:triple@{round(0.7 * spoken.depth)}"]
    runs = [(policy, f) for policy in chosen for f in fill or list(FILLS)]
    make_folder(out_folder)
    options = BatchOptions(
        progress=progress("batches", lambda item: f"{item[0]} {item[1]}"),
        workers=config,
        load=ModelSource(model, device=device, heads=heads).for_workers(spoken, config),
    )
    result = measure_drift(spoken, questions, runs, options)
    files = _write(out_folder, "drift", result.table(), lambda: result.figure("kl"))
    for name, rows in (("tokens", result.tokens), ("replies", result.replies)):
        files.append(out_folder / f"{name}.csv")
        write_text(files[-1], rows.to_csv(index=False))
    if as_json:
        results = result.to_pandas()
        print_json({"model": model, "prompts": prompts, "results": results, "files": files})
        return
    print_markdown(result.table())
    print_note(f"The tables and figures are in {out_folder}")


def _speech_model(model: str, device: str, threads: int | None, heads: str | None) -> HookedModel:
    """Load a model with speech tokens.

    Raises:
        EepolicyError: the model has none.
    """
    spoken = load_model(model, device=device, threads=threads, heads=heads)
    if not spoken.layout.has_speech:
        raise EepolicyError(f"this study needs a speech model; {model} has no speech tokens")
    return spoken


def _write(folder: Path, name: str, table: str, figure: Callable[[], Figure]) -> list[Path]:
    """Write a table as Markdown and its figure as SVG and PNG; returns the files."""
    from eepolicy.analysis.style import figures

    text, *pictures = files = [folder / f"{name}.{kind}" for kind in ("md", "svg", "png")]
    write_text(text, table + "\n")
    with figures():
        drawn = figure()
        for file in pictures:
            write_figure(file, drawn, dpi=150)
    return files
