"""Damaged files of every format that the library reads back."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import eepolicy
from benchmarks.reliability.cases import Case, legal_reason
from eepolicy.analysis.evaluation.formats import (
    JudgementLine,
    QuestionLine,
    RatingLine,
    RecordLine,
    Speech,
    SpeechLine,
    TimingLine,
)
from eepolicy.analysis.evaluation.leaderboard_runs import read_runs
from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.tasks import read_task
from eepolicy.fitting import FitConfig, PredictorConfig, fit, fit_predictor
from eepolicy.fitting.replies import Exits, Generation, replies_with
from eepolicy.heads import load_heads, load_predictor, save_predictor
from eepolicy.hooked import HookedModel
from eepolicy.io import read_json
from eepolicy.loading import card_named, read_card
from eepolicy.loading.pocket import pocket_folder
from eepolicy.probing import Document, ProbeResult
from eepolicy.speech.audio import read_wave, write_audio
from eepolicy.speech.units import Units
from eepolicy.testing.models import random_llama

KIND = "files"
REPLACED: tuple[Any, ...] = (
    None,
    "zz",
    2.7,
    -1,
    True,
    [],
    {},
    math.nan,
    1e30,
    [None],
    ["zz"],
    {"zz": None},
)

#: inputs that are right, with the reason
LEGAL = (
    ("run folder, run.json: * without *", "the key has a default"),
    ("run folder, run.json: identity = batch None", "the key has a default"),
    ("run folder, *.jsonl: empty", "an unfinished run"),
    ("run folder, *.jsonl: missing", "an unfinished run"),
    ("run folder, *.jsonl: cut in half", "an unfinished run, or a last line with a warning"),
    ("run folder, *without*", "the key has a default"),
    ("run folder, questions.jsonl: line 1, keys = *", "a question needs no right answer"),
    ("run folder, records.jsonl: line 1, tokens = *", "the run does not say its vocabulary"),
    ("run folder, speech.jsonl: line 1, clips = one entry less", "an unfinished run"),
    ("run folder, ratings.jsonl: line 1, mos = *", "a predicted score has no bounds, None is none"),
    ("run folder, timings.jsonl: *= *", "a finite number of seconds"),
    ("run folder, judgements.jsonl: line 1, score = None", "the judge gave none"),
    ("*header, without version", "a file without a version has version 1"),
    ("model card: without version", "a file without a version has version 1"),
    ("*header, without step", "the key has a default"),
    ("replies: empty", "nothing was stored yet"),
    ("replies: missing", "nothing was stored yet"),
    ("replies: line 1, without *", "the key has a default"),
    ("checkpoint of a fit: missing", "the fit begins"),
    ("task file: line 1, answer = *", "numbers are answers; without one a question is not scored"),
    ("task file: line 1, *", "other fields of a data set are not read"),
    ("task file: cut at the end", "the rest is CSV as well"),
    ("replies: line 1, layout = end_of_speech -1", "-1 stands for no id"),
    ("model card: without *", "the key has a default"),
    ("model card: turns = without start", "the key has a default"),
    ("model card: turns = without default_spoken_system", "the key has a default"),
    ("model card: * = None", "the key has a default"),
    ("model card: rate = *", "any finite number above 0"),
    ("model card: end_of_* = 'zz'", "tokens are looked up when the model is loaded"),
    ("model card: codec* = 'zz'", "the codec is compared with the card when it is loaded"),
    ("model card: voice_separator = 'zz'", "any text"),
    ("model card: phonemes = 'zz'", "espeak refuses an unknown language with the prompt"),
    ("model card: sampling = *", "the options are checked when a reply is sampled"),
    ("model card: other_ends = *", "ids are compared with the vocabulary when a model is loaded"),
    ("speech units: no header", "the file needs no header"),
    ("speech units: tensor named self*", "further tensors are not read"),
    ("speech units: tensor of another width", "fewer units"),
    ("sound: cut *", "the rest is sound as well"),
)


@dataclass(frozen=True)
class Format:
    """A file or folder of one format, and what reads it.

    Attributes:
        name: name in messages.
        path: the file, or a folder with the files.
        read: reads the file or folder at a path.
        files: names of the files in a folder that are damaged; empty for a file.
    """

    name: str
    path: Path
    read: Callable[[Path], object]
    files: tuple[str, ...] = ()


def cases() -> Iterator[Case]:
    """Each format with each kind of damage."""
    with TemporaryDirectory() as temporary:
        for form in formats(Path(temporary)):
            for file in form.files or ("",):
                original = form.path / file if file else form.path
                for label, damage in damages(original):
                    name = f"{form.name}{f', {file}' if file else ''}: {label}"
                    run = partial(_read_damaged, form, file, damage)
                    yield Case(KIND, name, run, legal_reason(name, LEGAL))


def _read_damaged(form: Format, file: str, damage: Callable[[Path], None]) -> object:
    """Read a damaged copy."""
    with TemporaryDirectory() as temporary:
        copied = Path(temporary) / form.path.name
        if form.path.is_dir():
            shutil.copytree(form.path, copied)
        else:
            shutil.copy(form.path, copied)
        damage(copied / file if file else copied)
        return form.read(copied)


def damages(path: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Kinds of damage that fit a file, with a function that applies each."""
    data = path.read_bytes()
    for label, content in {
        "empty": b"",
        "no text": bytes(range(128, 256)) * 3,
        "cut in half": data[: len(data) // 2],
        "cut at the end": data[:-3],
        "zeros": bytes(len(data)),
    }.items():
        yield label, partial(_write, content)
    yield "missing", lambda file: file.unlink()
    yield "a folder", _make_folder
    if path.suffix == ".json":
        for label, value in mutations(json.loads(data)):
            yield label, partial(_write, json.dumps(value).encode())
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        for label, value in mutations(lines[0]):
            changed = [value, *lines[1:]]
            yield f"line 1, {label}", partial(_write, _jsonl(changed))
    elif path.suffix == ".safetensors":
        yield from _tensor_damages(path)
    elif path.suffix == ".npy":
        yield "another shape", partial(_save_array, np.load(path)[..., None])
        yield "fewer rows", partial(_save_array, np.load(path)[:1])
        yield "another type", partial(_save_array, np.load(path).astype(str))


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of JSON data with one wrong value each."""
    for other in REPLACED:
        if _differs(other, value):
            yield f"{other!r} for all", other
    if not isinstance(value, dict):
        return
    yield "an unknown key", value | {"zz": 1}
    yield "version 99", value | {"version": 99}
    for key, inner in value.items():
        yield f"without {key}", {k: v for k, v in value.items() if k != key}
        for label, changed in _inner(inner):
            yield f"{key} = {label}", value | {key: changed}


def _inner(value: Any) -> Iterator[tuple[str, Any]]:
    for other in REPLACED:
        if _differs(other, value):
            yield repr(other), other
    if isinstance(value, list) and value:
        for other in (None, "zz", 2.7, -1, math.nan, 10**6):
            if _differs(other, value[0]):
                changed = copy.deepcopy(value)
                changed[0] = other
                yield f"[{other!r}, ...]", changed
        yield "one entry less", value[1:]
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"without {key}", {k: v for k, v in value.items() if k != key}
            for other in (None, -1, []):
                if _differs(other, inner):
                    yield f"{key} {other!r}", value | {key: other}


def _differs(other: Any, value: Any) -> bool:
    """Whether a value has another type, or is a number out of the usual range."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and type(other) in (int, float):
        return True
    return type(other) is not type(value)


def _tensor_damages(path: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Kinds of damage to the tensors and to the header of a safetensors file."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    yield "no header", partial(_save, tensors, {})
    for key, text in metadata.items():
        if text.startswith("{"):
            for label, value in mutations(json.loads(text)):
                yield f"header, {label}", partial(_save, tensors, {key: json.dumps(value)})
    name, tensor = next((n, t) for n, t in tensors.items() if t.ndim and len(t) > 1)
    number = tensor.double()
    for label, changed in {
        "missing": None,
        "nan": number.masked_fill(number == number.flatten()[0], math.nan).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor[:1],
        "infinite": number.masked_fill(number == number.flatten()[0], math.inf).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor[:1],
        "of another width": tensor[:-1].clone(),
        "of one more dimension": tensor[..., None].clone(),
        "of complex numbers": tensor.to(torch.complex64),
        "empty": tensor[:0].clone(),
    }.items():
        rest = {k: v for k, v in tensors.items() if k != name}
        new = rest if changed is None else rest | {name: changed}
        yield f"tensor {label}", partial(_save, new, metadata)
    yield "tensor named self", partial(_save, tensors | {"self": torch.zeros(2)}, metadata)
    prefix = name.rpartition(".")[0]
    if prefix:
        extra = {f"{prefix}.self": torch.zeros(2)}
        yield "tensor named self of a head", partial(_save, tensors | extra, metadata)


def _save(tensors: dict[str, Any], metadata: dict[str, str], path: Path) -> None:
    save_file(tensors, path, metadata)


def _save_array(array: Any, path: Path) -> None:
    np.save(path, array)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _jsonl(values: list[Any]) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def formats(folder: Path) -> list[Format]:
    """One right file of each format."""
    torch.manual_seed(0)
    model = random_llama(dtype=torch.float32)
    ids = torch.tensor([1, 7, 30, 12, 2])
    out = model.generate(ids, max_new_tokens=4)
    documents = [Document(torch.cat([ids, out.tokens]), len(ids))]
    result = fit(model, documents, documents, FitConfig(depths=(2,), epochs=1))
    heads, stock = folder / "heads.safetensors", model.unwrap()
    result.heads.save(heads, stock, {})
    config = PredictorConfig((2,), epochs=1, on="both")
    predictor = folder / "predictor.safetensors"
    save_predictor(
        fit_predictor(model, documents, documents, config).predictor, predictor, stock, {}
    )
    trace = folder / "trace.safetensors"
    out.trace.save(trace)
    eepolicy.probe(model, ids, save=folder / "probe", statistics=["top1", "entropy"])
    replies = folder / "replies.jsonl"
    prompts, generation = [ids, ids[:3]], Generation(4)
    replies_with(model, prompts, Exits(), generation, replies)
    checkpoint = folder / "fit.safetensors"
    _checkpoint(model, documents, checkpoint)
    task = folder / "task.jsonl"
    task.write_bytes(_jsonl([{"question": f"Is {n} even?", "answer": "yes"} for n in range(3)]))
    (folder / "task.json").write_bytes(json.dumps([{"question": "q", "answer": "a"}] * 2).encode())
    (folder / "task.csv").write_text("question,answer\nq,a\n", encoding="utf-8")
    (folder / "prompts.txt").write_text("What?\nWho?\n", encoding="utf-8")
    (folder / "card.json").write_text(json.dumps(card_named("glm-4-voice").to_dict()), "utf-8")
    (folder / "card.toml").write_bytes(_shipped_card().read_bytes())
    shutil.copy(pocket_folder() / "units.safetensors", folder / "units.safetensors")
    out_wave = folder / "wave.wav"
    _write_wave(out_wave)
    run = _run_folder(folder / "run")
    lines = ("questions", "records", "speech", "ratings", "timings", "judgements")
    probed = tuple(sorted(file.name for file in (folder / "probe").iterdir()))
    return [
        Format("run folder", run, _read_run, ("run.json", *(f"{name}.jsonl" for name in lines))),
        Format("heads", heads, lambda path: load_heads(path, model.lens, stock)),
        Format("exit predictor", predictor, lambda path: load_predictor(path, stock)),
        Format("trace", trace, eepolicy.Trace.load),
        Format("probe folder", folder / "probe", lambda path: str(ProbeResult.load(path)), probed),
        Format(
            "replies", replies, lambda path: replies_with(model, prompts, Exits(), generation, path)
        ),
        Format("checkpoint of a fit", checkpoint, lambda path: _checkpoint(model, documents, path)),
        Format("task file", task, read_task),
        Format("task file", folder / "task.json", read_task),
        Format("task file", folder / "task.csv", read_task),
        Format("model card", folder / "card.json", _read_card),
        Format("model card in TOML", folder / "card.toml", read_card),
        Format("speech units", folder / "units.safetensors", Units.load),
        Format("sound", out_wave, read_wave),
    ]


def _checkpoint(model: HookedModel, documents: list[Document], path: Path) -> object:
    config = FitConfig(depths=(2,), epochs=2, patience=9)
    return fit(model, documents, documents, config, checkpoint=path)


def _shipped_card() -> Path:
    return Path(eepolicy.__file__).parent / "loading" / "model_cards" / "glm-4-voice.toml"


def _read_card(path: Path) -> object:
    return eepolicy.loading.ModelCard.from_dict(read_json(path), str(path))


def _write_wave(path: Path) -> None:
    write_audio(path, torch.zeros(1600))


def _read_run(path: Path) -> object:
    comparison = load_comparison(path)
    read_runs([path])
    return comparison.folder.records()


def _run_folder(path: Path) -> Path:
    """A run of two rows and two questions."""
    folder = RunFolder(path)
    model = {"model_type": "llama", "num_hidden_layers": 20, "weights": "0123456789abcdef"}
    folder.open(
        {"model": model, "numbers": "torch.float32 on cpu", "threads": 1, "versions": {"a": "1"}}
        | {"decoding": {"compile": False}, "sampling": {}, "batch": 50, "compile_timed": True}
    )
    folder.note(rows=["full", "static@16"], margins={"wer": 50.0})
    for name in ("q0", "q1"):
        folder.append([QuestionLine(question=name, keys=["a"])])
        for policy, depth in (("full", 20), ("static@16", 16)):
            speech = f"{name} {policy}"
            same: Any = {"question": name, "policy": policy}
            folder.append(
                [
                    RecordLine(
                        **same,
                        text="a b",
                        ended=True,
                        layer_calls=6 * depth,
                        readouts=6,
                        tokens=[1] * 6,
                        depths=[depth] * 6,
                        modalities=[0, 0, 1, 1, 1, 1],
                        speech=speech,
                    )
                ]
            )
            folder.append(
                [SpeechLine(clips=[Speech(speech=speech, seconds=1.0, transcript="a b")])]
            )
            folder.append([RatingLine(speech=speech, rater="test", mos=2.0)])
            folder.append([TimingLine(**same, seconds=1.0, ttft=0.5, tokens=6)])
            folder.append([JudgementLine(**same, score=0.5)])
    return path
