"""Rows that are measured in turn, A B C C A B: what is compared with each other stands in one experiment."""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.bars import Bar
from tests.benchmarks.measure import Failed, Sample, Worker, command, once


@dataclass(frozen=True)
class Row:
    """One thing that is measured.

    Attributes:
        name: What it is called, in options and in JSON.
        title: What it is, for people.
        by: Whose it is: "lazyload", the name of another program, or "the machine".
        function: A function of `file`; empty for a command.
        job: What the function gets.
        first: Whether each call is the first one of a process of its own.
        held: The bytes that its result keeps in the host's memory.
        python: The Python that runs it.
        words: For a command, what is run in an empty folder.
        nbytes: The bytes that it moves; 0 where that says nothing.
        files: The files that it reads; None where that says nothing.
        missing: Why it cannot be measured here; empty if it can.
        file: The file of contenders.
    """

    name: str
    title: str
    by: str
    function: str = ""
    job: Mapping[str, Any] = field(default_factory=dict)
    first: bool = False
    held: int = 0
    python: str = ""
    words: Callable[[Path], Sequence[str]] | None = None
    nbytes: int = 0
    files: int | None = None
    missing: str = ""
    file: str = "contenders.py"


@dataclass(frozen=True)
class Experiment:
    """Rows, and what is asked of them.

    Attributes:
        title: What it is about.
        rows: What is measured.
        bars: What their ratios should be.
        base: The row that the others are compared with; empty for none.
    """

    title: str
    rows: Sequence[Row]
    bars: Sequence[Bar] = ()
    base: str = ""


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
        experiment: The experiment.
        samples: For each row that was measured, a sample a round.
        missing: For each row that was not, why.
    """

    experiment: Experiment
    samples: Mapping[str, Sequence[Sample]]
    missing: Mapping[str, str]


def run(experiment: Experiment, folder: Path, *, repeat: int, timeout: float, say: Callable[[str], None]) -> Outcome:
    """Measures every row once a round, in the same order in each.

    Args:
        experiment: What is measured.
        folder: Where it may write.
        repeat: The number of rounds.
        timeout: Seconds until a call that has not ended is given up.
        say: Is told what is going on.
    """
    missing = {row.name: row.missing for row in experiment.rows if row.missing}
    rows = [row for row in experiment.rows if not row.missing]
    samples: dict[str, list[Sample]] = {row.name: [] for row in rows}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for number in range(-1, repeat):
            said = f"round {number + 1} of {repeat}" if number >= 0 else "warming up"
            # What a row leaves behind, such as memory that the machine has at hand, goes to another one each time.
            for row in random.Random(number).sample(rows, len(rows)) if number >= 0 else rows:
                if row.name in missing or (number < 0 and (row.first or not row.function)):
                    continue
                say(f"{experiment.title}: {said}, {row.name}")
                try:
                    if number < 0:
                        # One after another: what they find out while they prepare is not to be about the others.
                        workers[row.name] = _started(row, folder, stack, timeout)
                        workers[row.name].prepare()
                        workers[row.name].measure()
                    else:
                        samples[row.name].append(_measure(row, workers.get(row.name), folder, timeout))
                except Failed as failed:
                    missing[row.name] = f"failed: {failed}"
    measured = {name: found for name, found in samples.items() if name not in missing}
    return Outcome(experiment, measured, missing)


def _started(row: Row, folder: Path, stack: contextlib.ExitStack, timeout: float) -> Worker:
    scratch = tempfile.mkdtemp(dir=folder)
    job = {**row.job, "scratch": scratch}
    return stack.enter_context(Worker(row.python, row.function, job, timeout=timeout, file=row.file))


def _measure(row: Row, worker: Worker | None, folder: Path, timeout: float) -> Sample:
    if worker:
        return worker.measure()
    scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        if row.words:
            return command(row.words(scratch), row.job.get("environment", {}), scratch, timeout=timeout)
        given = {name: value.format(scratch=scratch) for name, value in row.job["environment"].items()}
        job = {**row.job, "scratch": str(scratch), "environment": given}
        return once(row.python, row.function, job, timeout=timeout)
    finally:
        shutil.rmtree(scratch)
