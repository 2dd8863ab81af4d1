"""How CI runs a part of the tests, and in a few commits all of them.

`pytest --cases=2/4`: every test, but of its cases every fourth from the second on, and one at least. `pytest
--part=2/5`: the second of five parts of the tests, and of each file one test at least; which part a test is in follows
from its name alone, so that what one run leaves out another has. With both, a part of these cases.

`--part=tests/models,tests/test_layers.py=1/2` is for the tests of folders and files, as is `--cases`; of several
options the last one counts that fits.
"""

import argparse
import collections
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Part:
    """One of several parts of the tests below some paths; of all where there are none."""

    paths: tuple[str, ...]
    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> "Part":
        paths, _, part = text.rpartition("=")
        number, _, count = part.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise argparse.ArgumentTypeError(f"{text!r} is no part, such as 2/5 or tests/models=2/5")
        return cls(tuple(path.rstrip("/") for path in paths.split(",") if path), int(number), int(count))

    def is_for(self, file: str) -> bool:
        return not self.paths or any(file == path or file.startswith(f"{path}/") for path in self.paths)


def pytest_addoption(parser: pytest.Parser) -> None:
    for option, what in (("--cases", "cases of each test"), ("--part", "tests")):
        parser.addoption(
            option,
            metavar="[PATH,...=]N/ALL",
            type=Part.of,
            action="append",
            default=[],
            help=f"run one part of the {what}, such as 2/5; of those of folders and files, tests/models=2/5",
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item.nodeid for item in items]
    chosen = list(_chosen(chosen, config.getoption("cases"), _test, _cases))
    chosen = list(_chosen(chosen, config.getoption("part"), _file, _tests))
    left = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in left])
    items[:] = [item for item in items if item.nodeid in left]


def _chosen(
    names: Iterable[str],
    parts: Sequence[Part],
    group_of: Callable[[str], str],
    choose: Callable[[Part, Sequence[str]], Collection[str]],
) -> Iterator[str]:
    """What is chosen of each group of tests, where a part is for its file."""
    groups = collections.defaultdict(list)
    for name in names:
        groups[group_of(name)].append(name)
    for group, members in groups.items():
        part = next((part for part in reversed(parts) if part.is_for(_file(group))), None)
        yield from members if part is None else choose(part, members)


def _cases(part: Part, names: Sequence[str]) -> Collection[str]:
    # Not every file's first case in the same part: it is often the one that takes longest.
    first = part.number - 1 + zlib.crc32(_file(names[0]).encode())
    return names[first % min(part.count, len(names)) :: part.count]


def _tests(part: Part, names: Sequence[str]) -> Collection[str]:
    chosen = [name for name in names if zlib.crc32(name.encode()) % part.count == part.number - 1]
    return chosen or [names[part.number % len(names)]]


def _test(name: str) -> str:
    return name.partition("[")[0]


def _file(name: str) -> str:
    return name.partition("::")[0]
