"""`eepolicy tune`: find the policy with the fewest layer calls within a loss budget."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eepolicy.cli.options import (
    DeviceOption,
    HeadsOption,
    JsonOption,
    ModelOption,
    ThreadsOption,
    check_parent,
    held_out_questions,
    integers,
    load_model,
)
from eepolicy.cli.shared import app, out, print_json, print_markdown, print_note
from eepolicy.cli.workers import GpusOption, ModelSource, RayOption, WorkersOption, connected
from eepolicy.errors import EepolicyError
from eepolicy.io import write_text
from eepolicy.workers import WorkerConfig

if TYPE_CHECKING:
    from eepolicy.analysis.studies.policy_search import SearchResult


@app.command()
def tune(
    prompts: Annotated[
        int, typer.Option(help="number of dev questions to search on", min=10)
    ] = 300,
    check: Annotated[
        int, typer.Option(help="number of test questions to check the result on", min=2)
    ] = 100,
    wer_loss: Annotated[
        float, typer.Option(help="allowed increase of the word error rate, in points", min=0)
    ] = 3.0,
    accuracy_loss: Annotated[
        float, typer.Option(help="allowed decrease of the accuracy, in points", min=0)
    ] = 5.0,
    depths: Annotated[
        str | None,
        typer.Option(help="exit depths to try, such as 18,16,14; down to half by default"),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="confidence level of the guarantee", min=0.5, max=0.999)
    ] = 0.95,
    model: ModelOption = "pocket",
    heads: HeadsOption = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Markdown file to write the table to (.md)")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="folder to store measurements in; a stopped search continues from it"),
    ] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Search schedules for the fewest layer calls within a loss budget, with a guarantee.

    Example: eepolicy tune --wer-loss 4 --accuracy-loss 8 --keep work/tune
    """
    from eepolicy.analysis.studies import policy_search
    from eepolicy.analysis.studies.base import BatchOptions
    from eepolicy.analysis.studies.batch_scores import BatchScorer, make_scorer
    from eepolicy.model.threads import one_thread
    from eepolicy.speech import asr

    check_parent(out_file)
    if asr.missing_asr():
        raise EepolicyError(f"the search needs speech recognition: {asr.missing_asr()}")
    spoken = load_model(model, device=device, threads=threads, heads=heads)
    calibration, others = held_out_questions(model, "dev"), held_out_questions(model, "test")
    if prompts > len(calibration) or check > len(others):
        raise EepolicyError(
            f"there are {len(calibration)} dev and {len(others)} test questions; "
            f"got --prompts {prompts} --check {check}"
        )
    budget = policy_search.LossBudget(wer_loss / 100, accuracy_loss / 100, confidence)
    config, whisper = connected(WorkerConfig(workers, ray, gpus)), asr.Whisper(threads=threads or 1)
    source = ModelSource(model, device=device, heads=heads)
    load = source.for_workers(spoken, config)
    length = BatchOptions().max_new_tokens
    own = BatchScorer(spoken, whisper, length)
    make = partial(make_scorer, load or source.load, partial(asr.Whisper, threads=1), length)
    spread = config if load else WorkerConfig(0)
    with one_thread(spread.spreads), spread.start(make, own) as scorers:
        result = policy_search.search_policies(
            policy_search.PolicyEvaluator(spoken, whisper, keep, workers=scorers),
            calibration[:prompts],
            others[:check],
            budget,
            candidates=policy_search.policy_chains(
                spoken.depth, None if depths is None else integers(depths)
            ),
            report=print_note,
        )
    summary = _summary(result, check)
    if out_file:
        write_text(out_file, f"{result.table()}\n\n{summary}\n")
    if as_json:
        print_json(
            {
                "model": model,
                "prompts": prompts,
                "check": check,
                "budget": asdict(budget),
                "best": result.best,
                "checked": result.checked,
                "results": result.tried,
                "files": [file for file in (out_file, keep) if file],
            }
        )
        return
    print_markdown(result.table())
    out.print(summary, highlight=False, markup=False, soft_wrap=True)


def _summary(result: SearchResult, check: int) -> str:
    """The policy and its losses on other questions, in one line."""
    measured = result.checked
    wer = [100 * measured[f"wer_loss{end}"] for end in ("", "_low", "_high")]
    # a loss of accuracy is shown as a change, so its bounds swap
    accuracy = [-100 * measured[f"accuracy_loss{end}"] for end in ("", "_high", "_low")]
    changes = [
        f"{value:+.1f} [{low:+.1f}, {high:+.1f}] points" for value, low, high in (wer, accuracy)
    ]
    return (
        f"{result.best}: {measured['calls']:.2f} layer calls a token; on {check} other "
        f"questions WER {changes[0]}, accuracy {changes[1]}"
    )
