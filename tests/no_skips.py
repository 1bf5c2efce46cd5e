"""A pytest plugin, `-p no_skips`: a test skipped for want of a package is a failure.

CI installs all optional packages, so a skip there means that a test no longer runs anywhere.
"""

from __future__ import annotations

import re

import pytest

#: reasons for which a test may be skipped in CI, and where it runs instead
ALLOWED = {
    r"there is no CUDA device": "CI has none; run on a device machine",
    r"there are graphs": "the counterpart on a machine with a CUDA device",
    r"tuned-lens 0\.2 does not work beside transformer-lens 4": "`make test-tuned-lens` hides it",
}

_skipped: dict[str, str] = {}  # reason by test


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    # an expected failure is reported as skipped too
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(re.search(allowed, reason) for allowed in ALLOWED):
            _skipped[report.nodeid] = reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run; in a worker of xdist nothing, since its controller sees all reports."""
    if _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.section("skipped, but not allowed by tests/no_skips.py", red=True)
        for test, reason in _skipped.items():
            terminalreporter.line(f"{test}: {reason}")
