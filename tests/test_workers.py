"""Worker processes: interrupts while they start."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from eepolicy import workers


@pytest.fixture
def other_thread():
    """A thread that may take a signal of the process instead of the main thread."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def test_an_interrupt_is_raised_after_a_process_has_started(other_thread):
    steps = []

    def start() -> None:
        with workers._interrupts_later():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            steps.append("started")

    # a suite that a shell runs in the background inherits an ignored SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert steps == ["started"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_an_interrupt_nothing_is_raised(other_thread):
    with workers._interrupts_later():
        pass
