"""`eepolicy generate`: one answer, heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eepolicy.cli.shared import (
    AcceptOption,
    CompileOption,
    FillOption,
    JsonOption,
    ModelOption,
    RestrictVocabOption,
    app,
    load,
    note,
    out,
    tell,
)
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from eepolicy.decode.loop import Output


@app.command()
def generate(
    question: Annotated[str, typer.Argument(help="a question in text; with --spoken a sound file")],
    policy: Annotated[str, typer.Option(help="policy, see 'eepolicy policies'")] = "full",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="write the speech here (wav)")
    ] = None,
    spoken_question: Annotated[
        bool, typer.Option("--spoken", help="the question is a sound file (wav, flac, ogg, mp3)")
    ] = False,
    model: ModelOption = "pocket",
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of the reply")] = 400,
    fill: FillOption = "catch_up",
    accept: AcceptOption = "all",
    compiled: CompileOption = False,
    restrict_vocab: RestrictVocabOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer one question, say what was saved, write the speech.

    Example: eepolicy generate "What is the capital of France?" --policy spark:triple@14 --out a.wav
    """
    from eepolicy.speech.mel import SAMPLE_RATE
    from eepolicy.speech.audio import write_wav

    if out_file and not out_file.parent.is_dir():
        raise EepolicyError(f"there is no folder {out_file.parent} to write {out_file.name} to")
    if out_file and out_file.suffix != ".wav":
        raise EepolicyError(f"speech is written as .wav; got --out {out_file}")
    spoken = load(model)
    prompt = Path(question) if spoken_question else question
    output = spoken.generate(
        prompt,
        policy,
        max_new_tokens,
        fill=fill,
        accept=accept,
        compile=compiled,
        restrict_vocab=restrict_vocab,
    )
    trace = output.trace
    full = len(trace) * spoken.depth
    if out_file:
        wave = output.audio
        write_wav(out_file, wave)
    if as_json:
        tell(_told(output, spoken.depth))
        return
    out.print(output.text, highlight=False, markup=False)
    note(
        f"{trace!r}; {trace.layer_calls.sum()} layer calls instead of {full} "
        f"({1 - trace.layer_calls.sum() / full:.0%} saved), {output.seconds:.2f} s"
        + ("" if output.ended else "; cut off before its end")
    )
    if out_file:
        note(f"{len(wave) / SAMPLE_RATE:.2f} s of speech in {out_file}")


def _told(output: Output, full_depth: int) -> dict[str, Any]:
    """A reply for machines."""
    trace = output.trace
    return {
        "text": output.text,
        "ended": output.ended,
        "seconds": output.seconds,
        "tokens": output.tokens.tolist(),
        "units": output.units.tolist(),
        "depths": trace.depth.tolist(),
        "modalities": trace.modality.tolist(),
        "full_depth": full_depth,
        "layer_calls": int(trace.layer_calls.sum()),
    }
