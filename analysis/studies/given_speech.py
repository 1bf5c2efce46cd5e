"""Text inside given speech: the study `text_in_speech` on spoken examples with word times.

    python -m eepolicy.analysis.studies.given_speech DATA OUT --model FOLDER

DATA is a file (.jsonl, .json, .csv or .parquet) or a data set on the Hub (hf:ID:CONFIG:SPLIT), with
the sound and the word times of one example in a row; see
`eepolicy.analysis.evaluation.spoken_examples`.  The model's own speech tokenizer turns the sound
into units, and the times tell to which word each unit belongs.  OUT gets the table and the figure,
and stores the probe, from which a stopped run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from eepolicy import Document, EepolicyError, HookedModel, load, probe
from eepolicy.analysis.evaluation.spoken_examples import (
    ColumnNames,
    SpokenExample,
    read_spoken_examples,
)
from eepolicy.analysis.studies.base import progress_bar
from eepolicy.analysis.studies.spoken_words import (
    WORD_COLUMNS,
    spoken_token,
    statistics,
    with_given,
    word_rows,
)
from eepolicy.analysis.studies.text_in_speech import TextInSpeech, text_in_speech
from eepolicy.analysis.style import figures
from eepolicy.io import make_folder, write_figure, write_text
from eepolicy.speech.glm_speech_tokenizer import UnitPrompt
from eepolicy.speech.units import UNITS_PER_SECOND, Units
from eepolicy.speech.word_times import words_of_units

#: data types of the weights
_DTYPES = ("float32", "bfloat16", "float16")


def text_in_given_speech(
    model: HookedModel, examples: Sequence[SpokenExample], save: Path | None = None
) -> TextInSpeech:
    """Rank the words of spoken examples at the positions of their units.

    Args:
        model: model with a speech tokenizer.
        examples: speech with the times of its words.
        save: folder of the probe; None keeps it in memory.

    Returns:
        The study without exits: the model does not say these words, so none is changed.

    Raises:
        EepolicyError: the model has no speech tokenizer, or an example is too short for a unit.
    """
    documents, words = given_words(model, examples)
    documents, positions = with_given(model, documents, words)
    result = probe(
        model,
        documents,
        heads=model.lens,
        statistics=statistics(),
        save=save,
        progress=progress_bar("examples"),
    )
    study = text_in_speech(model.layout, result, positions, words, {})
    counts = {{"replies": "examples"}.get(name, name): n for name, n in study.counts.items()}
    # chunks of text and speech are parts of a reply
    positions = study.positions.assign(part="")
    return replace(study, positions=positions, counts=counts, source="example")


def given_words(
    model: HookedModel, examples: Sequence[SpokenExample]
) -> tuple[list[Document], pd.DataFrame]:
    """Turn spoken examples into units, and find the units of each word by its times.

    The units stand where the model reads the units of a spoken question, or else where it would
    reply.  A word has the token of its spelling after a space, or of its lower-case spelling.

    Args:
        model: model with a speech tokenizer.
        examples: speech with the times of its words.

    Returns:
        Documents whose reply is the units, and words as rows of `align_replies`.

    Raises:
        EepolicyError: the model has no speech tokenizer, or an example is too short for a unit.
    """
    encode, rate = speech_tokenizer(model)
    before, after = model.prompt_format.encode_affixes(is_spoken=True)
    spoken = model.audio_encoder
    prefix = torch.tensor(before + ([spoken.start] if isinstance(spoken, UnitPrompt) else after))
    documents, rows = [], list[tuple[Any, ...]]()
    for number, example in enumerate(examples):
        try:
            units = encode(example.wave)
        except EepolicyError as error:
            raise EepolicyError(f"{example.name}: {error}") from error
        ids = torch.cat([prefix.long(), units.cpu().long() + model.layout.speech[0]])
        # without a prefix, nothing predicts the first unit
        prompt = max(len(prefix), 1)
        owner = words_of_units(example.words, len(units), rate)[prompt - len(prefix) :]
        documents.append(Document(ids, prompt))
        tokens = [_token(model, word.word) for word in example.words]
        rows += word_rows(number, example.words, tokens, owner)
    return documents, pd.DataFrame(rows, columns=WORD_COLUMNS)


def speech_tokenizer(model: HookedModel) -> tuple[Callable[[Tensor], Tensor], float]:
    """What turns sound into the units of a model, and their number a second.

    Args:
        model: a speech model.

    Returns:
        A function from (samples,) at 16 kHz to units (units,), counted from 0; and the rate.

    Raises:
        EepolicyError: the model has no speech tokenizer, or no text tokenizer.
    """
    if model.tokenizer is None:
        raise EepolicyError("the words of given speech need the model's text tokenizer")
    prompt, vocoder = model.audio_encoder, model.vocoder
    rate = UNITS_PER_SECOND if isinstance(vocoder, Units) else getattr(model.card, "rate", None)
    if rate and isinstance(prompt, UnitPrompt):
        tokenizer = prompt.encoder
        return lambda wave: torch.cat(tokenizer.encode(wave)), rate
    encode = getattr(vocoder, "encode", None)
    if rate and encode is not None:
        return encode, rate
    raise EepolicyError(
        "given speech needs a speech tokenizer, which turns sound into units, and their rate; this "
        "model has none: take the pocket model, GLM-4-Voice with the folder glm-4-voice-tokenizer "
        "beside its own, or a model whose card names a codec and a rate"
    )


def _token(model: HookedModel, word: str) -> int:
    """The text token of a word; -1 for a word of several tokens."""
    tokenizer: Any = model.tokenizer
    spelt = (tokenizer(f" {w}", add_special_tokens=False).input_ids for w in (word, word.lower()))
    return next((token for ids in spelt if (token := spoken_token(model, ids)) >= 0), -1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="file or data set with the spoken examples")
    parser.add_argument("out", type=Path, help="folder of the table, the figure and the probe")
    parser.add_argument("--model", default="pocket", help="name or folder, see eepolicy.load")
    parser.add_argument("--vocoder", help="codec of a model whose card names one, or auto")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="name of a column that is not found: NAME is sound, words, word, start, end or times",
    )
    parser.add_argument("--device", default="cpu", help="device of the model")
    parser.add_argument("--dtype", default="float32", choices=_DTYPES, help="type of the weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        columns = ColumnNames.parse(args.column)
        examples = read_spoken_examples(args.data, columns, args.out / "sounds")
        model = load(args.model, getattr(torch, args.dtype), vocoder=args.vocoder).to(args.device)
        study = text_in_given_speech(model, examples, args.out / "probe")
        make_folder(args.out)
        write_text(args.out / "given-speech.md", study.table() + "\n")
        write_text(args.out / "given-speech.csv", study.to_pandas().to_csv(index=False))
        with figures():
            write_figure(args.out / "given-speech.svg", study.figure())
    except EepolicyError as error:
        parser.error(str(error))
    print(study.table())


if __name__ == "__main__":
    main()
