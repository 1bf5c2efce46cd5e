"""The words of spoken replies: their text tokens, their units, and what an exit does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from eepolicy import Document, EepolicyError, HookedModel, Modality, ProbeResult, TokenLayout
from eepolicy.analysis.evaluation.metrics import Recognizer, transcripts_of
from eepolicy.analysis.evaluation.scoring import normalized, word_alignment
from eepolicy.analysis.stats.bootstrap import Floats
from eepolicy.analysis.studies.fixed_depth import units_at
from eepolicy.probing import Statistic, given_rank
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.vocoders import decode_at
from eepolicy.speech.word_times import WordTime, words_of_units

#: seconds by which Whisper's word times are late: the mean on utterances of the pocket model's
#: voice, whose synthesizer gives the times (`python -m pocket.word_times`)
LAG = 0.075
#: words whose text token is ranked at a unit: the word that the unit belongs to, the word after it,
#: the word before it, a further word of the reply, and a word of another reply
TOKENS = ("spoken", "next", "previous", "further", "other")
#: columns of the words of `align_replies`
WORD_COLUMNS = ["document", "word", "text", "token", "first", "stop"]
#: a token is readable if its rank among the text ids is at most this
K = 10
#: exit depths, as shares of full depth
EXITS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
THIRDS = ("first third", "middle third", "last third")
#: parts of a reply's speech: chunks by halves, and the units after the last text token
PARTS = ("chunk, first half", "chunk, second half", "after the last text")

Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Aligner(Protocol):
    """Finds the times of the words of a known text."""

    def align(self, wave: Tensor, text: str) -> list[WordTime]:
        """Words of `text.split()` with their times in a wave (samples,) at 16 kHz."""


def text_words(model: HookedModel, ids: Tensor) -> list[list[int]]:
    """Group text ids (tokens,) into words; one list of ids for each word of the text.

    A token that starts with a space starts a word.
    """
    tokenizer = _tokenizer(model)
    words: list[list[int]] = []
    pairs = zip(ids.tolist(), tokenizer.convert_ids_to_tokens(ids.tolist()), strict=True)
    for token, piece in pairs:
        if not words or piece[:1] in "Ġ▁":
            words.append([])
        words[-1].append(token)
    return words


def spoken_token(model: HookedModel, word: Sequence[int]) -> int:
    """The text token of a word; -1 for a word of several tokens.

    Tokens of punctuation do not count.
    """
    tokenizer = _tokenizer(model)
    sounding = [i for i in word if any(c.isalnum() for c in tokenizer.decode([i]))]
    return sounding[0] if len(sounding) == 1 else -1


def align_replies(
    model: HookedModel, replies: Sequence[Document], aligner: Aligner, progress: Progress = iter
) -> pd.DataFrame:
    """Find the units of each word of some replies.

    A reply whose words the aligner splits otherwise is left out.

    Args:
        model: model with a tokenizer and a vocoder.
        replies: replies with text and speech.
        aligner: finds the times of words.
        progress: wraps the replies, to show progress.

    Returns:
        One row for each word: `document`, `word`, `text`, `token` (-1 for several), `first` and
        `stop` (its units; equal for a word without any).
    """
    rows: list[tuple[Any, ...]] = []
    for document, reply in enumerate(progress(replies)):
        ids, units = model.layout.text_ids(reply.reply), model.layout.units(reply.reply)
        words, text = text_words(model, ids), _tokenizer(model).decode(ids.tolist())
        if not len(units) or model.vocoder is None:
            continue
        wave = decode_at(model.vocoder, units)
        times = [
            replace(w, start=w.start - LAG, end=w.end - LAG) for w in aligner.align(wave, text)
        ]
        if len(times) != len(words):
            continue
        owner = words_of_units(times, len(units), len(units) * SAMPLE_RATE / len(wave))
        tokens = [spoken_token(model, word) for word in words]
        rows += word_rows(document, times, tokens, owner)
    return pd.DataFrame(rows, columns=WORD_COLUMNS)


def word_rows(
    document: int, times: Sequence[WordTime], tokens: Sequence[int], owner: NDArray[np.int64]
) -> list[tuple[Any, ...]]:
    """The words of one document as rows of `align_replies`.

    Args:
        document: number of the document.
        times: its words.
        tokens: text token of each word, -1 for several.
        owner: (units,) number of the word of each unit, -1 for none.
    """
    rows = []
    for number, (time, token) in enumerate(zip(times, tokens, strict=True)):
        own = np.flatnonzero(owner == number)
        first, stop = (own[0], own[-1] + 1) if len(own) else (0, 0)
        rows.append((document, number, time.word, token, first, stop))
    return rows


def unit_table(words: pd.DataFrame, count: int) -> pd.DataFrame:
    """What each unit of one reply is part of.

    Args:
        words: rows of `align_replies` of one reply that have units.
        count: number of units.

    Returns:
        One row for each unit: `word` (-1 for none), `third` (of the word), `since` (units since
        the word began), `until` (units until the next word begins), and the tokens `spoken`,
        `next`, `previous`; nan or -1 for none.
    """
    table = pd.DataFrame(
        {"word": np.full(count, -1), "third": "", "since": np.nan, "until": np.nan}
    )
    for name in TOKENS[:3]:
        table[name] = -1
    rows = words[words.stop > words["first"]].sort_values("first").to_dict("records")
    for index, row in enumerate(rows):
        span = np.arange(row["first"], row["stop"])
        table.loc[span, "word"] = row["word"]
        table.loc[span, "since"] = since = span - span[0]
        table.loc[span, "third"] = np.array(THIRDS)[3 * since // len(span)]
        table.loc[span, "spoken"] = row["token"]
        if index:
            table.loc[span, "previous"] = rows[index - 1]["token"]
        before = np.arange(rows[index - 1]["first"] if index else 0, row["first"])
        table.loc[before, "until"] = row["first"] - before
        table.loc[before, "next"] = row["token"]
    for name in ("next", "previous"):  # the same word twice says nothing about which one it is
        table.loc[table[name] == table.spoken, name] = -1
    return table


def control_tokens(words: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Add the columns `further` and `other` to words: tokens of shuffled words.

    `further` is the token of a random word of the same reply, at least two words away.  `other` is
    that of a random word of another reply.  It is drawn from the words of all replies, so frequent
    words are frequent among them, and it is no token of the reply itself.
    """
    rng = np.random.default_rng(seed)
    single = words[words.token >= 0]
    controls = pd.DataFrame(-1, index=words.index, columns=["further", "other"])
    for _, own in words.groupby("document"):
        tokens, numbers = own.token.to_numpy(), own.word.to_numpy()
        allowed = single.token[~single.token.isin(tokens)].to_numpy()
        if len(allowed):
            controls.loc[own.index, "other"] = rng.choice(allowed, len(own))
        for index, number in zip(own.index, numbers, strict=True):
            near = tokens[np.abs(numbers - number) < 2]
            far = tokens[(tokens >= 0) & ~np.isin(tokens, near)]
            if len(far):
                controls.loc[index, "further"] = rng.choice(far)
    return words.join(controls)


