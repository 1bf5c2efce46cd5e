"""Damaged model folders, for `load` and for `eepolicy models check`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import eepolicy
from benchmarks.reliability.cases import Case, legal_reason
from eepolicy.errors import EepolicyError
from eepolicy.loading.inspect import inspect
from eepolicy.loading.pocket import pocket_folder
from eepolicy.testing.models import random_llama

LOAD, CHECK = "model folders, `load`", "model folders, `models check`"
#: wrong values of the sizes in a config
SIZES: tuple[Any, ...] = (None, 0, -1, 2.7, "zz", [], {}, True, 10**9, math.nan)
SIZE_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "intermediate_size",
)

#: inputs that are right, with the reason
LEGAL = (
    (
        "model folders, `load`: *num_hidden_layers = 3",
        "transformers loads the first layers and warns",
    ),
    ("model folders, `load`: *eos_token_id = 1000000000", "no id ends a reply, as in transformers"),
    ("model folders, `load`: *bos_token_id = 1000000000", "the id is not used"),
    ("model folders, `load`: *of integers", "transformers converts the weight"),
    ("model folders, `load`: *an unknown weight", "transformers leaves it out and warns"),
)

Damage = Callable[[Path], None]


def cases() -> Iterator[Case]:
    """Each kind of damage to a text model and to the pocket model."""
    with TemporaryDirectory() as temporary:
        text = Path(temporary) / "text"
        random_llama(dtype=torch.float32).unwrap().save_pretrained(text)
        damages = [*(("text", *d) for d in _of_text(text)), *(("pocket", *d) for d in _of_pocket())]
        for model, label, damage in damages:
            folder = text if model == "text" else pocket_folder()
            for kind, read in ((LOAD, _load), (CHECK, _check)):
                name = f"{model} model, {label}"
                yield Case(kind, name, partial(_read, folder, damage, read), _legal(kind, name))


def _legal(kind: str, name: str) -> str:
    return legal_reason(f"{kind}: {name}", LEGAL)


def _read(folder: Path, damage: Damage, read: Callable[[Path], object]) -> object:
    """Read a damaged copy of a folder."""
    with TemporaryDirectory() as temporary:
        copied = Path(temporary) / "model"
        shutil.copytree(folder, copied)
        damage(copied)
        return read(copied)


def _load(folder: Path) -> object:
    return eepolicy.load(str(folder)).generate(torch.tensor([5, 6]), max_new_tokens=1)


def _check(folder: Path) -> None:
    wrong = [finding.sentence for finding in inspect(folder) if not finding.ok]
    if wrong:
        raise EepolicyError("; ".join(wrong)[:1000])


def _of_text(folder: Path) -> Iterator[tuple[str, Damage]]:
    """Damage to config and weights."""
    for content in (b"", b"5", b"[]", b"null", b"{}", b"\xff\xfe", b'{"model_type": "lla'):
        yield f"config.json is {content!r}", partial(_write, "config.json", content)
    yield "config.json missing", lambda path: (path / "config.json").unlink()
    for key in SIZE_KEYS:
        for value in SIZES:
            yield f"{key} = {value!r}", partial(_config, {key: value})
    for key in ("num_attention_heads", "vocab_size", "hidden_size", "num_hidden_layers"):
        yield f"{key} = 3", partial(_config, {key: 3})
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        for value in (10**9, "zz"):
            yield f"{key} = {value!r}", partial(_config, {key: value})
    for value in (5, "zz", [], {}):
        yield f"speech_layout = {value!r}", partial(_config, {"speech_layout": value})
        yield f"speech_card = {value!r}", partial(_config, {"speech_card": value})
    weights = "model.safetensors"
    for label, change in {
        "missing": _dropped,
        "of another width": lambda w: w[:-1].clone(),
        "of one more dimension": lambda w: w[..., None].clone(),
        "nan": lambda w: torch.full_like(w, math.nan),
        "with one nan": lambda w: _with_first(w, math.nan),
        "with one infinite value": lambda w: _with_first(w, math.inf),
        "empty": lambda w: w[:0].clone(),
        "of integers": lambda w: w.long(),
    }.items():
        yield f"a weight {label}", partial(_weight, "model.layers.1.mlp.up_proj.weight", change)
        yield f"a norm {label}", partial(_weight, "model.norm.weight", change)
    yield "an unknown weight", partial(_weight, "zz", lambda _: torch.zeros(2))
    for content in (b"", b"zz", bytes(100)):
        yield f"weights are {content[:2]!r}", partial(_write, weights, content)
    yield "weights missing", lambda path: (path / weights).unlink()
    yield "weights cut", _cut
    for content in (b"", b"zz"):
        yield f"heads are {content!r}", partial(_write, "heads.safetensors", content)
        yield f"predictor is {content!r}", partial(_write, "predictor.safetensors", content)
    yield "tokenizer is {}", partial(_write, "tokenizer.json", b"{}")
    yield "generation config is 5", partial(_write, "generation_config.json", b"5")
    for name in ("../outside.safetensors", "/outside.safetensors", "zz.safetensors"):
        index = json.dumps({"weight_map": {"model.norm.weight": name}}).encode()
        yield f"index names {name}", partial(_index, index)
    yield "index is 5", partial(_index, b"5")
    yield "index without weight_map", partial(_index, b"{}")


def _of_pocket() -> Iterator[tuple[str, Damage]]:
    """Damage to the layout and the vocoder of a speech model."""
    vocabulary = json.loads((pocket_folder() / "config.json").read_text("utf-8"))["vocab_size"]
    layouts: dict[str, Any] = {
        "speech": [[5, 5], [9, 5], [0, 10**6], "zz", None, [1], [-4, 5], [0, vocabulary]],
        "text": [[5, 5], "zz", None, [1], [-4, 5]],
        "text_chunk": [-1, "zz", 2.7, None],
        "speech_chunk": [0, -1, "zz", 2.7, None],
        "end": [10**6, "zz", None, 2.7],
        "before_prompt": [[10**6], "zz", 5],
    }
    for key, values in layouts.items():
        for value in values:
            yield f"layout {key} = {value!r}", partial(_layout, {key: value})
    yield "layout with an unknown key", partial(_layout, {"zz": 1})
    for content in (b"", b"zz"):
        yield f"units are {content!r}", partial(_write, "units.safetensors", content)
        yield f"heads are {content!r}", partial(_write, "heads.safetensors", content)
    yield "units missing", lambda path: (path / "units.safetensors").unlink()


def _write(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)


def _config(changes: dict[str, Any], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")


def _layout(changes: dict[str, Any], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    _config({"speech_layout": config["speech_layout"] | changes}, folder)


def _dropped(_: Tensor) -> None:
    return None


def _with_first(weight: Tensor, value: float) -> Tensor:
    changed = weight.clone()
    changed.view(-1)[0] = value
    return changed


def _weight(name: str, change: Callable[[Tensor], Tensor | None], folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    changed = change(weights.get(name, torch.zeros(2)))
    weights = {k: v for k, v in weights.items() if k != name}
    save_file(weights if changed is None else weights | {name: changed}, file, {"format": "pt"})


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _index(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(content)
