"""`pytest --may-skip=WHAT,...`: a test that is skipped for anything else fails: no run leaves out what it could do.

Without the option, tests are skipped as usual.
"""

from collections.abc import Generator, Mapping
from typing import TypeVar

import pytest

REASONS: Mapping[str, str | tuple[str, ...]] = {
    "torch": "could not import 'torch'",
    "transformers": ("needs transformers", "could not import 'transformers'", "module 'transformers' has __version__"),
    "peft": "could not import 'peft'",
    "namespace": "a pid namespace cannot be made here",
    "maxtext": ("MaxText is not installed", "pathwaysutils is not installed"),
    "tunix": "Tunix is not installed",
    "root": "root may read everything",
    "mount": "a file system cannot be mounted here",
    "tmux": "tmux is not installed",
    "browser": "no Chromium is installed",
    "buckets": "no client of buckets is installed",
    "gpu": "there is no GPU",
    "docs": "could not import 'sphinx'",
}
"""What may be missing where the tests run, and how the reason of a test that is skipped for it begins, or can begin."""

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--may-skip",
        metavar="WHAT,...",
        help=f"let tests that are skipped fail, but for what is named here, of {', '.join(REASONS)}; '' for nothing",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judged((yield), collector.config)


def _judged(report: Report, config: pytest.Config) -> Report:
    """The report of a test or of a file; a failure where it was skipped for what the option does not name."""
    allowed = config.getoption("may_skip")
    if allowed is not None and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(reason.startswith(REASONS[name]) for name in allowed.split(",") if name):
            report.outcome = "failed"
            report.longrepr = f"skipped, which --may-skip={allowed} does not allow: {reason}"
    return report
