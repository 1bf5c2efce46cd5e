"""Replies of the model, on which heads are fitted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Count, Positive
from eepolicy.fitting.formats import RepliesHeader, ReplyLine
from eepolicy.fitting.identity import model_identity
from eepolicy.folder_lock import locked_file
from eepolicy.formats import SamplingOption, parse
from eepolicy.heads.files import load_heads
from eepolicy.hooked import HookedModel
from eepolicy.io import append_lines, read_numbered_jsonl, write_json
from eepolicy.model.threads import one_thread
from eepolicy.probing.documents import Document
from eepolicy.prompts import Messages
from eepolicy.workers import WorkerConfig


@dataclass(frozen=True)
class Generation(CheckedFields):
    """How replies are generated.

    Attributes:
        max_new_tokens: maximum number of tokens in a reply.
        batch: number of prompts in a batch.
        compile: compile the layers.
        workers: processes that generate beside this one; a number for processes of this machine.
        load: loads the model in a worker.  Workers must be able to pickle it.
        sampling: sampling options, such as `temperature`; greedy replies if empty.
    """

    max_new_tokens: Positive = 300
    batch: Positive = 32
    compile: bool = False
    workers: WorkerConfig | Count = 0
    load: Callable[[], HookedModel] | None = None
    sampling: Mapping[str, SamplingOption] = field(default_factory=dict)


@dataclass(frozen=True)
class Exits(CheckedFields):
    """The exits of the model that replies.

    Attributes:
        policy: spec string of the policy; empty for full depth.
        heads: file of the exit heads; None for those of the model.
        digest: hash of the weights of these heads.
    """

    policy: str = ""
    heads: Path | None = None
    digest: str = ""


#: ids of prompts
_Prompts = list[tuple[int, ...]]
#: ids of a prompt -> ids of its reply
_Replies = dict[tuple[int, ...], list[int]]


def generate_replies(
    model: HookedModel,
    questions: Sequence[str | Messages | Tensor],
    *,
    max_new_tokens: int = 300,
    batch: int = 32,
    save: str | Path | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    workers: WorkerConfig | int = 0,
    load: Callable[[], HookedModel] | None = None,
    sampling: Mapping[str, SamplingOption] | None = None,
    compile: bool = False,
) -> list[Document]:
    """Generate full-depth replies, to the shortest prompts first.

    Args:
        model: model with a tokenizer, for questions in text.
        questions: questions in text, turns of a chat, or ids (tokens,).
        max_new_tokens: maximum number of tokens in a reply.
        batch: number of prompts in a batch.
        save: file for the replies, one JSON line each; a later call reads the replies that it has
            and generates the others.
        progress: wraps the batches, to show progress.
        workers: processes that help; a number for processes of this machine.
        load: loads the model in a worker; without it no worker helps.  Workers must be able to
            pickle it.
        sampling: sampling options, such as `temperature`; greedy replies by default.  The same
            batch always gets the same random numbers.
        compile: compile the layers.

    Raises:
        EepolicyError: the file has replies of another model or to other questions.
    """
    prompts = [model.encode(question) for question in questions]
    generation = Generation(
        max_new_tokens,
        batch,
        compile,
        workers=0 if load is None else workers,
        load=load,
        sampling=dict(sampling or {}),
    )
    return replies_with(model, prompts, Exits(), generation, save, progress)


def replies_with(
    model: HookedModel,
    prompts: Sequence[Tensor],
    exits: Exits,
    generation: Generation,
    save: str | Path | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Document]:
    """Generate replies of a model that exits, to the shortest prompts first.

    Args:
        model: the model.
        prompts: ids (tokens,) each.
        exits: policy and heads.
        generation: how replies are generated.
        save: file for the replies, as in `generate_replies`.
        progress: wraps the batches, to show progress.

    Raises:
        EepolicyError: the file has replies of another model, policy or head, or to other questions,
            or another process writes to it.
    """
    with nullcontext() if save is None else locked_file(save):
        file = None if save is None else Path(save)
        return _replies(model, prompts, exits, generation, file, progress)


def _replies(
    model: HookedModel,
    prompts: Sequence[Tensor],
    exits: Exits,
    generation: Generation,
    file: Path | None,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> list[Document]:
    """Replies that are stored in a file, and those that are missing; see `replies_with`."""
    keys = [tuple(prompt.tolist()) for prompt in sorted(prompts, key=len)]
    header = {
        **model_identity(model, model.layout),
        "questions": len(keys),
        "max_new_tokens": generation.max_new_tokens,
        "policy": exits.policy,
        "heads": exits.digest,
        "sampling": dict(generation.sampling),
    }
    replies = {} if file is None else _read(file, header)
    if not replies.keys() <= {*keys}:
        raise EepolicyError(f"{file} has replies to other questions; give another file")
    if file is not None and not file.exists():
        write_json(file, header)
    # batches are the same in each call: a reply does not depend on where an earlier call stopped
    starts = range(0, len(keys), generation.batch)
    batches = [keys[start : start + generation.batch] for start in starts]
    missing = [batch for batch in batches if not replies.keys() >= {*batch}]
    # closed at once if the file cannot be written: the model gets its own heads back
    with closing(_results(model, missing, exits, generation)) as results:
        for _ in progress(range(len(missing))):
            new = next(results)
            fresh = {key: reply for key, reply in new.items() if key not in replies}
            replies |= fresh
            if file is not None:
                append_lines(file, (json.dumps([len(k), [*k, *r]]) for k, r in fresh.items()))
    return [Document(torch.tensor([*key, *replies[key]]), len(key)) for key in keys]


def _results(
    model: HookedModel, batches: list[_Prompts], exits: Exits, generation: Generation
) -> Generator[_Replies, None, None]:
    """Replies to batches of prompts, in any order."""
    config = WorkerConfig.of(generation.workers if len(batches) > 1 else 0)
    if config.spreads and generation.load is None:
        raise EepolicyError("workers need a function that loads the model: give load")
    make = partial(_Replier.make, generation.load, exits, generation)
    own_heads, own = model.heads, _Replier(model, exits.policy, generation)
    try:
        if exits.heads is not None:
            model.heads = load_heads(exits.heads, model.lens, model.model)
        with one_thread(config.spreads), config.start(make, own) as workers:
            for batch in batches:
                workers.submit(batch)
            yield from workers.finish()
    finally:
        model.heads = own_heads


@dataclass(frozen=True)
class _Replier:
    """Replies to a batch of prompts."""

    model: HookedModel
    policy: str
    generation: Generation

    @classmethod
    def make(
        cls, load: Callable[[], HookedModel] | None, exits: Exits, generation: Generation
    ) -> _Replier:
        """Load the model in a worker process."""
        assert load is not None  # checked before workers start
        torch.set_num_threads(1)  # a process per core
        model = load()
        if exits.heads is not None:
            model.heads = load_heads(exits.heads, model.lens, model.model)
        return cls(model, exits.policy, generation)

    def __call__(self, batch: _Prompts) -> _Replies:
        sampling = self.generation.sampling
        options: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
        if sampling:
            options = {"do_sample": True, **sampling, "seed": _seed(batch)}
        outputs = self.model.generate(
            [torch.tensor(key) for key in batch],
            self.policy or None,
            max_new_tokens=self.generation.max_new_tokens,
            compile=self.generation.compile,
            **options,
        )
        return {key: out.tokens.tolist() for key, out in zip(batch, outputs, strict=True)}


def _seed(batch: _Prompts) -> int:
    """A seed that depends on the prompts only: a fit that continues gets the same replies."""
    return int.from_bytes(hashlib.sha256(str(batch).encode()).digest()[:7], "big")


def _read(file: Path, header: dict[str, Any]) -> _Replies:
    """Read the replies of a file; a damaged last line is dropped with a warning."""
    if not file.exists():
        return {}
    lines = read_numbered_jsonl(file)
    if not lines:  # a stopped write left no header
        file.unlink()
        return {}
    number, first = lines[0]
    stored = parse(RepliesHeader, first, f"{file}, line {number}")
    if stored.model_dump(exclude={"version"}) != header:
        raise EepolicyError(
            f"{file} has replies of another model, or to other questions; give another file"
        )
    lines_of = [parse(ReplyLine, value, f"{file}, line {n}") for n, value in lines[1:]]
    return {tuple(line.tokens[: line.prompt]): line.tokens[line.prompt :] for line in lines_of}
