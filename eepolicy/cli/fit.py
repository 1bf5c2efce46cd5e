"""`eepolicy fit`: fit exit heads on the model's own replies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.codebooks import refuse_options
from eepolicy.cli.fit_prompts import Prompts, partition, prompts_to_fit_on, spread_over
from eepolicy.cli.fit_rounds import RoundsFiles, RoundsSource, fit_in_rounds
from eepolicy.cli.options import (
    CompileOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    ModelArgument,
    ThreadsOption,
    check_parent,
    integers,
    load_model,
)
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import app, out, print_json, print_note, print_warning
from eepolicy.cli.workers import GpusOption, ModelSource, RayOption, WorkersOption, connected
from eepolicy.errors import EepolicyError
from eepolicy.folder_lock import locked_file
from eepolicy.workers import WorkerConfig

if TYPE_CHECKING:
    from eepolicy.fitting import FitConfig, FitResult, Generation
    from eepolicy.hooked import HookedModel

#: bytes beside the model up to which all depths are fitted at once
AT_ONCE = 4 * 2**30
#: fields of `FitConfig` that only a fit in stages reads, and fields without effect without rounds
OF_STAGES = ("batch_replies", "precision", "unroll", "num_layers")
OF_ROUNDS = ("policy", "mix", "part", "round_epochs")
#: bytes beside the model that are worth a line
WORTH_SAYING = 2**30
#: heading of the options of rounds in the help
ROUNDS_PANEL = "Options of branches, drafters and rounds"


@app.command()
def fit(
    model: ModelArgument,
    out_file: Annotated[
        Path, typer.Option("--out", help="file to write the heads to (.safetensors)")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="file with a prompt per line, or .jsonl with a text or chat turns per line; the "
            "model's dev questions by default"
        ),
    ] = None,
    heads: Annotated[
        str, typer.Option(help="kind of the heads: tuned, linear, low-rank, branch or drafter")
    ] = "tuned",
    depths: Annotated[
        str | None,
        typer.Option(
            help="depths of the heads, such as 8,12,16; all below full by default, 0 for a drafter"
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="rank of low-rank heads", min=1)] = 32,
    layers: Annotated[int, typer.Option(help="number of layers of a branch or drafter", min=1)] = 2,
    unroll: Annotated[
        int,
        typer.Option(
            help="number of drafts in a row that a drafter is fitted on",
            min=1,
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = 3,
    loss: Annotated[
        str, typer.Option(help="loss: soft (the paper's), reverse_kl or top:K")
    ] = "soft",
    on: Annotated[
        str, typer.Option(help="positions that the loss is computed on: text, speech or both")
    ] = "both",
    epochs: Annotated[
        int, typer.Option(help="maximum number of passes over the replies", min=1)
    ] = 5,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="largest learning rate on full-depth replies; by default 1e-3, and 1.5e-3 for a "
            "fit in rounds, a branch or a drafter"
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(help="number of rounds on own replies", min=0, rich_help_panel=ROUNDS_PANEL),
    ] = 0,
    round_epochs: Annotated[
        int,
        typer.Option(
            help="number of passes over the replies of a round", min=1, rich_help_panel=ROUNDS_PANEL
        ),
    ] = 6,
    mix: Annotated[
        float,
        typer.Option(
            help="share of full-depth replies among the replies of a round",
            min=0,
            max=0.99,
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = 0.5,
    part: Annotated[
        float,
        typer.Option(
            help="share of the questions that a round answers",
            min=0.001,
            max=1,
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = 0.5,
    precision: Annotated[
        str,
        typer.Option(
            help="type of products while fitting: float32, or bfloat16, which is faster where the "
            "processor has it",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = "float32",
    batch_replies: Annotated[
        int | None,
        typer.Option(
            help="number of replies in a step; by default 96, and fewer for few prompts",
            min=1,
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="policy of own replies; by default an exit at the depth that is fitted",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="file with heads to start from", rich_help_panel=ROUNDS_PANEL),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(
            help="folder for replies, states and checkpoints; by default beside --out",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = None,
    wer: Annotated[
        bool,
        typer.Option(
            "--wer",
            help="measure the word error rate of held-out replies after each round",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = False,
    compiled: CompileOption = False,
    questions: Annotated[
        int | None, typer.Option(help="number of prompts, drawn with the seed; all by default")
    ] = None,
    held_out: Annotated[
        str,
        typer.Option(help="share of the prompts for evaluation, or dev for the dev questions"),
    ] = "0.1",
    max_new_tokens: MaxNewTokensOption = 300,
    seed: Annotated[int, typer.Option(help="seed of initialisation and data order")] = 0,
    sampled: Annotated[
        bool,
        typer.Option(
            "--sampled",
            help="fit on replies that are sampled as the authors of a speech model do, as its card "
            "says; by default they are greedy",
        ),
    ] = False,
    by_depth: Annotated[
        bool | None,
        typer.Option(
            "--by-depth/--at-once",
            help="fit one depth after another, in the memory of one head, or a depth on each "
            "worker; by default where all depths would need more than 4 GiB",
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit an exit head per depth on the model's own replies.

    Replies and checkpoints are stored beside the heads until the fit is finished. A stopped fit
    continues when the command is run again. Branches, and heads with --rounds, are fitted one depth
    at a time, on full-depth replies and then on replies of the model that exits with the head. A
    drafter is fitted on full-depth replies alone. These fits compute in float32 and on all cores
    unless --dtype and --threads say otherwise.

    Example: eepolicy fit pocket --depths 8,12,16 --out heads.safetensors

    Example: eepolicy fit pocket --heads branch --depths 6 --rounds 2 --out heads.safetensors

    Example: eepolicy fit pocket --heads drafter --layers 1 --on speech --out drafter.safetensors
    """
    from eepolicy.fitting import FitConfig, Generation

    check_parent(out_file)
    worker_config = connected(WorkerConfig(workers, ray, gpus))
    config = FitConfig(
        kind=heads,
        depths=None if depths is None else tuple(integers(depths)),
        rank=rank,
        num_layers=layers,
        unroll=unroll,
        loss=loss,
        on=on,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_replies=batch_replies,
        seed=seed,
        rounds=rounds,
        round_epochs=round_epochs,
        mix=mix,
        part=part,
        policy=policy,
        precision=precision,
    )
    in_rounds = rounds > 0 or heads == "branch" or config.is_drafter
    if in_rounds:
        refuse_options(
            {"--sampled": sampled, "--by-depth or --at-once": by_depth is not None},
            "a fit in rounds has greedy replies and fits one depth after the other",
        )
        if not rounds and not config.is_drafter:
            refuse_options(_are_set(config, OF_ROUNDS), "without --rounds there are no rounds")
    else:
        of_rounds = {"--init": init, "--workdir": workdir, "--wer": wer, "--compile": compiled}
        of_rounds |= _are_set(config, (*OF_STAGES, *OF_ROUNDS))
        refuse_options(of_rounds, "a fit without --rounds has no stages")
    texts = prompts_to_fit_on(model, prompts, questions, held_out, seed, in_rounds)
    if in_rounds:
        kind = "float32" if dtype == "auto" else dtype
        source = RoundsSource(model, device, threads, compiled, max_new_tokens, worker_config, kind)
        files = RoundsFiles(out_file, workdir or out_file.with_suffix(".fit"), init)
        fit_in_rounds(source, texts, config, files, with_wer=wer, as_json=as_json)
        return
    fitted_model = load_model(model, dtype, device, threads, heads="lens")  # its own may not fit
    load = ModelSource(model, dtype, device, "lens").for_workers(fitted_model, worker_config)
    sampling = _sampling(fitted_model) if sampled else {}
    generation = Generation(max_new_tokens, workers=worker_config, load=load, sampling=sampling)
    with locked_file(out_file):
        result = _fit(fitted_model, texts, config, out_file, generation, by_depth)
    if as_json:
        keys = ("fitting", "replies", "held_out_replies", "epochs")
        notes = {key: result.notes[key] for key in keys}
        print_json({"model": model, **notes, "results": _rows(result), "files": [out_file]})
        return
    out.print(_table(result))
    print_note(
        f"The heads are in {out_file}; a model folder loads them under the name heads.safetensors"
    )


