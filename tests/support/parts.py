"""`pytest --part=2/5`: the second of five parts of the tests, and of each file one test at least.

`--part=tests/models,tests/test_layers.py=1/2` is for the tests of folders and files; of several options the last one
counts that fits. A test's part follows from its name alone, so that what one run leaves out another has.
"""

import argparse
import zlib
from collections.abc import Collection, Iterator
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

    def has(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % self.count == self.number - 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        metavar="[PATH,...=]N/ALL",
        type=Part.of,
        action="append",
        default=[],
        help="run one part of the tests, such as 2/5; of those of folders and files, tests/models=2/5",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = set(_chosen([item.nodeid for item in items], config.getoption("part")))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


def _chosen(names: Collection[str], parts: Collection[Part]) -> Iterator[str]:
    """The names of the parts; of a file without any, the first."""
    first = {_file(name): name for name in reversed(list(names))}
    for name in names:
        part = next((part for part in reversed(list(parts)) if part.is_for(_file(name))), None)
        if part is None or part.has(name):
            first.pop(_file(name), None)
            yield name
    yield from first.values()


def _file(name: str) -> str:
    return name.partition("::")[0]
