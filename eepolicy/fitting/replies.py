"""What heads are fitted on: the model's own full-depth replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from eepolicy.errors import EepolicyError
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.hooked import HookedModel
from eepolicy.probing.documents import Document


def generate_replies(
    model: HookedModel,
    questions: Sequence[str],
    *,
    max_new_tokens: int = 300,
    batch: int = 32,
    save: str | Path | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Document]:
    """The model's greedy full-depth replies, longest questions last.

    Args:
        model: with a tokenizer.
        questions: in text.
        max_new_tokens: most tokens of a reply.
        batch: questions at a time.
        save: a file that replies are appended to, a line each, and taken from when they are asked
            for again.
        progress: wraps the batches, to show them.

    Raises:
        EepolicyError: the file holds replies of another model or to other questions.
    """
    prompts = sorted((model.encode(q) for q in questions), key=len)
    told = {
        "model": fingerprint(model.model),
        "questions": len(prompts),
        "max_new_tokens": max_new_tokens,
    }
    file = None if save is None else Path(save)
    found = [] if file is None else _read(file, told)
    for kept, prompt in zip(found, prompts, strict=False):
        if kept.tokens[: kept.prompt].tolist() != prompt.tolist():
            raise EepolicyError(f"{file} holds replies to other questions; take another file")
    if file is not None and not file.exists():
        file.write_text(json.dumps(told) + "\n")
    for start in progress(range(len(found), len(prompts), batch)):
        outs = model.generate(
            prompts[start : start + batch],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )
        new = [Document(torch.cat([o.prompt, o.tokens]), len(o.prompt)) for o in outs]
        found += new
        if file is not None:
            with open(file, "a") as lines:
                lines.writelines(json.dumps([d.prompt, d.tokens.tolist()]) + "\n" for d in new)
    return found


def _read(file: Path, told: dict[str, Any]) -> list[Document]:
    """The replies of a file; a line that was cut off is taken off it."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        of = json.loads(whole[0])
        found = [Document(torch.tensor(ids), prompt) for prompt, ids in map(json.loads, whole[1:])]
    except (IndexError, TypeError, ValueError) as error:
        raise EepolicyError(f"{file} holds no replies: {error}") from error
    if of != told:
        raise EepolicyError(
            f"{file} holds replies of another model, or to other questions; take another file"
        )
    if whole != lines:
        file.write_text("".join(whole))
    return found
