"""Spoken examples with the times of their words, from files and data sets in the usual layouts."""

from __future__ import annotations

import ast
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from eepolicy.analysis.evaluation.tasks import HUB, read_rows
from eepolicy.errors import EepolicyError
from eepolicy.speech.audio import read_wave
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.waves import SUFFIXES, as_wave, check_wave
from eepolicy.speech.word_times import WordTime

#: usual names of columns, and of the keys of an entry, by what they have; see `_stem`
_NAMES = {
    "word": ("word", "text", "token", "label", "transcript", "sentence"),
    "start": ("start", "start_time", "begin", "xmin"),
    "end": ("end", "end_time", "stop", "xmax"),
    "times": ("timestamp", "time", "span", "interval"),
}
#: marks of silence and noise that aligners write as words, such as `<eps>` and `[noise]`
_MARK = re.compile(r"<.*>|\[.*\]|\W*")
#: seconds by which a word may end after the sound
_LATE = 1.0
_LAYOUTS = (
    "expected a column with a list of {word, start, end}, or columns with lists of words, starts "
    "and ends; name them, such as words=alignment"
)

#: words, starts and ends, as the row has them
Lists: TypeAlias = tuple[list[Any], list[Any], list[Any]]


@dataclass(frozen=True)
class ColumnNames:
    """Names of the columns of spoken examples; None for those that the layout shows.

    Attributes:
        sound: column of the sound.
        words: column of the words, or of entries that also have their times.
        word: key of the word in an entry.
        start: column, or key of an entry, of the start in seconds.
        end: column or key of the end in seconds.
        times: column or key of pairs of start and end, in seconds.
    """

    sound: str | None = None
    words: str | None = None
    word: str | None = None
    start: str | None = None
    end: str | None = None
    times: str | None = None

    @classmethod
    def parse(cls, pairs: Iterable[str]) -> ColumnNames:
        """Read names as the command line has them.

        Args:
            pairs: such as `"words=alignment"`.

        Raises:
            EepolicyError: a pair is none, or begins with another name.

        Example:
            >>> ColumnNames.parse(["words=alignment", "sound=clip"]).sound
            'clip'
        """
        known = [field.name for field in fields(cls)]
        split = [pair.partition("=") for pair in pairs]
        for name, _, column in split:
            if name not in known or not column:
                raise EepolicyError(
                    f"a column is named as NAME=COLUMN, with one of the names {', '.join(known)}; "
                    f"got {name}={column}"
                )
        return cls(**{name: column for name, _, column in split})


@dataclass(frozen=True, eq=False)
class SpokenExample:
    """Speech and its words.

    Attributes:
        name: row and file of the example, for messages.
        wave: (samples,) at 16 kHz.
        words: the words in order, with their times in seconds.
    """

    name: str
    wave: Tensor
    words: tuple[WordTime, ...]


def read_spoken_examples(
    source: str | Path, columns: ColumnNames | None = None, sounds: Path | None = None
) -> list[SpokenExample]:
    """Read speech with the times of its words.

    The sound of a row is a file relative to the folder of the data, the bytes of one, or samples
    with a sampling rate.  Its words are a list of entries with word, start and end, or lists of
    words, starts and ends.  Columns and keys of usual names are found.  In a CSV file, a list is a
    string.  Marks of silence are left out.

    Args:
        source: see `read_task`.
        columns: names of columns that are not found, or not the right ones.
        sounds: folder for the sound of a data set on the Hub.

    Returns:
        One example for each row.

    Raises:
        EepolicyError: the data cannot be read; or a row has no sound, no words with times, or
            times that are no seconds of its sound.
    """
    columns, examples = columns or ColumnNames(), []
    folder = Path() if str(source).startswith(HUB) else Path(source).parent
    for number, row in enumerate(read_rows(source, sounds), start=1):
        name = f"row {number} of {source}"
        try:
            if not isinstance(row, Mapping):
                raise EepolicyError(f"expected columns by name; got {row!r:.60}")
            key = _sound_column(row, columns.sound)
            wave, words = _wave(row[key], folder), _words(row, key, columns)
            seconds = len(wave) / SAMPLE_RATE
            if words[-1].end > seconds + _LATE:
                raise EepolicyError(
                    f"a word ends at {words[-1].end:g} and the sound has {seconds:.2f} seconds; "
                    "expected times in seconds from its beginning: convert them"
                )
        except EepolicyError as error:
            raise EepolicyError(f"{name}: {error}") from error
        examples.append(SpokenExample(name, wave, words))
    if not examples:
        raise EepolicyError(f"{source} has no row: expected spoken examples")
    return examples


def _sound_column(row: Mapping[str, Any], named: str | None) -> str:
    """The column with the sound of a row."""
    if named is not None:
        return _existing(row, named)
    found = [str(key) for key, value in row.items() if _is_sound(value)]
    if len(found) != 1 and "audio" not in found:
        raise EepolicyError(
            "expected one column of sound (a file, its bytes, or samples with a sampling rate); "
            f"got {_names(found)} of the columns {_names(row)}: name it, such as sound=clip"
        )
    return "audio" if "audio" in found else found[0]


