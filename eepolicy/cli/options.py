"""Options that several commands share, by topic, and the objects that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eepolicy.cli.shared import out
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    import torch

    from eepolicy.hooked import HookedModel

#: device maps of transformers, which `--device` takes too
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
#: headings of the options in the help, by topic
MODEL_PANEL = "Model options"
DECODING_PANEL = "Decoding options"

# ------------------------------------------------------------------ the model
MODEL_HELP = (
    "'pocket', a model folder, or the id of a causal language model on the Hugging Face Hub"
)
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
ModelOption = Annotated[str, typer.Option(help=MODEL_HELP, rich_help_panel=MODEL_PANEL)]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="data type of the weights: float32, bfloat16, float16, int8 (in the layers and the "
        "output embedding; the rest is float32), or auto: on a GPU as they are stored, and float32 "
        "on a CPU",
        rich_help_panel=MODEL_PANEL,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="device that the model runs on, such as cpu, cuda or cuda:1; auto, balanced, "
        "balanced_low_0 and sequential spread a model in Hugging Face format over all GPUs",
        rich_help_panel=MODEL_PANEL,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="number of CPU threads; by default 1 for a model with fewer than 150 million "
        "parameters, otherwise PyTorch's choice",
        min=1,
        rich_help_panel=MODEL_PANEL,
    ),
]

# ------------------------------------------------------------------ decoding
FillOption = Annotated[
    str,
    typer.Option(
        help="strategy for keys and values above an exit depth: catch_up, propagate or mask",
        rich_help_panel=DECODING_PANEL,
    ),
]
AcceptOption = Annotated[
    str,
    typer.Option(
        help="acceptance rule for tokens that were read out early: all, exact, ratio:0.3, ...",
        rich_help_panel=DECODING_PANEL,
    ),
]
CompileIfPossibleOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="compile the layers; by default only those of timed replies, if a C++ compiler is "
        "installed",
        rich_help_panel=DECODING_PANEL,
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="compile the layers; the first replies are slower, later ones faster",
        rich_help_panel=DECODING_PANEL,
    ),
]
RestrictVocabOption = Annotated[
    bool,
    typer.Option(
        "--restrict-vocab",
        help="restrict the readout of speech tokens to the speech vocabulary",
        rich_help_panel=DECODING_PANEL,
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        help="sampling temperature; decoding is greedy by default",
        min=0.01,
        rich_help_panel=DECODING_PANEL,
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        help="sample from the most likely tokens whose probabilities sum to this share",
        min=0.01,
        max=1,
        rich_help_panel=DECODING_PANEL,
    ),
]
MaxNewTokensOption = Annotated[
    int,
    typer.Option(help="maximum number of tokens per reply", min=1, rich_help_panel=DECODING_PANEL),
]

# ------------------------------------------------------------------ exit heads
HeadsOption = Annotated[
    str | None,
    typer.Option(
        help="exit heads: a kind in the model's folder such as branch or tuned, lens for the plain "
        "logit lens, or a file from 'eepolicy fit'; by default the best head of each depth",
        rich_help_panel=MODEL_PANEL,
    ),
]
PredictorOption = Annotated[
    Path | None,
    typer.Option(
        help="file with an exit predictor, from 'eepolicy fit-predictor'; the model's own by "
        "default",
        rich_help_panel=MODEL_PANEL,
    ),
]
LensOption = Annotated[
    bool, typer.Option(help="read out with the plain logit lens instead of the fitted heads")
]

# ------------------------------------------------------------------ output


def _print_to_stderr(as_json: bool) -> bool:
    """Keep stdout free for the JSON document: all other text goes to stderr."""
    out.stderr = as_json
    return as_json


JsonOption = Annotated[
    bool,
    typer.Option("--json", callback=_print_to_stderr, help="print the results as JSON to stdout"),
]


def load_model(
    name: str,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    heads: str | None = None,
    predictor: Path | None = None,
) -> HookedModel:
    """Load a model without the progress bar of transformers, and set the CPU threads.

    Args:
        name: see `eepolicy.load`.
        dtype: name of the data type of the weights, or `"auto"`.
        device: device to move the model to, or one of `DEVICE_MAPS`.
        threads: number of CPU threads; None for `"auto"` of `eepolicy.load`.
        heads: exit heads; see `eepolicy.load`.
        predictor: file with an exit predictor to use instead of the model's own.

    Raises:
        EepolicyError: the model, the heads or the predictor cannot be loaded.
    """
    from transformers.utils import logging

    import eepolicy
    from eepolicy.heads import load_predictor

    logging.disable_progress_bar()  # it would flicker for a second
    kind = torch_dtype(dtype, name, device)
    spread = device_map(device)
    model = eepolicy.load(name, dtype=kind, threads=threads or "auto", heads=heads, **spread)
    if predictor is not None:
        model.predictor = load_predictor(predictor, model.model)
    if not spread:
        model.to(device)
    return model


def device_map(device: str) -> dict[str, str]:
    """The option of `from_pretrained` that spreads a model; empty for a single device.

    Args:
        device: a device, or one of `DEVICE_MAPS`.
    """
    return {"device_map": device} if device in DEVICE_MAPS else {}


def torch_dtype(name: str, model: str, device: str) -> torch.dtype:
    """Look up a data type by name.

    Args:
        name: name of the data type, or `"auto"`: on a GPU that of the weights, and float32 on a
            CPU, where other types are slow.
        model: see `eepolicy.load`.
        device: device of the model.

    Raises:
        EepolicyError: models are not loaded in this type.
    """
    import torch

    names = ("float32", "bfloat16", "float16", "int8")
    known: dict[str, torch.dtype] = {kind: getattr(torch, kind) for kind in names}
    if name == "auto":
        from eepolicy.loading.stored_dtype import stored_dtype

        return torch.float32 if device == "cpu" else stored_dtype(model)
    if name not in known:
        raise EepolicyError(f"--dtype is auto, {', '.join(known)}; got {name!r}")
    return known[name]


def sampling_options(temperature: float | None, top_p: float | None) -> dict[str, float]:
    """Collect the sampling options that were given, for `HookedModel.generate`."""
    options = {"temperature": temperature, "top_p": top_p}
    return {name: value for name, value in options.items() if value is not None}


def integers(text: str, name: str = "depths", example: str = "4,8,12") -> list[int]:
    """Parse a list of integers.

    Args:
        text: integers with commas between them.
        name: what they are, for the message.
        example: an example for the message.

    Raises:
        EepolicyError: the text is not such a list.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise EepolicyError(f"{name} are numbers such as {example}; got {text!r}") from None


def held_out_questions(model: str, split: str, number: int | None = None) -> list[dict[str, Any]]:
    """Read the first questions of a model's held-out set.

    Args:
        model: `"pocket"`, or a model folder.
        split: `"test"` or `"dev"`.
        number: number of questions; all by default.

    Raises:
        EepolicyError: the set has fewer questions.
    """
    from eepolicy.loading import held_out

    questions = held_out(split, None if model == "pocket" else Path(model))
    if number is not None and number > len(questions):
        raise EepolicyError(f"there are {len(questions)} {split} questions; got --prompts {number}")
    return questions[:number]


def check_parent(file: Path | None) -> None:
    """Check that an output file can be written, before any work.

    Raises:
        EepolicyError: its folder does not exist, or it is a folder itself.
    """
    if file is not None and file.is_dir():
        raise EepolicyError(f"{file} is a folder: give the name of a file")
    if file is not None and not file.parent.is_dir():
        raise EepolicyError(f"there is no folder {file.parent} to write {file.name} to")
