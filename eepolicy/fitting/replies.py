"""Full-depth replies of the model, on which heads are fitted."""

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
    """Generate greedy full-depth replies, to the shortest prompts first.

    Args:
        model: model with a tokenizer.
        questions: prompts in text.
        max_new_tokens: maximum number of tokens in a reply.
        batch: number of prompts in a batch.
        save: file for the replies, one JSON line each; a later call reads the replies that it has
            and generates the others.
        progress: wraps the batches, to show progress.

    Raises:
        EepolicyError: the file has replies of another model or to other questions.
    """
    prompts = sorted((model.encode(q) for q in questions), key=len)
    header = {
        "model": fingerprint(model.model),
        "questions": len(prompts),
        "max_new_tokens": max_new_tokens,
    }
    file = None if save is None else Path(save)
    replies = [] if file is None else _read(file, header)
    for reply, prompt in zip(replies, prompts, strict=False):
        if reply.tokens[: reply.prompt].tolist() != prompt.tolist():
            raise EepolicyError(f"{file} has replies to other questions; give another file")
    if file is not None and not file.exists():
        file.write_text(json.dumps(header) + "\n")
    for start in progress(range(len(replies), len(prompts), batch)):
        outputs = model.generate(
            prompts[start : start + batch],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )
        new = [Document(torch.cat([o.prompt, o.tokens]), len(o.prompt)) for o in outputs]
        replies += new
        if file is not None:
            with open(file, "a") as lines:
                lines.writelines(json.dumps([d.prompt, d.tokens.tolist()]) + "\n" for d in new)
    return replies


def _read(file: Path, header: dict[str, Any]) -> list[Document]:
    """Read the replies of a file, and cut off an incomplete last line."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    complete = [line for line in lines if line.endswith("\n")]
    try:
        stored = json.loads(complete[0])
        pairs = map(json.loads, complete[1:])
        replies = [Document(torch.tensor(ids), prompt) for prompt, ids in pairs]
    except (IndexError, TypeError, ValueError) as error:
        raise EepolicyError(f"{file} is not a file of replies: {error}") from error
    if stored != header:
        raise EepolicyError(
            f"{file} has replies of another model, or to other questions; give another file"
        )
    if complete != lines:
        file.write_text("".join(complete))
    return replies
