"""Spoken examples with word times: each layout, named columns, and rows that cannot be read."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import soundfile

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.spoken_examples import ColumnNames, read_spoken_examples
from eepolicy.speech.word_times import WordTime

WORDS = [WordTime("snow", 0.1, 0.3), WordTime("is", 0.3, 0.42), WordTime("white.", 0.5, 1.0)]
ENTRIES = [{"word": w.word, "start": w.start, "end": w.end} for w in WORDS]
TEXTS, STARTS, ENDS = ([getattr(w, name) for w in WORDS] for name in ("word", "start", "end"))
TIMES = [[w.start, w.end] for w in WORDS]

#: columns of a row, beside the sound, in the layouts of public data sets
LAYOUTS = {
    "entries": {"words": ENTRIES},
    "entries under another name": {"id": 3, "alignment": ENTRIES},
    "entries beside phonemes and a text": {
        "text": "Snow is white.",
        "phonemes": [{"text": "s", "start": 0.1, "end": 0.2}],
        "words": ENTRIES,
    },
    "entries with other keys": {
        "word_timestamps": [
            {"text": w.word, "startTime": w.start, "end_s": w.end, "score": 1} for w in WORDS
        ]
    },
    "entries with pairs": {
        "chunks": [{"text": f" {w.word}", "timestamp": (w.start, w.end)} for w in WORDS]
    },
    "triples": {"alignment": [[w.start, w.end, w.word] for w in WORDS]},
    "a struct of lists": {"words": {"word": TEXTS, "start": STARTS, "end": ENDS}},
    "entries in a struct": {"align": {"txt": "Snow is white.", "words": ENTRIES}},
    "lists": {"text": "Snow!", "words": TEXTS, "word_start": STARTS, "word_end": ENDS},
    "a text and lists": {"text": " ".join(TEXTS), "starts": STARTS, "ends": ENDS, "start": 0.0},
    "words and pairs": {"words": TEXTS, "word_times": TIMES},
    "silence": {
        "words": [
            {"word": "<eps>", "start": 0.0, "end": 0.1},
            *ENTRIES[:2],
            {"word": "", "start": None, "end": None},
            {"word": "[noise]", "start": 0.42, "end": 0.5},
            ENTRIES[2],
        ]
    },
}


def sound(seconds: float = 1.2, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    wave = 0.1 * np.sin(np.arange(int(seconds * rate)))
    soundfile.write(file, wave, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def write(folder: Path, *rows: dict[str, object], kind: str = "jsonl") -> Path:
    (folder / "clip.wav").write_bytes(sound())
    file = folder / f"data.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows))
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    else:
        pd.DataFrame(rows).to_parquet(file)
    return file


#: a Parquet file has no lists of words and numbers
KINDS = [
    (layout, kind)
    for layout in LAYOUTS
    for kind in ("jsonl", "json", "csv", "parquet")
    if (layout, kind) != ("triples", "parquet")
]


@pytest.mark.parametrize(("layout", "kind"), KINDS)
def test_the_layouts_of_public_data_sets(tmp_path, layout, kind):
    file = write(tmp_path, {"audio": "clip.wav"} | LAYOUTS[layout], kind=kind)
    [example] = read_spoken_examples(file)
    assert list(example.words) == WORDS
    assert len(example.wave) == 19_200


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        ({"w": ENTRIES, "v": ENTRIES[:1]}, {"words": "w"}),
        (
            {"w": [{"a": w.word, "b": w.start, "c": w.end} for w in WORDS]},
            {"words": "w", "word": "a", "start": "b", "end": "c"},
        ),
        ({"w": TEXTS, "b": STARTS, "c": ENDS}, {"words": "w", "start": "b", "end": "c"}),
        ({"words": ["x"], "w": TEXTS, "b": TIMES}, {"words": "w", "times": "b"}),
    ],
)
def test_columns_can_be_named(tmp_path, cells, named):
    file = write(tmp_path, {"clip": "clip.wav", "second": "other.wav"} | cells)
    pairs = [f"{name}={column}" for name, column in (named | {"sound": "clip"}).items()]
    [example] = read_spoken_examples(file, ColumnNames.parse(pairs))
    assert list(example.words) == WORDS


def test_sound_as_bytes_and_as_samples(tmp_path):
    plain = np.frombuffer(sound()[-4 * 19_200 :], np.float32)
    rows = pd.DataFrame([{"speech": {"bytes": sound(), "path": "a.wav"}, "words": ENTRIES}])
    rows.to_parquet(tmp_path / "bytes.parquet")
    [example] = read_spoken_examples(tmp_path / "bytes.parquet")
    np.testing.assert_array_equal(example.wave, plain)
    cell = {"array": plain.tolist(), "sampling_rate": 8000, "path": None}
    [example] = read_spoken_examples(write(tmp_path, {"speech": cell, "words": ENTRIES}))
    assert len(example.wave) == 2 * len(plain)


def test_a_data_set_on_the_hub(tmp_path, monkeypatch):
    class Audio:
        def __init__(self, decode=True):
            self.decode = decode

    class Rows(list):
        features: ClassVar[dict] = {"words": object(), "clip": Audio()}

        def cast_column(self, name, kind):
            assert (name, kind.decode) == ("clip", False)
            return self

    def load_dataset(*names, split):
        assert (names, split) == (("some/facts", None), "train")
        return Rows([{"clip": {"bytes": sound(), "path": "a.wav"}, "words": ENTRIES}])

    module = ModuleType("datasets")
    module.Audio, module.load_dataset = Audio, load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    [example] = read_spoken_examples("hf:some/facts::train", sounds=tmp_path / "sounds")
    assert list(example.words) == WORDS
    assert len(example.wave) == 19_200


def entry(**changes: object) -> dict[str, object]:
    return {"words": [ENTRIES[0], ENTRIES[1] | changes, ENTRIES[2]]}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            {"text": "Snow."},
            r"row 2 of .*data\.jsonl: the columns audio, text have no words with t",
        ),
        ({"words": []}, "have no words with their times; expected a column with a list of {word"),
        (
            {"a": ENTRIES, "b": ENTRIES},
            "a, b have words with times; expected one: name it, such as",
        ),
        ({"words": TEXTS, "start": STARTS[:2], "end": ENDS}, "3 words, 2 starts and 3 ends"),
        (entry(end=None), r"expected seconds that rise, .* got 'is' from 0\.3 to None"),
        (entry(start="0.3"), "got 'is' from 0.3 to 0.42"),
        (entry(start=0.05), "after a start at 0.1"),
        (entry(end=0.2), "got 'is' from 0.3 to 0.2"),
        (entry(end=float("nan")), "got 'is' from 0.3 to nan"),
        (entry(word="it is"), "expected the times of single words; got 'it is'"),
        (entry(word=7), "expected the times of single words; got 7"),
        ({"words": [{"word": "<eps>", "start": 0, "end": 1}]}, "it has no word; expected at least"),
        (
            {
                "words": [
                    {"word": w.word, "start": 1000 * w.start, "end": 1000 * w.end} for w in WORDS
                ]
            },
            r"a word ends at 1000 and the sound has 1\.20 seconds; expected times in seconds",
        ),
        ({"audio": "lost.wav", "words": ENTRIES}, "lost.wav cannot be read as audio"),
        ({"audio": None, "words": ENTRIES}, "got none of the columns audio, words: name it, su"),
        ({"audio": None, "a": "1.wav", "b": "2.wav"}, "got a, b of the columns audio, a, b: name"),
        ({"audio": {"array": [[0.0]], "sampling_rate": 8000}}, "a waveform is one channel"),
        ({"audio": {"array": [0.0], "path": None}}, "expected a sound file, its bytes or samples"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, cells, message):
    good = {"audio": "clip.wav", "words": ENTRIES}
    with pytest.raises(EepolicyError, match=message) as error:
        read_spoken_examples(write(tmp_path, good, {"audio": "clip.wav"} | cells))
    assert str(error.value).startswith(f"row 2 of {tmp_path}")
    assert "\n" not in str(error.value)


def test_names_and_files_that_cannot_be_read(tmp_path):
    file = write(tmp_path, {"audio": "clip.wav", "words": ENTRIES})
    for name in ("sound", "words"):
        with pytest.raises(EepolicyError, match="no column lost; the columns are"):
            read_spoken_examples(file, ColumnNames.parse([f"{name}=lost"]))
    with pytest.raises(EepolicyError, match=r"names sound, words, .* got ending=e"):
        ColumnNames.parse(["ending=e"])
    with pytest.raises(EepolicyError, match="has no row: expected spoken examples"):
        read_spoken_examples(write(tmp_path, kind="json"))
    (tmp_path / "data.json").write_text("[3]")
    with pytest.raises(EepolicyError, match=r"row 1 of .*: expected columns by name; got 3"):
        read_spoken_examples(tmp_path / "data.json")