def _are_set(config: FitConfig, names: Sequence[str]) -> dict[str, bool]:
    """Whether fields differ from their defaults, by option."""
    return {
        f"--{name.removeprefix('num_').replace('_', '-')}": getattr(config, name)
        != getattr(type(config)(), name)
        for name in names
    }


def _fit(
    model: HookedModel,
    prompts: Prompts,
    config: FitConfig,
    out_file: Path,
    generation: Generation,
    by_depth: bool | None = None,
) -> FitResult:
    """Generate the replies, fit the heads and save them."""
    from eepolicy import fitting

    by_depth = _announce(model, config, prompts, generation, by_depth)
    replies_file, checkpoint, folder = (
        out_file.with_suffix(end) for end in (".replies.jsonl", ".checkpoint", ".depths")
    )
    everything = [*prompts.train, *prompts.held_out]
    replies = fitting.generate_replies(
        model,
        everything,
        max_new_tokens=generation.max_new_tokens,
        save=replies_file,
        progress=progress("batches of replies"),
        workers=generation.workers,
        load=generation.load,
        sampling=generation.sampling,
    )
    if prompts.share is None:
        chosen = {tuple(model.encode(prompt).tolist()) for prompt in prompts.held_out}
        is_held_out = [tuple(r.tokens[: r.prompt].tolist()) in chosen for r in replies]
    else:
        is_held_out = spread_over(replies, prompts.share)
    parts = partition(replies, is_held_out)
    spreads = by_depth and generation.load is not None and len(config.depths or (1, 2)) > 1
    bar = progress("depths" if spreads else "steps")
    report: dict[str, Any] = {"report": print_note, "progress": bar}
    if by_depth:
        report |= {"workers": generation.workers, "load": generation.load}
        result = fitting.fit_by_depth(model, *parts, config, folder, **report)
    else:
        result = fitting.fit(model, *parts, config, checkpoint=checkpoint, **report)
    result.heads.save(out_file, model.model, result.notes)
    for file in (replies_file, checkpoint):
        file.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # a killed fit leaves hidden files
    return result