def with_given(
    model: HookedModel, replies: Sequence[Document], words: pd.DataFrame
) -> tuple[list[Document], pd.DataFrame]:
    """Attach the tokens of `TOKENS` to the readouts of replies.

    Args:
        model: model of the replies.
        replies: replies with text and speech.
        words: rows of `align_replies`.

    Returns:
        The documents; and one row for each readout that predicts a unit, in their order.  It has
        the columns of `unit_table`, `further`, `other`, `document`, and `readout` (its index in the
        document).

    Raises:
        EepolicyError: no word has units.
    """
    if not (words.stop > words["first"]).any():
        raise EepolicyError("no word of the replies could be aligned with its units")
    words = control_tokens(words)
    documents, tables = [], []
    for number, reply in enumerate(replies):
        own = words[words.document == number]
        at = np.flatnonzero(_is_unit(model.layout, reply.reply))
        table = unit_table(own, len(at))
        spoken = table.spoken >= 0  # the controls are ranked at the same units
        for name in ("further", "other"):
            tokens = table.word.map(own.set_index("word")[name])
            table[name] = tokens.where(spoken).fillna(-1).astype(int)
        given = {}
        for name in TOKENS:
            ids = np.full(len(reply.reply), -1)
            ids[at] = table[name]
            given[name] = ids
        documents.append(replace(reply, given=given))
        tables.append(table.assign(document=number, readout=at))
    return documents, pd.concat(tables, ignore_index=True)


def statistics() -> list[str | Statistic]:
    """What is probed at units: ranks of `TOKENS`, and the probability of text."""
    ranks = [given_rank(tokens, text_only=True) for tokens in TOKENS]
    return [*ranks, given_rank("spoken"), "text_mass"]


def hits(ranks: NDArray[np.int64]) -> Floats:
    """Whether tokens are readable by their ranks, of any shape: 0 or 1, nan for no token."""
    return np.where(ranks >= 0, ranks <= K, np.nan)


