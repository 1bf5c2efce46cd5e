"""Write and read files of exit predictors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.formats import parse
from eepolicy.heads.files import text_sizes
from eepolicy.heads.fingerprint import check_fingerprint, fingerprint
from eepolicy.heads.formats import PredictorHeader
from eepolicy.heads.predictor import ExitPredictor
from eepolicy.heads.weights import device_of
from eepolicy.io import write_atomically
from eepolicy.tensor_files import check_tensors, open_tensors


def save_predictor(
    predictor: ExitPredictor, path: str | Path, model: PreTrainedModel, notes: dict[str, Any]
) -> None:
    """Write the weights, with the fingerprint of the model.

    Args:
        predictor: fitted exit predictor.
        path: safetensors file to write.
        model: model that the predictor was fitted on.
        notes: description of the fit as JSON types.
    """
    # one metadata entry: safetensors does not keep the order of several
    header = {
        "depths": predictor.depths,
        "width": predictor.width,
        "hidden": predictor.hidden,
        "heads": predictor.heads,
        "model": fingerprint(model),
        "notes": notes,
    }
    tensors = {name: value.detach().cpu() for name, value in predictor.state_dict().items()}
    metadata = {"predictor": json.dumps(header)}
    write_atomically(path, lambda part: save_file(tensors, part, metadata))


@checked()
def load_predictor(path: str | Path, model: PreTrainedModel) -> ExitPredictor:
    """Read an exit predictor that was fitted on a model, to the model's device.

    Args:
        path: file that `save_predictor` wrote.
        model: stock model.

    Raises:
        EepolicyError: the predictor was fitted on another model, or the file is not one of a
            predictor.
    """
    with open_tensors(path, "predictor", "a file of an exit predictor") as (metadata, file):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = parse(PredictorHeader, metadata, str(path))
    check_tensors(tensors, path)
    check_fingerprint(
        header.model_dump()["model"],
        model,
        f"the exit predictor in {path} was fitted on",
        "fit one for it with 'eepolicy fit-predictor'",
    )
    width, _ = text_sizes(model)
    if header.width != width:
        raise EepolicyError(
            f"the exit predictor in {path} reads states of width {header.width}; those of the "
            f"model have {width}"
        )
    predictor = ExitPredictor(header.depths, header.width, header.hidden, heads=header.heads)
    try:
        predictor.load_state_dict(tensors)
    except RuntimeError as error:
        raise EepolicyError(f"{path} is not a file of an exit predictor: {error}") from error
    return predictor.requires_grad_(False).to(device_of(model))
