"""Limits of a container, from files as the system writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eepolicy import machine

NONE = "9223372036854771712"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files of a control group, and pretends that the host has 8 cores."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            file = Path(tmp_path, name)
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{text}\n")

    return write


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
    ],
)
def test_cores_are_those_of_the_container(files, cores, write):
    write(files)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": "500"}, None),
        ({"memory.max": "8000", "memory.current": "500"}, 7500),
        (
            {
                "memory.max": "8000",
                "memory.current": "5000",
                "memory.stat": "anon 1000\ninactive_file 3000\nactive_file 1000",
            },
            6000,
        ),
        ({"memory.max": "100", "memory.current": "120"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "8000",
                "memory/memory.usage_in_bytes": "5000",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 2000",
            },
            5000,
        ),
        (
            {"memory/memory.limit_in_bytes": NONE, "memory/memory.usage_in_bytes": "0"},
            int(NONE),  # version 1 has a large number for none
        ),
    ],
)
def test_memory_is_that_of_the_container(files, free, write):
    write(files)
    assert machine.container_memory() == free
    assert machine.within_container(7000) == (7000 if free is None else min(7000, free))
