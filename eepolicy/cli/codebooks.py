"""`eepolicy generate` with a model of several codebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eepolicy.cli.options import device_map, torch_dtype
from eepolicy.cli.shared import print_json, print_note
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from eepolicy.codebooks import CodebookOutput, HookedCodebookModel


@dataclass(frozen=True)
class CodebookLoading:
    """The model that a command decodes with; the values are those of its options."""

    name: str
    dtype: str
    device: str
    threads: int | None
    heads: str | None
    depth_heads: Path | None

    def load(self) -> HookedCodebookModel:
        """Load the model without the progress bar of transformers, and set the CPU threads.

        Raises:
            EepolicyError: the model or its heads cannot be loaded.
        """
        from transformers.utils import logging

        from eepolicy.loading import load_codebooks
        from eepolicy.loading.threads import set_threads

        logging.disable_progress_bar()
        spread = device_map(self.device)
        dtype = torch_dtype(self.dtype, self.name, self.device)
        model = load_codebooks(
            self.name, dtype, heads=self.heads, depth_heads=self.depth_heads, **spread
        )
        set_threads(model.model, "auto" if self.threads is None else self.threads)
        return model if spread else model.to(self.device)


def refuse_options(values: Mapping[str, object], reason: str) -> None:
    """Refuse options that do not go with a model.

    Args:
        values: values by option; None and False stand for an option that is not set.
        reason: why, for the message.

    Raises:
        EepolicyError: an option is set.
    """
    wrong = [name for name, value in values.items() if value is not None and value is not False]
    if wrong:
        raise EepolicyError(f"{reason}, so it does not take {', '.join(wrong)}")


def generate_frames(
    question: str,
    loading: CodebookLoading,
    options: dict[str, Any],
    out_file: Path | None,
    as_json: bool,
) -> None:
    """Speak one text, print what it cost, and write the speech.

    Args:
        question: the text.
        loading: the model.
        options: options of `HookedCodebookModel.generate`.
        out_file: file for the speech; None for none.
        as_json: whether the results are printed as JSON.

    Raises:
        EepolicyError: the model cannot be loaded, or an option does not fit it.
    """
    from eepolicy.speech.audio import write_audio

    output = loading.load().generate(question, **options)
    assert not isinstance(output, list)
    seconds = 0.0
    if out_file is not None:
        wave = output.audio
        write_audio(out_file, wave, output.sampling_rate)
        seconds = len(wave) / output.sampling_rate
    if as_json:
        print_json(_document(output) | {"files": [out_file] if out_file else []})
        return
    ended = "" if output.ended else "; stopped at --max-new-tokens"
    print_note(f"{output.trace!r}; {output.seconds:.2f} s{ended}")
    if out_file is not None:
        print_note(f"{seconds:.2f} s of speech in {out_file}")


def _document(output: CodebookOutput) -> dict[str, Any]:
    """A reply as JSON types."""
    return {
        "ended": output.ended,
        "seconds": output.seconds,
        "codes": output.codes.tolist(),
        "trace": output.trace.to_dict(),
    }