def _is_sound(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(value.get(key) is not None for key in ("bytes", "array", "path"))
    is_file = isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES
    return is_file or isinstance(value, bytes)


def _wave(value: Any, folder: Path) -> Tensor:
    """The sound of a cell: (samples,) at 16 kHz."""
    if isinstance(value, Mapping):
        if value.get("array") is not None:
            value = dict(value) | {"array": np.asarray(value["array"], np.float32)}
        else:
            value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, str)):
        wave = read_wave(io.BytesIO(value) if isinstance(value, bytes) else folder / value)
    else:
        wave = as_wave(value)
    if not isinstance(wave, Tensor):
        raise EepolicyError(f"expected a sound file, its bytes or samples; got {value!r:.60}")
    check_wave(wave)
    return wave


def _words(row: Mapping[str, Any], sound: str, columns: ColumnNames) -> tuple[WordTime, ...]:
    """The words of a row, in any of the layouts."""
    cells = {key: _cell(value) for key, value in row.items() if key != sound}
    names = {role: getattr(columns, role) for role in ("start", "end", "times")}
    lists = _parallel(cells, names | {"word": columns.words})
    if lists is None:
        if columns.words is not None:
            cells = {columns.words: cells.get(_existing(row, columns.words))}
        lists = _nested(cells, names | {"word": columns.word})
    if lists is None:
        raise EepolicyError(f"the columns {_names(row)} have no words with their times; {_LAYOUTS}")
    words = _checked(lists)
    if not words:
        raise EepolicyError("it has no word; expected at least one, or leave the row out")
    return words


def _parallel(table: Mapping[str, Any], names: Mapping[str, str | None]) -> Lists | None:
    """Words, starts and ends that are lists beside each other; None where one is missing."""
    words = _pick(table, "word", names)
    starts, ends = (_pick(table, role, names) for role in ("start", "end"))
    times = _pick(table, "times", names)
    if starts is None and times and all(isinstance(t, list) and len(t) == 2 for t in times):
        starts, ends = [t[0] for t in times], [t[1] for t in times]
    if isinstance(words, str):
        words = words.split()
    if isinstance(words, list) and isinstance(starts, list) and isinstance(ends, list):
        return words, starts, ends
    return None


def _nested(value: Any, names: Mapping[str, str | None]) -> Lists | None:
    """Words, starts and ends inside a value; None for a value without them."""
    if isinstance(value, Mapping):
        lists = _parallel(value, names)
        if lists is not None:
            return lists
        found = {key: own for key in value if (own := _nested(value[key], names)) is not None}
        of_words = {key: own for key, own in found.items() if "word" in str(key).lower()}
        found = of_words or found
        if len(found) > 1:
            raise EepolicyError(
                f"{_names(found)} have words with times; expected one: name it, such as "
                f"words={next(iter(found))}"
            )
        return next(iter(found.values()), None)
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(entry, Mapping) for entry in value):
        return _parallel({key: [entry.get(key) for entry in value] for key in value[0]}, names)
    if all(isinstance(entry, list) and len(entry) == 3 for entry in value):
        columns = [list(column) for column in zip(*value, strict=True)]
        texts = [column for column in columns if isinstance(column[0], str)]
        numbers = [column for column in columns if not isinstance(column[0], str)]
        return (texts[0], numbers[0], numbers[1]) if len(texts) == 1 else None
    return None


def _pick(table: Mapping[str, Any], role: str, names: Mapping[str, str | None]) -> Any:
    """What has a role: the named column, or the first one of a usual name; None for none."""
    if names[role] is not None:
        return table.get(str(names[role]))
    usual = _NAMES[role]
    keys = [key for key in table if _stem(str(key)) in usual]
    keys.sort(key=lambda key: usual.index(_stem(str(key))))
    lists = [v for k in keys if isinstance(v := table[k], list) and v]
    if role != "word":
        return lists[0] if lists else None
    texts = [v for v in lists if isinstance(v[0], str)]
    return next(iter([*texts, *(table[k] for k in keys if isinstance(table[k], str))]), None)


def _checked(lists: Lists) -> tuple[WordTime, ...]:
    """The words of three lists, without marks of silence."""
    counts = [len(each) for each in lists]
    if len(set(counts)) > 1:
        raise EepolicyError(
            "expected a start and an end for each word; got "
            f"{counts[0]} words, {counts[1]} starts and {counts[2]} ends"
        )
    words: list[WordTime] = []
    for word, start, end in zip(*lists, strict=True):
        if word is None or (isinstance(word, str) and _MARK.fullmatch(word.strip())):
            continue
        if not isinstance(word, str) or len(word.split()) != 1:
            raise EepolicyError(f"expected the times of single words; got {word!r:.60}")
        before = words[-1].start if words else 0.0
        if not (_is_number(start) and _is_number(end) and before <= start <= end):
            raise EepolicyError(
                f"expected seconds that rise, from the start of a word to its end and from word to "
                f"word; got {word!r} from {start} to {end}, after a start at {before:g}"
            )
        words.append(WordTime(word.strip(), float(start), float(end)))
    return tuple(words)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _cell(value: Any) -> Any:
    """A cell with lists for arrays, and for text that a CSV file has in their place."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return _plain(parse(value.strip()))
            except (ValueError, SyntaxError):
                continue
    return _plain(value)


def _plain(value: Any) -> Any:
    """Lists for arrays and tuples, at every level."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _stem(name: str) -> str:
    """A name without what varies: `wordStart_s`, `word_starts` and `start` are the same."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    name = re.sub(r"^words?_|_(s|sec|secs|seconds)$", "", name)
    return name.removesuffix("s")


def _existing(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise EepolicyError(f"there is no column {name}; the columns are {_names(row)}")
    return name


def _names(row: Iterable[Any]) -> str:
    return ", ".join(map(str, row)) or "none"