def _sampling(model: HookedModel) -> dict[str, Any]:
    """The sampling options of the authors of a model.

    Raises:
        EepolicyError: the model has no card that says how to sample.
    """
    sampling = dict(model.card.sampling) if model.card else {}
    sampling.pop("do_sample", None)
    if not sampling:
        raise EepolicyError("--sampled is for models whose card says how the authors sample")
    return sampling


def _announce(
    model: HookedModel,
    config: FitConfig,
    prompts: Prompts,
    generation: Generation,
    by_depth: bool | None,
) -> bool:
    """Print the memory that fitting takes, and return whether depths are fitted one by one."""
    from eepolicy.fitting import fitting_memory
    from eepolicy.model.free_memory import free_memory

    longest = max(len(model.encode(p)) for p in (*prompts.train, *prompts.held_out))
    sizes: dict[str, Any] = {
        "width": model.width,
        "vocabulary": model.vocab_size,
        "full_depth": model.depth,
        "longest": longest + generation.max_new_tokens,
    }
    needed = sum(fitting_memory(config, **sizes).values())
    by_depth = needed > AT_ONCE if by_depth is None else by_depth
    if by_depth:
        needed = sum(fitting_memory(replace(config, depths=(1,)), **sizes).values())
        workers = WorkerConfig.of(generation.workers)
        if generation.load is not None and workers.ray is None:  # each process fits a depth
            depths = model.depth - 1 if config.depths is None else len(config.depths)
            needed *= min(workers.processes + 1, depths)
    if needed > WORTH_SAYING:
        how = "one depth after another" if by_depth else "all depths at once"
        print_note(f"Estimate: fitting takes {needed / 1e9:.1f} GB beside the model, {how}.")
    free = free_memory(model.device)
    if free is not None and needed > free:
        print_warning(f"Only {free / 1e9:.1f} GB are free on {model.device}.")
    return by_depth


def _rows(result: FitResult) -> list[dict[str, Any]]:
    """KL divergence and agreement before and after the fit, with a row per depth."""
    values = {
        f"{name}_{when}": result.notes[when][name]
        for name in ("kl", "agreement")
        for when in ("before", "after")
    }
    return [
        {"depth": depth} | {name: each[i] for name, each in values.items()}
        for i, depth in enumerate(result.heads.depths)
    ]


def _table(result: FitResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="held-out replies: plain logit lens and fitted heads")
    for heading in ("depth", "KL before", "KL after", "agreement before", "agreement after"):
        table.add_column(heading, justify="right")
    for depth, *values in (row.values() for row in _rows(result)):
        table.add_row(str(depth), *(f"{value:.3f}" for value in values))
    return table
