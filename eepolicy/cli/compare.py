"""`eepolicy compare`: policies on held-out questions, in figures and sound."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.preset import PRESETS, SpeechMetrics, give_voice, read_tasks, run_table2
from eepolicy.cli.shared import (
    AcceptOption,
    CompileOption,
    DtypeOption,
    FillOption,
    JsonOption,
    ModelOption,
    RestrictVocabOption,
    ThreadsOption,
    app,
    hint,
    load,
    out,
    progress,
    tell,
    torch_dtype,
)
from eepolicy.errors import EepolicyError


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
    temperature: Annotated[
        float | None, typer.Option(help="sample; greedy where none is given", min=0.01)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="sample among the likeliest", min=0.01, max=1)
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="replies of each policy to each question when sampling", min=1)
    ] = 1,
    threads: ThreadsOption = 1,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="NAME=FILE: questions of your own (jsonl, csv, parquet, hf:ID:CONFIG:SPLIT)",
        ),
    ] = None,
    tts: Annotated[
        str | None,
        typer.Option(
            help="asks in sound: a command with {text} and {file}, for a model with an audio encoder"
        ),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, to /v1, that judges answers")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="that judges")] = "gpt-4o-mini",
    judge_key: Annotated[
        str | None, typer.Option(help="of the endpoint", envvar="EEPOLICY_JUDGE_KEY")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="spark-table2: the paper's rows of the model, on --task")
    ] = None,
    fit_prompts: Annotated[
        Path | None,
        typer.Option(help="questions, a line each, to fit the preset's exit heads on"),
    ] = None,
    whisper: Annotated[
        str | None, typer.Option(help="CTranslate2 folder or name; the packaged tiny.en if none")
    ] = None,
    rater: Annotated[
        str, typer.Option("--mos", help="distillmos, dnsmos or utmosv2")
    ] = "distillmos",
    dtype: DtypeOption = "float32",
    device: Annotated[str, typer.Option(help="that the model runs on: cpu, cuda ...")] = "cpu",
    vocoder: Annotated[
        Path | None, typer.Option(help="checkpoint of the authors' vocoder, for the paper's models")
    ] = None,
    voice: Annotated[
        Path | None, typer.Option(help="sound file of the voice of step-audio-2-mini")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="most tokens of a reply; 400, 2048 in the preset", min=1)
    ] = None,
    compiled: CompileOption = False,
    restrict_vocab: RestrictVocabOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare policies on held-out questions: table, figures, and a page to listen to.

    Stopped in the middle and run again, it goes on where it was; run with more prompts, it adds
    them.

    Example: eepolicy compare spark:triple@14 "entropy<0.5@14" --prompts 50 --out my-report

    Example: eepolicy compare --preset spark-table2 --model zai-org/glm-4-voice-9b --dtype bfloat16
    --task triviaqa=triviaqa.jsonl --fit-prompts dialogues.txt --prompts 1000
    """
    import torch

    import eepolicy
    from eepolicy.analysis.evaluation import run as comparing
    from eepolicy.analysis.evaluation.llm_judge import LlmJudge
    from eepolicy.analysis.evaluation.records import RunFolder
    from eepolicy.analysis.evaluation.report import write_report
    from eepolicy.analysis.evaluation.tasks import spoken as speak_tasks
    from eepolicy.loading import held_out
    from eepolicy.speech import asr, mos

    torch.set_num_threads(threads)
    for spec in policies or ():
        eepolicy.parse_policy(spec)
    notes = [
        f"{what} not installed, its columns are empty: {missing}"
        for what, missing in (
            ("Speech recognition", asr.missing_asr(whisper)),
            ("Speech rating", mos.missing_mos(rater)),
        )
        if missing
    ]
    for missing in notes:
        hint(missing)
    if preset is not None and preset not in PRESETS:
        raise EepolicyError(f"presets are {', '.join(PRESETS)}; got {preset!r}")
    if preset is not None and policies:
        raise EepolicyError(f"the preset {preset} has policies of its own; give it none")
    plain = (fill, accept, temperature, top_p, seeds) == ("catch_up", "all", None, None, 1)
    plain = plain and not (compiled or restrict_vocab)
    if preset is not None and not plain:
        raise EepolicyError(
            f"the preset {preset} decodes as the paper: without --fill, --accept, --temperature, "
            "--top-p, --seeds, --compile and --restrict-vocab"
        )
    judge = None if judge_url is None else LlmJudge(judge_url, judge_model, judge_key)
    metrics = SpeechMetrics(
        None if asr.missing_asr(whisper) else asr.Whisper(whisper, threads),
        None if mos.missing_mos(rater) else mos.RATERS[rater](),
    )
    own = read_tasks(tasks, prompts) if tasks else []
    if tts is not None:
        sounds = out_folder.with_name(out_folder.name + "-questions")
        own = speak_tasks(own or held_out(asked, None)[:prompts], tts, sounds)
    spoken = load(model, dtype=torch_dtype(dtype))
    spoken.to(device)
    give_voice(spoken, vocoder, voice)
    command = "eepolicy " + shlex.join(sys.argv[1:])
    if preset is not None:
        results = run_table2(
            spoken,
            own,
            out_folder,
            metrics,
            judge,
            fit_prompts,
            max_new_tokens or 2048,
            command,
            notes,
        )
        if as_json:
            tell(results)
        return
    folder = RunFolder(out_folder)
    source = None if model == "pocket" else Path(model)
    everything = own or held_out(asked, source)
    if prompts > len(everything) and not own:
        raise EepolicyError(
            f"there are {len(everything)} {asked} questions; got --prompts {prompts}"
        )
    questions = everything if own else everything[:prompts]
    rows = comparing.run(
        spoken,
        questions,
        folder,
        policies=policies,
        calibration=() if own else held_out("dev", source),
        fill=fill,
        accept=accept,
        sampling={k: v for k, v in (("temperature", temperature), ("top_p", top_p)) if v},
        seeds=seeds,
        compile=compiled,
        restrict_vocab=restrict_vocab,
        asr=metrics.asr,
        mos=metrics.mos,
        judge=judge,
        max_new_tokens=max_new_tokens or 400,
        progress=progress("replies", lambda item: item[1]),
    )
    results = write_report(spoken, rows, questions, folder, command, notes)
    if as_json:
        tell(results)
        return
    out.print(_table(results))
    out.print(f"Open {out_folder / 'index.html'}", highlight=False, markup=False, soft_wrap=True)


def _table(results: list[dict[str, Any]]) -> Table:
    from eepolicy.analysis.evaluation.report import columns

    shown = Table(
        title=f"{results[0]['prompts']} prompts; 95 % intervals in the report",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("policy", no_wrap=True)
    measured = columns(results)
    for heading, _, _ in measured.values():
        shown.add_column(heading, justify="right", min_width=5)
    for row in results:
        cells = [
            "–" if row[name] is None else f"{scale * row[name]:.{digits}f}"
            for name, (_, scale, digits) in measured.items()
        ]
        shown.add_row(row["policy"], *cells)
    return shown
