"""CPU time of this process and its children."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from eepolicy import EepolicyError
from eepolicy.analysis.timing.usage import CpuUsage, UsageMeter
from eepolicy.machine import available_cores

#: uses a second of CPU time by its own clock, says so, and waits for the end of its input
BURN = """
import sys, time
while time.process_time() < 1.0:
    pass
print(time.process_time(), flush=True)
sys.stdin.read()
"""
#: starts that program and passes on what it prints; after the end of its input, waits for it
PARENT = f"""
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", {BURN!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
print(child.stdout.readline().decode(), flush=True)
sys.stdin.read()
child.communicate()
"""


def started(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("program", [BURN, PARENT], ids=["child", "grandchild"])
def test_a_child_counts_while_it_lives_and_once_after(program):
    with UsageMeter(cores=2) as meter, started(program) as child:
        assert child.stdout is not None
        burnt = float(child.stdout.readline())
        living = meter.usage
        child.communicate()
    assert burnt >= 1.0
    # kernels account in steps of 10 ms
    assert living.cpu > burnt - 0.05
    # counted once; starting Python takes a fraction of a second
    assert living.cpu <= meter.usage.cpu < 1.9
    assert meter.usage.wall >= living.wall
    assert meter.usage.available == pytest.approx(2 * meter.usage.wall)


def test_time_before_and_after_the_block_does_not_count():
    with started(BURN) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with UsageMeter(cores=1) as meter:
            sum(range(1000))
        child.communicate()
    assert meter.usage.cpu < 0.5
    assert meter.usage == meter.usage


def test_usages_add_up():
    total = CpuUsage(10.0, 15.0, 20.0) + CpuUsage(5.0, 3.0, 10.0)
    assert total == CpuUsage(15.0, 18.0, 30.0)
    assert total.idle == pytest.approx(0.4)


def test_idle_has_a_floor_and_needs_time():
    assert CpuUsage(1.0, 2.1, 2.0).idle == 0.0  # clocks differ by a step
    assert math.isnan(CpuUsage().idle)


def test_wrong_use_is_refused():
    with pytest.raises(EepolicyError, match="with UsageMeter"):
        UsageMeter().usage  # noqa: B018
    with pytest.raises(EepolicyError, match=r"at least 0, got CpuUsage\(wall=-1"):
        CpuUsage(-1.0)


def test_cores_are_those_of_the_process():
    assert UsageMeter().cores == available_cores() >= 1
