"""`eepolicy generate`: answer one question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eepolicy.cli.options import (
    AcceptOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    FillOption,
    HeadsOption,
    JsonOption,
    ModelOption,
    PredictorOption,
    RestrictVocabOption,
    TemperatureOption,
    ThreadsOption,
    TopPOption,
    check_parent,
    load_model,
    sampling_options,
)
from eepolicy.cli.shared import app, out, print_json, print_note
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from eepolicy.decode.output import Output


@app.command()
def generate(
    question: Annotated[
        str, typer.Argument(help="text of the question; with --spoken a sound file")
    ],
    policy: Annotated[str, typer.Option(help="exit policy, see 'eepolicy policies'")] = "full",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="wav file to write the speech to")
    ] = None,
    is_spoken: Annotated[
        bool,
        typer.Option("--spoken", help="the question is a sound file (wav, flac, ogg or mp3)"),
    ] = False,
    is_chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="send the question through the model's chat template, or as it is; by default "
            "through the template if there is one",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = "pocket",
    heads: HeadsOption = None,
    predictor: PredictorOption = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="maximum number of tokens of the reply")
    ] = 400,
    fill: FillOption = "catch_up",
    accept: AcceptOption = "all",
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: Annotated[int, typer.Option(help="seed of sampling")] = 0,
    compiled: CompileOption = False,
    restrict_vocab: RestrictVocabOption = False,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer one question, print the text and the layer calls, and write the speech.

    Example: eepolicy generate "What is the capital of France?" --policy spark:triple@14 --out a.wav
    """
    from eepolicy.speech.audio import write_wav
    from eepolicy.speech.mel import SAMPLE_RATE

    check_parent(out_file)
    if out_file and out_file.suffix != ".wav":
        raise EepolicyError(f"speech is written as .wav; got --out {out_file}")
    spoken = load_model(model, dtype, device, threads, heads, predictor)
    prompt: Any = Path(question) if is_spoken else question
    if not is_spoken and (spoken.has_chat_template if is_chat is None else is_chat):
        prompt = [{"role": "user", "content": question}]
    output = spoken.generate(
        prompt,
        policy,
        max_new_tokens,
        fill=fill,
        accept=accept,
        compile=compiled,
        restrict_vocab=restrict_vocab,
        seed=seed,
        **sampling_options(temperature, top_p),
    )
    if out_file:
        wave = output.audio
        write_wav(out_file, wave)
    if as_json:
        print_json(_document(output, spoken.depth))
        return
    out.print(output.text, highlight=False, markup=False)
    print_note(_summary(output, spoken.depth))
    if out_file:
        print_note(f"{len(wave) / SAMPLE_RATE:.2f} s of speech in {out_file}")


def _summary(output: Output, full_depth: int) -> str:
    """Depths, layer calls and time of a reply in one line."""
    trace = output.trace
    calls, full = int(trace.layer_calls.sum()), len(trace) * full_depth
    return (
        f"{trace!r}; {calls} layer calls instead of {full} ({1 - calls / full:.0%} saved), "
        f"{output.seconds:.2f} s" + ("" if output.ended else "; stopped at --max-new-tokens")
    )


def _document(output: Output, full_depth: int) -> dict[str, Any]:
    """A reply as JSON types."""
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
