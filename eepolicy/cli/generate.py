"""`eepolicy generate`: answer one question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eepolicy.cli.codebook_options import (
    CodebooksOption,
    DepthHeadsOption,
    DepthPolicyOption,
    MissingOption,
)
from eepolicy.cli.codebooks import CodebookLoading, generate_frames, refuse_options
from eepolicy.cli.compare import VocoderOption, VoiceOption, VoiceTextOption
from eepolicy.cli.comparison import give_vocoder
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
from eepolicy.cli.process import as_text
from eepolicy.cli.shared import app, out, print_json, print_note
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from eepolicy.decode.output import Output
    from eepolicy.hooked import HookedModel


@app.command()
def generate(
    question: Annotated[
        str, typer.Argument(help="text of the question; with --spoken a sound file")
    ],
    policy: Annotated[str, typer.Option(help="exit policy, see 'eepolicy policies'")] = "full",
    depth_policy: DepthPolicyOption = None,
    codebooks: CodebooksOption = None,
    missing: MissingOption = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="file to write the speech to (wav, flac or ogg)")
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
    depth_heads: DepthHeadsOption = None,
    predictor: PredictorOption = None,
    vocoder: VocoderOption = None,
    voice: VoiceOption = None,
    voice_text: VoiceTextOption = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="maximum number of tokens of the reply")
    ] = 400,
    fill: FillOption = "catch_up",
    accept: AcceptOption = "all",
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    card_sampling: Annotated[
        bool, typer.Option("--card-sampling", help="sample as the authors do, by the model card")
    ] = False,
    seed: Annotated[int, typer.Option(help="seed of sampling")] = 0,
    compiled: CompileOption = False,
    restrict_vocab: RestrictVocabOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer one question, print the text and the layer calls, and write the speech.

    Example: eepolicy generate "What is the capital of France?" --policy spark:triple@14 --out a.wav
    """
    from eepolicy.loading.codebooks import has_codebooks
    from eepolicy.speech.audio import check_suffix, write_audio

    check_parent(out_file)
    if out_file:
        check_suffix(out_file)
    refuse_options({"--chat or --raw": is_spoken and is_chat is not None}, "a question is spoken")
    of_frames = {"depth_policy": depth_policy, "codebooks": codebooks, "missing": missing}
    if has_codebooks(model):
        one_stream = {
            "--spoken": is_spoken,
            "--chat": is_chat,
            "--predictor": predictor,
            "--vocoder": vocoder,
            "--voice": voice,
            "--voice-text": voice_text,
            "--restrict-vocab": restrict_vocab,
            "--card-sampling": card_sampling,
            "--accept": None if accept == "all" else accept,
        }
        refuse_options(one_stream, f"{model} has several codebooks")
        loading = CodebookLoading(model, dtype, device, threads, heads, depth_heads)
        decoding: dict[str, Any] = dict(of_frames, policy=policy, fill=fill)
        sampled = sampling_options(temperature, top_p) or {"do_sample": False}
        sampled |= {f"depth_decoder_{name}": value for name, value in sampled.items()}
        decoding |= {"max_new_tokens": max_new_tokens, "compile": compiled, "seed": seed} | sampled
        generate_frames(as_text(question), loading, decoding, out_file, as_json)
        return
    frame_options = {f"--{name.replace('_', '-')}": value for name, value in of_frames.items()}
    refuse_options(
        frame_options | {"--depth-heads": depth_heads},
        f"{model} has one stream of tokens, not several codebooks",
    )
    spoken = load_model(model, dtype, device, threads, heads, predictor)
    give_vocoder(spoken, vocoder, voice, voice_text)
    if out_file and spoken.vocoder is None:
        raise EepolicyError("--out takes a model with a vocoder; this one has none: see --vocoder")
    sampling = _card_sampling(spoken) if card_sampling else {}
    output = spoken.generate(
        Path(question) if is_spoken else _written(question, spoken, is_chat),
        policy,
        max_new_tokens,
        fill=fill,
        accept=accept,
        compile=compiled,
        restrict_vocab=restrict_vocab,
        seed=seed,
        **((sampling | sampling_options(temperature, top_p)) or {"do_sample": False}),
    )
    if out_file:
        wave = output.audio
        write_audio(out_file, wave, output.sampling_rate)
    if as_json:
        print_json(_document(output, spoken.depth) | {"files": [out_file] if out_file else []})
        return
    out.print(output.text, highlight=False, markup=False)
    print_note(_summary(output, spoken.depth))
    if out_file:
        print_note(f"{len(wave) / output.sampling_rate:.2f} s of speech in {out_file}")


def _written(question: str, model: HookedModel, is_chat: bool | None) -> Any:
    """A question in text, as a turn of a chat if the user says so or the model has a template."""
    text = as_text(question)
    as_turn = model.has_chat_template if is_chat is None else is_chat
    return [{"role": "user", "content": text}] if as_turn else text


def _card_sampling(model: HookedModel) -> dict[str, Any]:
    """Sampling options of a model's card.

    Raises:
        EepolicyError: it has no card.
    """
    if model.card is None:
        raise EepolicyError("the model has no card whose sampling --card-sampling could take")
    return dict(model.card.sampling)


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