def parts_of_speech(result: ProbeResult, layout: TokenLayout) -> NDArray[np.object_]:
    """Which of `PARTS` each readout is in: (tokens,).

    Args:
        result: probe of replies.
        layout: chunks of the model.
    """
    half = layout.speech_chunk // 2
    parts = np.where(result.phase < half, PARTS[0], PARTS[1]).astype(object)
    for document in np.unique(result.document):
        own = result.document == document
        text = result.chunk[own & (result.modality == Modality.TEXT)]
        last = text.max() if len(text) else -1
        parts[own & (result.chunk > last)] = PARTS[2]
    return parts


def exit_depths(model: HookedModel) -> list[int]:
    """Depths at which the units are read out; full depth last.

    The next deeper depth replaces a depth with a branch: the head of a branch reads more layers
    than the exit has run.
    """
    depths = {model.depth}
    for share in EXITS:
        depth = max(1, round(share * model.depth))
        while depth in model.branches:
            depth += 1
        depths.add(depth)
    return sorted(depths)


def read_out(
    model: HookedModel, result: ProbeResult, positions: pd.DataFrame, index: int
) -> dict[int, Tensor]:
    """Units of each reply if all are read out at one depth and nothing is fed back.

    Args:
        model: model with its exit heads.
        result: probe with hidden states.
        positions: rows of `with_given`.
        index: index of the depth among `result.hidden_depths`.

    Returns:
        (units,) by document.
    """
    states = result.hidden_states[index][readouts_at(result, positions)]
    hidden = torch.from_numpy(np.array(states, np.float32))
    units = units_at(model, hidden, result.hidden_depths[index])
    documents = positions.document.to_numpy()
    return {d: units[documents == d] for d in np.unique(documents).tolist()}


def readouts_at(result: ProbeResult, positions: pd.DataFrame) -> NDArray[np.int64]:
    """Indices of the rows of `with_given` among the readouts of their probe: (positions,)."""
    starts = np.searchsorted(result.document, positions.document)
    indices: NDArray[np.int64] = starts + positions.readout.to_numpy()
    return indices


def word_errors_at(
    model: HookedModel, words: pd.DataFrame, spoken: dict[int, Tensor], asr: Recognizer
) -> pd.DataFrame:
    """Which words of the replies are substituted or deleted in the transcripts.

    Args:
        model: model with a vocoder.
        words: rows of `align_replies`.
        spoken: units of each reply, by document.
        asr: speech recognition.

    Returns:
        One row for each word: `document`, `word`, `substituted` and `deleted`; see
        `errors_by_word`.
    """
    assert model.vocoder is not None
    waves = [decode_at(model.vocoder, units) for units in spoken.values()]
    rows = []
    for document, transcript in zip(spoken, transcripts_of(asr, waves), strict=True):
        own = words[words.document == document].sort_values("word")
        errors = errors_by_word(own.text.astype(str).tolist(), transcript)
        rows += [(document, n, *each) for n, each in zip(own.word, errors, strict=True)]
    return pd.DataFrame(rows, columns=["document", "word", "substituted", "deleted"])


def errors_by_word(words: Sequence[str], transcript: str) -> list[tuple[float, float]]:
    """Whether each word is substituted and whether it is deleted in a transcript.

    A word that normalises to several, such as "it's", counts as the worst of them.

    Args:
        words: words of the text, in order.
        transcript: transcript of the speech.

    Returns:
        0 or 1 twice for each word; nan for all if the text normalises to other words than its
        words do alone, such as a number in two words.

    Examples:
        >>> errors_by_word(["Snow", "is", "white."], "no is")
        [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)]
    """
    owner = [number for number, word in enumerate(words) for _ in normalized(word).split()]
    aligned = [o for o, word, _ in word_alignment(" ".join(words), transcript) if word]
    if len(owner) != len(aligned):
        return [(np.nan, np.nan)] * len(words)
    operations: list[set[str]] = [set() for _ in words]
    for number, operation in zip(owner, aligned, strict=True):
        operations[number].add(operation)
    return [
        (float("substitution" in each), float("deletion" in each and "substitution" not in each))
        for each in operations
    ]


def _is_unit(layout: TokenLayout, ids: Tensor) -> NDArray[np.bool_]:
    """Whether each id (tokens,) is a unit that is played."""
    stop = layout.speech[1] if layout.num_codes is None else layout.speech[0] + layout.num_codes
    is_unit: NDArray[np.bool_] = ((ids >= layout.speech[0]) & (ids < stop)).numpy()
    return is_unit


def _tokenizer(model: HookedModel) -> Any:
    if model.tokenizer is None:
        raise EepolicyError("the words of a reply need the model's tokenizer")
    return model.tokenizer
