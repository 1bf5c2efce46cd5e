"""Wrong values in the arguments of public functions and methods."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import eepolicy
from benchmarks.reliability.cases import Case, legal_reason
from benchmarks.reliability.values import Wrong, wrong_for
from eepolicy.fitting import FitConfig, PredictorConfig, fit, fit_predictor
from eepolicy.heads import load_heads
from eepolicy.loading import card_named
from eepolicy.probing import Document, ProbeResult
from eepolicy.testing.models import LAYOUT, random_llama

#: row of the functions without a row of their own
FUNCTIONS = "arguments of public functions"
IDS = torch.tensor([1, 7, 30, 12, 2])

#: options of the stock `generate` with their types there
STOCK_OPTIONS: dict[str, Any] = {
    "do_sample": bool | None,
    "temperature": float | None,
    "top_p": float | None,
    "top_k": int | None,
    "repetition_penalty": float | None,
    "num_return_sequences": int | None,
    "eos_token_id": int | list[int] | None,
    "pad_token_id": int | None,
    "min_new_tokens": int | None,
    "no_repeat_ngram_size": int | None,
    "logits_processor": list[LogitsProcessor] | None,
    "stopping_criteria": list[StoppingCriteria] | None,
    "streamer": BaseStreamer | None,
    "generation_config": GenerationConfig | None,
    "stop_strings": str | list[str] | None,
    "inputs_embeds": Tensor | None,
}

#: inputs that are right, with the reason
LEGAL = (
    ("generate(record = {})", "the default options of `probe`"),
    ("generate(seed = -1)", "a seed is an integer of 64 bits"),
    ("generate(seed = 10[*][*]10)", "a seed is an integer of 64 bits"),
    ("generate(eos_token_id = -1)", "no id ends a reply, as in transformers"),
    ("generate(eos_token_id = *", "no id is named, as in transformers"),
    ("generate(pad_token_id = -1)", "prompts are padded here with an id of the vocabulary"),
    ("generate(* = [[]])", "an empty list"),
    ("generate(temperature = *[*][*]*)", "a finite number above 0"),
    ("generate(repetition_penalty = *[*][*]*)", "a finite number above 0"),
    ("generate(no_repeat_ngram_size = *", "longer than any reply"),
    ("generate(top_k = *", "no id is left out"),
    ("generate(min_new_tokens = *", "it is bounded by `max_new_tokens`, as in transformers"),
    ("probe(save = 'zz')", "the name of a new folder"),
    ("probe(save = '')", "the folder of the shell, which is empty here"),
    ("fit(checkpoint = 'zz')", "the name of a new file"),
    ("probe(* = [[{]?)", "nothing is named"),
    ("probe(* = an empty tensor)", "nothing is named"),
    ("ProbeResult.load(statistics = *", "nothing is named"),
    ("ProbeResult.named(ids = *", "no ids"),
    ("EarlyExitConfig.from_dict(values = {})", "the defaults"),
    ("wrap(vocoder = b'zz')", "bytes have a method `decode`, and a vocoder is known by it"),
    ("custom_generate(* = *", "the defaults"),
    ("encode(prompt = *", "text"),
    ("stream_audio(prompt = *", "text"),
)


class Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends a reply early, so that a huge limit does not make a case slow."""

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: Any) -> Tensor:
        """Whether each row has eight ids or more: (rows,)."""
        return torch.full((len(input_ids),), input_ids.shape[1] >= 8)


