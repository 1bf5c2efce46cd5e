"""The prompts that `eepolicy fit` and `eepolicy fit-predictor` fit on and evaluate on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eepolicy.cli.options import held_out_questions
from eepolicy.errors import EepolicyError
from eepolicy.io import read_lines, read_numbered_jsonl

if TYPE_CHECKING:
    from eepolicy.probing import Document
    from eepolicy.prompts import Messages


@dataclass(frozen=True)
class Prompts:
    """Questions to fit on.

    Attributes:
        train: questions to fit on, in random order.
        held_out: questions for evaluation.
        share: share of the questions for evaluation where they were not named; they are then the
            last ones.
    """

    train: list[str | Messages]
    held_out: list[str | Messages]
    share: float | None


def read_questions(model: str, file: Path | None) -> list[str | Messages]:
    """Read the prompts of a file, or the model's dev questions.

    Args:
        model: see `eepolicy.load`.
        file: text file with a prompt per line; a `.jsonl` file with a text or the turns of a chat
            per line; or None.

    Raises:
        EepolicyError: there are fewer than two different ones, or a line is no prompt.
    """
    questions: list[str | Messages]
    if file is None:
        questions = [q["question"] for q in held_out_questions(model, "dev")]
    elif file.suffix == ".jsonl":
        questions = [_prompt(value, f"{file}, line {n}") for n, value in read_numbered_jsonl(file)]
    else:
        questions = [*read_lines(file)]
    # a repeated prompt would be fitted on and evaluated on
    questions = [*{json.dumps(question): question for question in questions}.values()]
    if len(questions) < 2:
        raise EepolicyError(f"fitting takes at least two prompts; got {len(questions)}")
    return questions


def _prompt(value: Any, where: str) -> str | Messages:
    """A prompt from a line of a `.jsonl` file."""
    from eepolicy.prompts import is_messages

    if isinstance(value, dict):  # as data sets of chats have it
        value = value.get("messages", value.get("prompt"))
    if not (isinstance(value, str) and value) and not is_messages(value):
        raise EepolicyError(
            f"{where}: a prompt is a text, or turns of a chat with role and content, alone or "
            f"under the key 'messages' or 'prompt'; got {value!r:.60}"
        )
    prompt: str | Messages = value
    return prompt


def spread_over(replies: Sequence[Document], share: float) -> list[bool]:
    """Which replies are for evaluation: a share of them, spread over their order."""
    count = max(1, round(share * len(replies)))
    spread = {round((i + 0.5) * len(replies) / count) for i in range(count)}
    return [i in spread for i in range(len(replies))]


def partition(
    replies: Sequence[Document], is_held_out: Sequence[bool]
) -> tuple[list[Document], list[Document]]:
    """Replies to fit on, and replies for evaluation."""
    pairs = [*zip(replies, is_held_out, strict=True)]
    return [reply for reply, out in pairs if not out], [reply for reply, out in pairs if out]


def prompts_to_fit_on(
    model: str, file: Path | None, number: int | None, held_out: str, seed: int, in_rounds: bool
) -> Prompts:
    """Read the prompts of a file, or the model's dev questions, and choose those for evaluation.

    Args:
        model: see `eepolicy.load`.
        file: see `read_questions`.
        number: number of prompts to draw; None for all.
        held_out: share of the prompts for evaluation, or `dev`.
        seed: seed of the order.
        in_rounds: whether the order matters: rounds take the prompts one after the other.

    Raises:
        EepolicyError: there are too few prompts, or `held_out` is neither a share nor `dev`.
    """
    questions = read_questions(model, file)
    dev: list[str | Messages] = []
    if held_out == "dev":
        if file is None:
            raise EepolicyError("--held-out dev needs other prompts to fit on: give --prompts")
        dev = [q["question"] for q in held_out_questions(model, "dev")]
        # no prompt is fitted on and evaluated on
        questions = [question for question in questions if question not in dev]
        if not questions:
            raise EepolicyError(f"all prompts of {file} are dev questions: give others")
    if number is not None and not 2 <= number <= len(questions):
        raise EepolicyError(f"--questions is from 2 to {len(questions)} here; got {number}")
    if number is not None or in_rounds:
        questions = random.Random(seed).sample(questions, number or len(questions))
    if dev:
        return Prompts(questions, dev, None)
    try:
        share = float(held_out)
    except ValueError:
        share = 0
    if not 0.01 <= share <= 0.9:
        raise EepolicyError(f"--held-out is a share from 0.01 to 0.9, or dev; got {held_out!r}")
    count = max(1, round(share * len(questions)))
    return Prompts(questions[:-count], questions[-count:], share)
