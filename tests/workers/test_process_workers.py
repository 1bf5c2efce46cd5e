"""Worker processes: results, lost processes, and interrupts while they start."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from functools import partial

import pickled_workers
import pytest
import torch
from worker_jobs import (
    OnlyIn,
    bytes_after_a_loss,
    fails,
    mean,
    no_model,
    square,
    square_after_a_loss,
    square_unless_first,
)

from eepolicy import EepolicyError
from eepolicy.interrupts import interrupts_later
from eepolicy.workers import (
    OrderedWorkers,
    ProcessWorkers,
    WorkerConfig,
    processes,
)


@pytest.fixture
def other_thread():
    """A thread that may take a signal of the process instead of the main thread."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_raised_after_a_process_has_started(number, other_thread):
    steps = []

    def start() -> None:
        with interrupts_later():
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            steps.append("started")

    # a suite that a shell runs in the background inherits an ignored SIGINT
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert steps == ["started"]
        assert signal.getsignal(number) is signal.default_int_handler
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(number, before)


def test_without_an_interrupt_nothing_is_raised(other_thread):
    with interrupts_later():
        pass


def test_the_calling_process_works_alone():
    with WorkerConfig(0).start(lambda: abs) as workers:
        for item in (-1, -2, -3):
            workers.submit(item)
        assert len(workers) == 3
        assert sorted(workers.finish()) == [1, 2, 3]
        assert len(workers) == 0


def test_items_can_be_submitted_while_results_are_read():
    with ProcessWorkers(lambda: abs, size=0) as workers:
        workers.submit(-3)
        results = []
        for result in workers.finish():
            results.append(result)
            if result > 1:
                workers.submit(1 - result)
    assert results == [3, 2, 1]


@pytest.mark.parametrize("size", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_failure_names_its_item(size):
    with ProcessWorkers(partial(square, "text"), size=size) as workers:
        workers.submit("seven")
        with pytest.raises(TypeError) as caught:
            workers.next()
    if sys.version_info >= (3, 11):
        assert any(re.search("while working on 'seven'", note) for note in caught.value.__notes__)


@pytest.mark.parametrize("size", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_function_that_cannot_be_made_ends_the_run_with_its_error(size):
    with ProcessWorkers(no_model, size=size) as workers:
        workers.submit(1)
        with pytest.raises(FileNotFoundError, match="no model"):
            results_of_processes(workers) if size else workers.next()


def results_of_processes(workers: ProcessWorkers) -> list:
    """All results; the calling process does not help."""
    results = []
    while len(workers):
        results += workers.completed()
        time.sleep(0.01)
    return results


def test_lost_processes_neither_lose_nor_duplicate_results(tmp_path):
    """Each item kills the first process that runs it."""
    with ProcessWorkers(partial(square_unless_first, tmp_path), 1, own=time.sleep) as workers:
        for item in range(3):
            workers.submit(item)
        results = results_of_processes(workers)
    assert sorted(results) == [0, 1, 4]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lost_process_ends_the_others_of_its_pool(tmp_path):
    """Also after the calling process took an item: a process that stays keeps a model in memory."""
    make = partial(square_after_a_loss, tmp_path)
    with ProcessWorkers(make, 2, own=lambda number: number * number) as workers:
        for item in range(8):
            workers.submit(item)
        while len(list(tmp_path.iterdir())) < 2:  # two processes work, three items wait for them
            time.sleep(0.01)
        before = [*workers._pool._processes.values()]
        results = [workers.next()]
        (tmp_path / "go").touch()
        results += results_of_processes(workers)
        assert len(before) == 2
        assert not any(process.is_alive() for process in before)
    assert sorted(results) == [item * item for item in range(8)]


def test_no_two_threads_close_an_end_of_a_pipe_at_once():
    """The second would close a file that another thread has opened since, or fail."""
    closing = []

    def closed_slowly(end, stock) -> None:
        closing.append((end, threading.get_ident()))
        time.sleep(0.3)  # so that a second thread comes into it
        stock()

    def interrupted() -> None:
        with ProcessWorkers(partial(square, None), 1) as workers:
            workers.submit(2)
            pool = workers._pool
            for queue in (pool._call_queue, pool._result_queue):
                for end in (queue._reader, queue._writer):
                    end.close = partial(closed_slowly, end, end.close)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    ends = [end for end, _ in closing]
    threads = [{thread for end, thread in closing if end is one} for one in ends]
    assert len(closing) >= 2
    assert all(len(thread) == 1 for thread in threads)


def test_a_process_that_dies_while_it_sends_a_result_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    with ProcessWorkers(partial(bytes_after_a_loss, tmp_path), 1, own=bytes) as workers:
        workers.submit(100_000)  # more than a pipe holds
        assert results_of_processes(workers) == [bytes(100_000)]


def test_an_error_while_a_process_sends_a_result_ends_the_pool(tmp_path):
    threads = []

    def interrupted() -> None:
        with ProcessWorkers(partial(bytes_after_a_loss, tmp_path), 1, own=bytes) as workers:
            workers.submit(100_000)
            [process] = workers._pool._processes.values()
            process.join()
            threads.append(workers._pool._executor_manager_thread)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not threads[0].is_alive()  # Python waits for it at its end


def test_tensors_keep_no_files_open():
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ProcessWorkers(partial(mean, None), 1, own=torch.mean) as workers:
        workers.submit(torch.ones(2))
        results = results_of_processes(workers)
        free = os.open(os.devnull, os.O_RDONLY)  # the least number that is free
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 20, limits[1]))
        try:
            for _ in range(60):
                workers.submit(torch.ones(2))
            results += results_of_processes(workers)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert results == [1.0] * 61


