"""What is asked of the figures, and whether it is so."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.measure import Sample

Round = Mapping[str, Sample]
"""The samples of one round, by row."""


@dataclass(frozen=True)
class Bar:
    """A limit of something that one round tells.

    Attributes:
        title: What is limited.
        rows: The rows that it takes.
        of: The number, given the samples of a round; None where it cannot be known.
        limit: The limit.
        unit: What the number is in: "x", "MB", "ms".
        at_least: Whether the limit is one from below.
        peak: Whether the highest round counts, rather than the median.
    """

    title: str
    rows: tuple[str, ...]
    of: Callable[[Round], float | None]
    limit: float
    unit: str = "x"
    at_least: bool = False
    peak: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a bar is met.

    Attributes:
        bar: The bar.
        values: The number of each round; none where it could not be measured.
        why: Why not.
    """

    bar: Bar
    values: Sequence[float]
    why: str = ""

    @property
    def value(self) -> float:
        """What counts: the median, or the highest."""
        return max(self.values) if self.bar.peak else statistics.median(self.values)

    @property
    def is_met(self) -> bool | None:
        """None where it was not measured."""
        if not self.values:
            return None
        return self.value >= self.bar.limit if self.bar.at_least else self.value <= self.bar.limit


def judge(bar: Bar, samples: Mapping[str, Sequence[Sample]], missing: Mapping[str, str]) -> Verdict:
    """Compares what was measured with a bar."""
    absent = [name for name in bar.rows if name not in samples]
    if absent:
        why = "; ".join(f"{name}: {missing.get(name, 'not among the rows that were asked for')}" for name in absent)
        return Verdict(bar, (), why)
    rounds = [dict(zip(bar.rows, found, strict=True)) for found in zip(*(samples[n] for n in bar.rows), strict=True)]
    values = [value for found in rounds if (value := bar.of(found)) is not None]
    return Verdict(bar, values, "" if values else "only Linux tells")


def ratio(title: str, row: str, to: str, limit: float, *, at_least: bool = False) -> Bar:
    """How many times as long one row takes as another."""
    return Bar(title, (row, to), lambda found: found[row].seconds / found[to].seconds, limit, at_least=at_least)


def figure(title: str, row: str, to: str, name: str, limit: float) -> Bar:
    """How many times as much of what a row tells besides, by name, as another does; none is not more than none."""

    def times(found: Round) -> float:
        one, other = found[row].figures[name], found[to].figures[name]
        return one / other if other else math.inf if one else 1.0

    return Bar(title, (row, to), times, limit)


def memory(title: str, row: str, limit: float, held: int = 0) -> Bar:
    """The most megabytes above what the process had before, and above what its result keeps."""

    def above(found: Round) -> float | None:
        peak = found[row].peak
        return None if peak is None else (peak - held) / 1e6

    return Bar(title, (row,), above, limit, "MB", peak=True)