@dataclass(frozen=True)
class Call:
    """A call of a public function with right arguments.

    Attributes:
        name: name of the function in messages.
        function: the function.
        arguments: right arguments; each is replaced by wrong values in turn.
        kind: row of the table.
        more: further parameters with their types, such as the options of the stock `generate`.
        skipped: parameters that are not tried.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    kind: str
    more: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def cases(self) -> Iterator[Case]:
        """Each parameter with each wrong value."""
        for name, hint in self.parameters().items():
            for wrong in wrong_for(hint):
                yield self._case(name, wrong)

    def parameters(self) -> dict[str, Any]:
        """Names and types of the parameters."""
        function = inspect.unwrap(self.function)
        target: Any = vars(function)["__init__"] if isinstance(function, type) else function
        hints = _hints(target)
        named = [
            p.name
            for p in inspect.signature(self.function).parameters.values()
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in self.skipped
        ]
        return {name: hints.get(name) for name in named} | dict(self.more)

    def _case(self, name: str, wrong: Wrong) -> Case:
        label = f"{self.name}({name} = {wrong.label})"
        run = partial(self.function, **dict(self.arguments) | {name: wrong.value})
        return Case(self.kind, label, run, legal_reason(label, LEGAL))


def cases(folder: Path | None = None) -> Iterator[Case]:
    """All parameters of all calls with all wrong values.

    Args:
        folder: folder for files; default: a temporary one.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield from cases(Path(temporary))
        return
    for call in calls(folder):
        yield from call.cases()


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters that can be resolved; a name of a type in a string cannot."""
    hints: dict[str, Any] = {}
    for name, text in inspect.get_annotations(function).items():
        with suppress(NameError, TypeError):
            scope = vars(sys.modules[function.__module__])
            hints[name] = eval(text, scope) if isinstance(text, str) else text
    return hints


def _enter(context: Any) -> None:
    with context:
        pass


def calls(folder: Path) -> list[Call]:
    """One right call of each public function."""
    torch.manual_seed(0)
    model = random_llama(dtype=torch.float32)
    stock = random_llama(dtype=torch.float32).unwrap()
    stop = StoppingCriteriaList([Stop()])
    prompt = {"prompt": str | list[Any] | Tensor | Path | Mapping[str, Any]}
    generate = {"prompt": IDS, "max_new_tokens": 2, "stopping_criteria": stop}
    out = model.generate(IDS, max_new_tokens=4)
    documents = [Document(torch.cat([IDS, out.tokens]), len(IDS))]
    probed = eepolicy.probe(model, IDS, save=folder / "probe", statistics=["top1"])
    result = fit(model, documents, documents, FitConfig(depths=(2,), epochs=1))
    heads = folder / "heads.safetensors"
    result.heads.save(heads, model.unwrap(), {})
    out.trace.save(folder / "trace.safetensors")

    def early_exit(**arguments: Any) -> None:
        _enter(eepolicy.early_exit(**arguments))

    early_exit.__wrapped__ = inspect.unwrap(eepolicy.early_exit)  # type: ignore[attr-defined]
    return [
        Call(
            "generate", model.generate, generate, "arguments of `generate`", STOCK_OPTIONS | prompt
        ),
        Call(
            "stream_audio", model.stream_audio, {"prompt": IDS}, "arguments of `generate`", prompt
        ),
        Call("encode", model.encode, {"prompt": IDS}, FUNCTIONS, prompt),
        Call("wrap", eepolicy.wrap, {"model": stock}, FUNCTIONS),
        Call("probe", eepolicy.probe, {"model": model, "inputs": IDS}, "arguments of `probe`"),
        Call(
            "fit",
            fit,
            {"model": model, "train": documents, "held_out": documents}
            | {"config": FitConfig(depths=(2,), epochs=1)},
            "arguments of `fit`",
        ),
        Call(
            "fit_predictor",
            fit_predictor,
            {"model": model, "train": documents, "held_out": documents}
            | {"config": PredictorConfig((2,), epochs=1, on="both")},
            "arguments of `fit`",
        ),
        Call(
            "load", eepolicy.load, {"name": "pocket"}, "arguments of `load`", skipped=("threads",)
        ),
        Call("held_out", eepolicy.held_out, {}, FUNCTIONS),
        Call("parse_policy", eepolicy.parse_policy, {"spec": "full"}, FUNCTIONS),
        Call("parse_fill", eepolicy.parse_fill, {"spec": "mask"}, FUNCTIONS),
        Call("parse_acceptance", eepolicy.parse_acceptance, {"spec": "exact"}, FUNCTIONS),
        Call("custom_generate", eepolicy.custom_generate, {}, FUNCTIONS),
        Call("early_exit", early_exit, {"policy": "full", "model": stock}, FUNCTIONS),
        Call("card_named", card_named, {"card": "glm-4-voice"}, FUNCTIONS),
        Call(
            "load_heads",
            load_heads,
            {"path": heads, "lens": model.lens, "model": model.unwrap()},
            FUNCTIONS,
        ),
        Call("Trace.load", eepolicy.Trace.load, {"path": folder / "trace.safetensors"}, FUNCTIONS),
        Call("Trace.mean_depth", out.trace.mean_depth, {"modality": "text"}, FUNCTIONS),
        Call(
            "Trace.from_dict", eepolicy.Trace.from_dict, {"plain": out.trace.to_dict()}, FUNCTIONS
        ),
        Call("ProbeResult.load", ProbeResult.load, {"folder": folder / "probe"}, FUNCTIONS),
        Call("ProbeResult.named", probed.named, {"ids": probed.token}, FUNCTIONS),
        Call(
            "TokenLayout.from_dict",
            eepolicy.TokenLayout.from_dict,
            {"plain": LAYOUT.to_dict()},
            FUNCTIONS,
        ),
        Call("TokenLayout.modality", LAYOUT.modality, {"token": 1}, FUNCTIONS),
        Call("TokenLayout.text_only", eepolicy.TokenLayout.text_only, {"vocabulary": 4}, FUNCTIONS),
        Call(
            "EarlyExitConfig.from_dict",
            eepolicy.EarlyExitConfig.from_dict,
            {"values": eepolicy.EarlyExitConfig().to_dict()},
            FUNCTIONS,
        ),
        Call("ExitHead.restricted_to", model.lens.restricted_to, {"ids": (0, 20)}, FUNCTIONS),
        Call("HookedModel.to", model.to, {"device": "cpu"}, FUNCTIONS),
    ]
