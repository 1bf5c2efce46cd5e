"""Whether the workers of a command run the model."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from eepolicy.cli import workers as workers_module
from eepolicy.cli.workers import ModelSource
from eepolicy.testing.models import random_llama
from eepolicy.workers import WorkerConfig


@pytest.mark.parametrize(
    ("number", "least", "free", "runs", "says"),
    [
        (2, 1, 10**9, True, False),
        (2, 1, 1000, False, True),
        (None, 1, 1000, False, False),  # nobody asked for workers
        (1, 2, 10**9, False, False),  # a single one recognises speech
        (1, 2, 1000, False, False),
    ],
)
def test_a_note_says_why_workers_do_not_run_the_model(number, least, free, runs, says, monkeypatch):
    notes: list[str] = []
    monkeypatch.setattr(workers_module, "print_note", notes.append)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    load = ModelSource("pocket").for_workers(random_llama(), WorkerConfig(number), least)
    assert (load is not None) == runs
    expected = "The 2 workers do not run the model: their models would take more than half"
    assert [note.startswith(expected) for note in notes] == [True] * says
