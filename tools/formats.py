"""The page of file formats: a table of keys for each schema, from its annotations and docstring."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel

from eepolicy import formats
from eepolicy.analysis.evaluation import formats as run_formats
from eepolicy.analysis.evaluation import load, sweep
from eepolicy.analysis.evaluation.verdict import Margins
from eepolicy.analysis.tables import markdown_table
from eepolicy.fitting import formats as fit_formats
from eepolicy.heads import formats as head_formats
from eepolicy.loading import formats as model_formats
from eepolicy.policies import formats as policy_formats
from eepolicy.probing import formats as probe_formats
from eepolicy.speech import formats as card_formats
from eepolicy.speech.model_card import ModelCard

#: file of each schema, in the order of the page
FILES: dict[type[BaseModel], str] = {
    run_formats.RunFile: "`run.json` of a run folder",
    load.RunIdentity: "`identity` in `run.json`, the keys that tables read",
    load.RunNotes: "`notes` in `run.json`, the keys that tables read",
    load.MarginNotes: "`notes.margins` in `run.json`",
    run_formats.QuestionLine: "`questions.jsonl` of a run folder, and a task file",
    run_formats.RecordLine: "`records.jsonl` of a run folder",
    run_formats.SpeechLine: "`speech.jsonl` of a run folder",
    run_formats.Speech: "one of the `clips` in `speech.jsonl`",
    run_formats.RatingLine: "`ratings.jsonl` of a run folder",
    run_formats.TimingLine: "`timings.jsonl` of a run folder",
    run_formats.JudgementLine: "`judgements.jsonl` of a run folder",
    sweep.SweepFile: "TOML file of `eepolicy sweep`",
    fit_formats.RepliesHeader: "first line of a file of replies (`.jsonl`)",
    fit_formats.ReplyLine: "further lines of a file of replies, each a list `[prompt, tokens]`",
    formats.Fingerprint: "`model` in headers",
    head_formats.HeadsHeader: "`heads` in the header of a file of heads (`.safetensors`)",
    head_formats.PredictorHeader: "`predictor` in the header of a file of an exit predictor",
    fit_formats.CheckpointHeader: "`fit` in the header of a checkpoint of a fit",
    policy_formats.UnitClasses: "file of the policies `steady` and `silence` (`.json`)",
    formats.TraceHeader: "`trace` in the header of a trace (`.safetensors`)",
    probe_formats.ProbeProgress: "`probe.json` of a probe's folder, beside the arrays (`.npy`)",
    probe_formats.ProbeIdentity: "`identity` in `probe.json`",
    probe_formats.ProbedModel: "`identity.model` in `probe.json`; further keys are the fingerprint",
    card_formats.CardFile: "model card (`.toml`)",
    model_formats.AudioEncoderEntry: (
        "`speech_audio_encoder` in the `config.json` of a converted model"
    ),
    model_formats.ModelSizes: "sizes in the `config.json` of a model",
}
#: classes whose docstrings have the meanings of the keys of a schema
MEANINGS: dict[type[BaseModel], type] = {
    card_formats.CardFile: ModelCard,
    load.MarginNotes: Margins,
}
_VERSION = "version of the format, 1; a file without it has version 1"


def format_tables() -> str:
    """A section for each schema: its file, what it is, and a table of its keys."""
    return "\n\n".join(map(_section, FILES))


def _section(schema: type[BaseModel]) -> str:
    doc = inspect.getdoc(schema) or ""
    summary = doc.split("\n\nAttributes:")[0].split("\n\n")[0]
    described = schema.model_json_schema()
    meanings = _meanings(MEANINGS.get(schema, schema))
    required = described.get("required", [])
    rows = []
    for key, value in described["properties"].items():
        default = "required" if key in required else f"`{json.dumps(value.get('default'))}`"
        if key not in required and "default" not in value:
            default = "empty"
        meaning = _VERSION if key == "version" else meanings.get(key, "")
        rows.append([f"`{key}`", _type(value), default, meaning])
    table = markdown_table(["key", "value", "default", "meaning"], rows)
    file = FILES[schema]
    text = " ".join(_plain(summary).split())
    return f"### {schema.__name__}\n\nFile: {file}.\n\n{text}\n\n{table}"


def _meanings(cls: type) -> dict[str, str]:
    """Meaning of each attribute, from the docstring of a class."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.strip():
            break
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name, meanings[start[1]] = start[1], start[2]
        elif name:
            meanings[name] += f" {line.strip()}"
    return {name: _plain(text).rstrip(".") for name, text in meanings.items()}


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _type(value: dict[str, Any]) -> str:
    """The type of a value in words, from its JSON schema."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(each) for each in value["anyOf"]))
    if "$ref" in value:
        return f"keys of {value['$ref'].rpartition('/')[2]}"
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{json.dumps(each)}`" for each in value["enum"])
    kind: str = value.get("type", "any value")
    if kind == "array":
        minimum = "" if not value.get("minItems") else f", {value['minItems']} or more"
        return f"list of {_type(value.get('items', {}))}{minimum}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"keys with {_type(inner)}" if isinstance(inner, dict) else "keys with any value"
    words = {"string": "text", "null": "null", "boolean": "true or false"}
    return words.get(kind, kind) + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    if value.get("type") == "string":
        return ", not empty" if value.get("minLength") else ""
    low, above, high = (value.get(k) for k in ("minimum", "exclusiveMinimum", "maximum"))
    words = (("from", low), ("above", above), ("to", high))
    return "".join(f" {word} {bound:,g}" for word, bound in words if bound is not None)