def test_an_error_that_cannot_be_read_again_is_no_lost_process():
    with ProcessWorkers(partial(fails, None), 1, own=abs) as workers:
        workers.submit(7)
        with pytest.raises(EepolicyError, match="TwoArguments: the number is 7"):
            results_of_processes(workers)


def test_a_function_that_other_processes_cannot_read_is_no_lost_process():
    with ProcessWorkers(OnlyIn(), 1, own=abs) as workers:
        workers.submit(7)
        with pytest.raises(AttributeError, match="a function of a notebook"):
            results_of_processes(workers)


@pytest.mark.slow
def test_repeatedly_lost_processes_raise_a_clear_error(tmp_path):
    make = partial(square_unless_first, tmp_path, times=100)
    with ProcessWorkers(make, 1) as workers:
        workers.submit(1)
        with pytest.raises(EepolicyError, match="6 worker processes ended unexpectedly"):
            results_of_processes(workers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": -1}, "0 or more; got -1"),
        ({"number": "two"}, "number: expected .*; got 'two'"),
        ({"ray": 6379}, "ray: expected .*; got 6379"),
        ({"gpus": 1}, "for Ray"),
        ({"ray": "local", "number": 0}, "at least 1 worker"),
        ({"ray": "local", "gpus": -1, "number": 1}, "0 or more; got -1"),
    ],
)
def test_settings_of_workers_are_checked(options, message):
    with pytest.raises(EepolicyError, match=message):
        WorkerConfig(**options)


def test_results_come_in_the_order_of_the_items(monkeypatch):
    """Though workers run the last item first, and though another run was not finished."""
    monkeypatch.setattr(WorkerConfig, "start", pickled_workers.start)
    taken = []

    def items():
        for number in range(40):
            taken.append(number)
            yield number

    with OrderedWorkers(WorkerConfig(2), partial(square, "text")) as workers:
        unfinished = workers.run(items())
        assert next(unfinished) == 0
        assert len(taken) == 12  # four for each process
        assert list(workers.run(range(3))) == [0, 1, 4]
        assert list(workers.run([])) == []
    expected = [number**2 for number in range(40)]
    with OrderedWorkers(WorkerConfig(2), partial(square, "text")) as workers:
        assert list(workers.run(range(40))) == expected
