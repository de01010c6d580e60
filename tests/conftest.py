# SPDX-License-Identifier: Apache-2.0
"""What holds for every layer of tests: time budgets, and no skipped test in CI."""

import math
import os
import time
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
BUDGETS_S: dict[str, float] = tomllib.loads((ROOT / "budgets.toml").read_text())["budget_s"]
TOLERANCE = 1.5  # a layer fails when it takes half as much again as its budget

_spent_s: dict[str, float] = defaultdict(float)
_skipped: list[str] = []


def layer_of(test: Path) -> str:
    """Return the folder in which the test's budget is counted: the innermost that has one."""
    folders = [folder.as_posix() for folder in test.relative_to(ROOT).parents][:-1]
    return next((folder for folder in folders if folder in BUDGETS_S), folders[-1])


def budget_s(layer: str) -> float:
    """Return the seconds that a layer may take; `soak` has no bound."""
    return math.inf if layer in ("soak", "gpu") else BUDGETS_S[layer]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    started = time.monotonic()
    result = yield
    _spent_s[layer_of(item.path)] += time.monotonic() - started
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not os.environ.get("CI"):
        return
    late = [layer for layer, spent in _spent_s.items() if spent > TOLERANCE * budget_s(layer)]
    if exitstatus == pytest.ExitCode.OK and (late or _skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for layer, spent in sorted(_spent_s.items()):
        budget = budget_s(layer)
        verdict = "OVER ITS BUDGET" if spent > TOLERANCE * budget else "of"
        terminalreporter.write_line(f"time of {layer}: {spent:.0f} s {verdict} {budget:.0f} s")
    for name in _skipped:
        terminalreporter.write_line(f"skipped, which CI counts as a failure: {name}")
