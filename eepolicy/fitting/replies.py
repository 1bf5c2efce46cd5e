"""Full-depth replies of the model, on which heads are fitted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from eepolicy.errors import EepolicyError
from eepolicy.formats import RepliesHeader, ReplyLine, parse
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.hooked import HookedModel
from eepolicy.io import append_lines, read_numbered_jsonl, write_text
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
        write_text(file, json.dumps(header) + "\n")
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
            append_lines(file, (json.dumps([d.prompt, d.tokens.tolist()]) for d in new))
    return replies


def _read(file: Path, header: dict[str, Any]) -> list[Document]:
    """Read the replies of a file; a damaged last line is dropped with a warning."""
    if not file.exists():
        return []
    lines = read_numbered_jsonl(file)
    if not lines:  # a stopped write left no header
        file.unlink()
        return []
    number, first = lines[0]
    stored = parse(RepliesHeader, first, f"{file}, line {number}")
    if stored.model_dump(exclude={"version"}) != header:
        raise EepolicyError(
            f"{file} has replies of another model, or to other questions; give another file"
        )
    replies = [parse(ReplyLine, value, f"{file}, line {n}") for n, value in lines[1:]]
    return [Document(torch.tensor(reply.tokens), reply.prompt) for reply in replies]
