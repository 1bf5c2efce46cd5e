"""What the lines of the gallery need, small: a random model, few questions, and made-up files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from board_example import IDENTITY
from conftest import LAYOUT, tiny
from example_record import RECORD, store

import eepolicy
from eepolicy import HookedModel
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.stats import bootstrap
from eepolicy.analysis.studies import (
    acceptance,
    base,
    fixed_depth,
    lenses,
    policy_search,
    text_in_speech,
)
from eepolicy.fitting import generate_replies
from eepolicy.speech.units import Units

QUESTIONS = [{"question": q, "keys": ["word"]} for q in ("cat", "a horse", "it", "snow")]
POLICIES = ("full", "static@3", "spark:triple@4", "entropy<0.5@4")
TOKENS = 16


class Words:
    """A tokenizer for the random model: an id for each letter."""

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

    def decode(self, ids: Any) -> str:
        return " ".join(f"w{int(i)}" for i in ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"w{i}" for i in ids]


class Whisper:
    """All transcripts are equal."""

    def transcribe(self, wave: np.ndarray) -> str:
        return "w5 w6 word"


def speaker() -> HookedModel:
    """A random model with a vocoder."""
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    return HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Words(), vocoder=Units(codebook))


def scores(policy: str, questions: Any) -> pd.DataFrame:
    """Made-up scores of a policy: the loss rises with the distance from full depth."""
    depth = 6 if policy == "full" else int(policy[-1])
    rng = np.random.default_rng(depth)
    wrong = rng.random(len(questions)) < 0.01 * (6 - depth) ** 3
    return pd.DataFrame(
        {"wer": 0.1 * wrong, "right": 1.0 - wrong, "calls": 10 * depth, "tokens": 10}
    )


def words_of(model: HookedModel, replies: Any, *others: Any) -> pd.DataFrame:
    """Words of four units each, instead of those that speech recognition finds."""
    rows = [
        {
            "document": document,
            "word": word,
            "text": f"w{5 + word}",
            "token": 5 + (word + document) % 15,
        }
        | {"first": 4 * word, "stop": 4 * word + 4}
        for document, reply in enumerate(replies)
        for word in range(len(model.layout.units(reply.reply)) // 4)
    ]
    return pd.DataFrame(rows)


def write_report(path: Path) -> None:
    """A run folder with made-up errors and times."""
    folder = RunFolder(path)
    folder.open(IDENTITY | {"model": {"num_hidden_layers": 6, "vocab_size": 60}})
    folder.note(rows=list(POLICIES), margins={"wer": 50.0})
    rng = np.random.default_rng(0)
    for number, question in enumerate(("cat", "it", "snow", "a cow", "rain", "fog")):
        records = []
        for row, policy in enumerate(POLICIES):
            changes = {
                "question": question,
                "policy": policy,
                "seconds": float(4 - row + rng.random()),
                "errors": int(number % 2 and row),
                "depths": [6, 6] + [6 - row] * 4,
                "tokens": [5, 6, *(20 + number * row + i for i in range(4))],
                "mos": 3.0 + rng.random(),
            }
            records.append(replace(RECORD, **changes))
        store(folder, records)


def write_bench(path: Path) -> None:
    """Records of `eepolicy bench --json`, made up."""
    ideal = {"full": 1.0, "stock generate": float("nan"), "static@3": 1.8}
    records = [
        {
            "decoding": name,
            "trials": [0.9 * seconds, seconds, 1.2 * seconds],
            "seconds": seconds,
            "ideal_speedup": speedup,
            "roofline_seconds": 0.001,
        }
        for (name, speedup), seconds in zip(ideal.items(), (0.004, 0.005, 0.0025), strict=True)
    ]
    path.write_text(json.dumps({"results": records}))


@contextmanager
def small_world(folder: Path) -> Iterator[None]:
    """Short replies of a random model, stand-ins for speech recognition, and few resamples.

    Args:
        folder: new working directory.
    """
    generate = HookedModel.generate

    def short(self: Any, prompt: Any, policy: Any = "full", max_new_tokens: int = 0, **more: Any):
        shallow = policy.replace("@14", "@4") if isinstance(policy, str) else policy
        return generate(self, prompt, shallow, TOKENS, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(eepolicy, "load", lambda name: speaker())
        patch.setattr(eepolicy, "held_out", lambda split: QUESTIONS)
        patch.setattr(HookedModel, "generate", short)
        for module in (base, policy_search):
            patch.setattr(module, "held_out", lambda split: QUESTIONS * 75)
        patch.setattr(lenses, "JACOBIAN_REPLIES", 4)
        patch.setattr(base, "generate_replies", few_replies)
        for module in (acceptance, fixed_depth, policy_search, text_in_speech):
            patch.setattr(module, "Whisper", Whisper)
        patch.setattr(fixed_depth, "missing_mos", lambda: "not here")
        patch.setattr(policy_search.PolicyEvaluator, "scores", lambda _, *args: scores(*args))
        patch.setattr(bootstrap, "RESAMPLES", 100)
        patch.setattr(text_in_speech, "MIN_WORDS", 1)
        patch.setattr(text_in_speech, "align_replies", words_of)
        yield


def few_replies(model: HookedModel, questions: Any, **options: Any) -> Any:
    """Replies to the first questions only."""
    return generate_replies(model, questions[:4], **options)
