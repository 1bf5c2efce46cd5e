"""One early exit at one position of a reply, everything else at full depth: what follows.

The keys and values of an exited position are computed later (`catch_up`), so they are those of
full depth.  An exit whose token is that of full depth therefore changes nothing, and only the other
exits need a continuation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eepolicy import Document, HookedModel, ProbeResult, probe
from eepolicy.analysis.evaluation.metrics import Recognizer, transcripts_of
from eepolicy.analysis.evaluation.scoring import word_errors
from eepolicy.analysis.stats.divergences import warped_distance
from eepolicy.analysis.studies.base import Workspace
from eepolicy.speech.vocoders import codebook_of, decode_at

#: rows of a stored part, and of a batch
PART, BATCH = 256, 64
#: largest number of exits that are continued, to bound the time: a fixed random subset
LIMIT = 4 * PART
#: continuations that are timed for the estimate
TIMED = 16

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def read_exits(
    model: HookedModel, replies: Sequence[Document], depth: int, **options: Any
) -> pd.DataFrame:
    """What an exit at a depth would read out at each unit of full-depth replies.

    Args:
        model: model with its exit heads.
        replies: replies at full depth.
        depth: exit depth.
        **options: options of `probe`, such as `save`.

    Returns:
        One row for each unit: `document`, `position` (index in the reply), `phase`, `token` (the
        unit's id), `exit` (the token at the exit depth), `entropy`, `margin` and `confidence`
        there, and `full_entropy` (at full depth).
    """
    statistics = ("top1", "entropy", "confidence", "margin")
    result = probe(model, replies, depths=[depth, model.depth], statistics=statistics, **options)
    return exit_rows(result, model)


def exit_rows(result: ProbeResult, model: HookedModel) -> pd.DataFrame:
    """Rows of `read_exits` from a probe of the exit depth and full depth."""
    _, starts = np.unique(result.document, return_index=True)
    position = np.arange(len(result.document)) - starts[result.document]
    rows = pd.DataFrame(
        {
            "document": result.document,
            "position": position,
            "phase": result.phase,
            "token": result.next,
            "exit": result.top1[0],
            "entropy": result.entropy[0],
            "margin": result.margin[0],
            "confidence": result.confidence[0],
            "full_entropy": result.entropy[1],
        }
    )
    is_unit = model.layout.is_speech(torch.from_numpy(np.array(result.next))).numpy()
    return rows[is_unit].reset_index(drop=True)


def continue_exits(
    model: HookedModel,
    replies: Sequence[Document],
    exits: pd.DataFrame,
    max_new_tokens: int = 300,
    compile: bool = True,
) -> list[Tensor]:
    """Replies with one exit each, decoded greedily at full depth after it.

    Args:
        model: the model.
        replies: replies at full depth.
        exits: rows of `read_exits`.
        max_new_tokens: largest number of tokens of a reply.
        compile: compile the layers.

    Returns:
        The ids of each reply, from its first token on: (tokens,) each, in the order of the rows.
    """
    rows = exits.reset_index(drop=True)
    lengths = rows.document.map(lambda d: len(replies[d].reply)) - rows.position
    order = lengths.sort_values(kind="stable").index.to_numpy()
    done: dict[int, Tensor] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        starts = []
        for index in chosen:
            row = rows.loc[index]
            reply = replies[int(row.document)]
            before = reply.tokens[: reply.prompt + int(row.position)]
            starts.append(torch.cat([before, torch.tensor([int(row.exit)])]))
            done[index] = starts[-1][reply.prompt :]
        going = [i for i, s in enumerate(starts) if int(s[-1]) not in model.layout.ends]
        if not going:
            continue
        left = max_new_tokens - min(len(done[chosen[i]]) for i in going)
        outputs = model.generate(
            [starts[i] for i in going],
            max_new_tokens=max(1, left),
            compile=compile,
            do_sample=False,
        )
        for i, output in zip(going, outputs, strict=True):
            index = chosen[i]
            done[index] = torch.cat([done[index], output.tokens])[:max_new_tokens]
    return [done[index] for index in range(len(rows))]


def hear(model: HookedModel, sequences: Sequence[tuple[int, ...]], asr: Recognizer) -> list[str]:
    """Transcripts of the sound of sequences of units; equal ones are recognised once."""
    assert model.vocoder is not None
    distinct = list(dict.fromkeys(sequences))
    waves = [decode_at(model.vocoder, torch.tensor(each, dtype=torch.long)) for each in distinct]
    transcripts = dict(zip(distinct, transcripts_of(asr, waves), strict=True))
    return [transcripts[each] for each in sequences]


def what_follows(
    model: HookedModel,
    replies: Sequence[Document],
    heard: Sequence[str],
    exits: pd.DataFrame,
    asr: Recognizer,
    **options: Any,
) -> pd.DataFrame:
    """Continue exits, and compare what is heard with the full-depth reply.

    Args:
        model: model with a vocoder.
        replies: replies at full depth.
        heard: transcript of each reply.
        exits: rows of `read_exits`.
        asr: speech recognition.
        **options: options of `continue_exits`.

    Returns:
        One row for each exit: `document`, `position`, `tokens` (the reply's, with spaces),
        `transcript`, `words` (word errors of the transcript against that of the full-depth reply),
        `text` (1 if the text differs), `units` (number of units that differ at their index), and
        `distance` (mean codebook distance from the exit on, under dynamic time warping; nan
        if either reply ends there).
    """
    layout, codebook = model.layout, codebook_of(model.vocoder)
    assert codebook is not None
    patches = codebook.double().cpu().numpy()
    tokens = continue_exits(model, replies, exits, **options)
    spoken = [tuple(layout.units(ids).tolist()) for ids in tokens]
    rows = []
    for row, ids, units, transcript in zip(
        exits.itertuples(), tokens, spoken, hear(model, spoken, asr), strict=True
    ):
        full = replies[row.document].reply
        expected = tuple(layout.units(full).tolist())
        first = len(layout.units(full[: row.position]))
        after, expected_after = units[first:], expected[first:]
        same = sum(a == b for a, b in zip(after, expected_after, strict=False))
        rows.append(
            {
                "document": row.document,
                "position": row.position,
                "tokens": " ".join(map(str, ids.tolist())),
                "transcript": transcript,
                "words": word_errors(heard[row.document], transcript)[0],
                "text": int(layout.text_ids(ids).tolist() != layout.text_ids(full).tolist()),
                "units": max(len(after), len(expected_after)) - same,
                "distance": warped_distance(
                    patches[np.array(after, int)], patches[np.array(expected_after, int)]
                ),
            }
        )
    return pd.DataFrame(rows)


def stored_continuations(
    workspace: Workspace, exits: pd.DataFrame, asr: Recognizer
) -> pd.DataFrame:
    """`what_follows` of exits whose token differs, in stored parts; prints its expected time first.

    If there are more than `LIMIT`, a fixed random subset is continued.

    Args:
        workspace: model, replies, and the folder of the parts.
        exits: rows of `read_exits`.
        asr: speech recognition.
    """
    model, replies = workspace.model, workspace.replies

    def transcribe() -> pd.DataFrame:
        spoken = [tuple(model.layout.units(reply.reply).tolist()) for reply in replies]
        return pd.DataFrame({"transcript": hear(model, spoken, asr)})

    heard = workspace.stored("safe-exits-heard", transcribe).transcript.fillna("").tolist()
    every = exits[exits.exit != exits.token]
    # in random order, so that each part is a random subset
    differing = every.sample(frac=1, random_state=0)[:LIMIT]
    print(f"{len(differing)} of {len(every)} exits with another unit are continued")
    measure = partial(what_follows, model, replies, heard, asr=asr)
    missing = [
        start
        for start in range(0, len(differing), PART)
        if not (workspace.folder / f"safe-exits-{start}.csv").exists()
    ]
    if missing:
        measure(exits=differing[:TIMED])  # compiles
        begin = time.process_time()
        measure(exits=differing[TIMED : 2 * TIMED])
        seconds = (time.process_time() - begin) / TIMED
        rows = sum(min(PART, len(differing) - start) for start in missing)
        print(f"{rows} continuations: about {rows * seconds / 60:.0f} minutes of one core")
    parts = []
    for start in range(0, len(differing), PART):
        part = differing[start : start + PART]
        parts.append(workspace.stored(f"safe-exits-{start}", partial(measure, exits=part)))
    return pd.concat(parts, ignore_index=True)
