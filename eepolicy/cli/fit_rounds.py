"""`eepolicy fit` for branches, drafters, and in rounds on own replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from eepolicy.cli.fit_prompts import Prompts
from eepolicy.cli.options import load_model
from eepolicy.cli.progress import progress
from eepolicy.cli.shared import out, print_json, print_note
from eepolicy.cli.workers import ModelSource
from eepolicy.errors import EepolicyError
from eepolicy.machine import available_cores
from eepolicy.workers import WorkerConfig

if TYPE_CHECKING:
    from eepolicy.fitting import FitConfig
    from eepolicy.hooked import HookedModel
    from eepolicy.probing import Document


@dataclass(frozen=True)
class RoundsSource:
    """The model, and how it replies.

    Attributes:
        name: see `eepolicy.load`.
        device: device of the model.
        threads: number of CPU threads; None for all cores.
        compile: compile the layers for generation.
        max_new_tokens: maximum number of tokens in a reply.
        workers: processes that help to generate.
        dtype: name of the data type of the weights.
    """

    name: str
    device: str
    threads: int | None
    compile: bool
    max_new_tokens: int
    workers: WorkerConfig
    dtype: str = "float32"


@dataclass(frozen=True)
class RoundsFiles:
    """Files of a fit.

    Attributes:
        out: file of the fitted heads.
        workdir: folder for replies, states and checkpoints.
        init: file of heads to start from, or None.
    """

    out: Path
    workdir: Path
    init: Path | None


def fit_in_rounds(
    source: RoundsSource,
    prompts: Prompts,
    config: FitConfig,
    files: RoundsFiles,
    *,
    with_wer: bool,
    as_json: bool,
) -> None:
    """Fit in rounds, save the heads, and print the figures of each round."""
    from eepolicy import fitting
    from eepolicy.heads import load_heads, read_notes

    threads = source.threads or available_cores()
    # the heads of the model are not used, and may not fit it any more
    model = load_model(source.name, source.dtype, source.device, threads, heads="lens")
    if with_wer:
        _check_speech(model)
    start = (
        None if files.init is None else load_heads(files.init, model.lens, model.model, config.kind)
    )
    load = ModelSource(source.name, source.dtype, source.device, "lens").for_workers(
        model, source.workers
    )
    generation = fitting.Generation(
        source.max_new_tokens,
        batch=64,
        compile=source.compile,
        workers=source.workers if load else 0,
        load=load,
    )
    questions = fitting.Questions(
        [model.encode(q) for q in prompts.train], [model.encode(q) for q in prompts.held_out]
    )
    measure = reply_word_errors if with_wer else None
    reports = fitting.Reports(print_note, progress, measure)
    result = fitting.fit_rounds(
        model, questions, config, files.workdir, start=start, generation=generation, reports=reports
    )
    notes = result.notes
    if files.init is not None:
        notes |= {"started_from": {"file": files.init.name, **read_notes(files.init)["notes"]}}
    result.heads.save(files.out, model.model, notes)
    rows = notes["rounds"]
    if as_json:
        keys = ("fitting", "policy", "replies", "held_out_replies")
        values = {key: notes[key] for key in keys}
        print_json({"model": source.name, **values, "results": rows, "files": [files.out]})
        return
    out.print(_table(rows))
    print_note(f"The heads are in {files.out}; {files.workdir} can be deleted")


def reply_word_errors(model: HookedModel, replies: Sequence[Document]) -> dict[str, Any]:
    """Word error rate of the speech of replies against their text, as in `eepolicy compare`.

    Returns:
        `wer` of all replies together, None without words; and for each reply `reply_errors`, the
        number of wrong words, and `reply_words`, the number of words of its text.
    """
    import torch

    from eepolicy.analysis.evaluation.scoring import word_errors
    from eepolicy.speech.asr import Whisper
    from eepolicy.speech.vocoders import decode_at

    assert model.vocoder is not None
    assert model.tokenizer is not None
    layout, asr = model.layout, Whisper(threads=torch.get_num_threads())
    errors, words = [], []
    for start in range(0, len(replies), 32):
        ids = [reply.reply for reply in replies[start : start + 32]]
        texts = [model.tokenizer.decode(layout.text_ids(i)).strip() for i in ids]
        waves = [decode_at(model.vocoder, layout.units(i)) for i in ids]
        for text, transcript in zip(texts, asr.transcribe_clips(waves), strict=True):
            wrong, total = word_errors(text, transcript)
            errors.append(wrong)
            words.append(total)
    wer = sum(errors) / sum(words) if any(words) else None
    return {"wer": wer, "reply_errors": errors, "reply_words": words}


def _check_speech(model: HookedModel) -> None:
    """Check that the word error rate can be measured, before any work.

    Raises:
        EepolicyError: the model has no vocoder or tokenizer, or there is no speech recognition.
    """
    from eepolicy.speech.asr import missing_asr

    if model.vocoder is None or model.tokenizer is None:
        raise EepolicyError("--wer needs a model with a vocoder and a tokenizer")
    if missing_asr():
        raise EepolicyError(f"--wer needs speech recognition: {missing_asr()}")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="held-out replies after each round")
    names = ["depth", "round", "agreement", "kl", "accepted", "agreement_own", "kl_own", "wer"]
    names = [name for name in names if any(name in row for row in rows)]
    for name in names:
        table.add_column(name.replace("_", ", ").replace("own", "own replies"), justify="right")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    return table


def _cell(value: float | str | None) -> str:
    """A cell of the table; a dash where nothing was measured."""
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
