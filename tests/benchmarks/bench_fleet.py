"""Processes that load the same model together, and what each of them reads: the suite `fleet`.

    python -m tests.benchmarks --suites fleet --processes 1 2 4

All have eight simulated devices together, on one axis, and see one cache. A fleet loads a folder that has not been
converted, or what is in the cache. Bytes are those of the process that reads most; as a share they are told of what it
would be if all shared alike: of the source on a miss, without what the first process reads to identify it, and of the
checkpoint on a hit. Times mean little where processes share their processors.

A job has `model`, `scratch`, `processes` and `nbytes`, the model's bytes.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.fleet import Fleet

Job = Mapping[str, Any]

_DEVICES = 8


class Loaded(NamedTuple):
    """For `worker.py`, what is known of a load by several processes, of which its own is none."""

    told: Mapping[str, Any]


def miss(job: Job) -> Callable[[str], Loaded]:
    """Loads of what is not in the cache."""
    running = _started(job)
    return lambda folder: _told(_load(running, job["model"], folder), "bytes_read", job)


def hit(job: Job) -> Callable[[str], Loaded]:
    """Loads of what is in the cache."""
    running, cache = _started(job), str(Path(job["scratch"], "cache"))
    _load(running, job["model"], cache)
    return lambda _: _told(_load(running, job["model"], cache), "bytes_from_cache", job)


def _started(job: Job) -> Fleet:
    """Processes, which end when the one that they are asked by does."""
    count = job["processes"]
    return Fleet(count, _DEVICES // count, Path(tempfile.mkdtemp(dir=job["scratch"])))


def _load(running: Fleet, model: str, cache: str) -> Sequence[Mapping[str, Any]]:
    answers = running.run({"model": model, "options": {"cache_dir": cache}}, timeout=600)
    for answer in answers:
        if "bytes_read" not in answer:
            raise RuntimeError(f"a process failed: {answer.get('error')}: {answer.get('message')}")
    return answers


def _told(answers: Sequence[Mapping[str, Any]], what: str, job: Job) -> Loaded:
    most = max(answer[what] for answer in answers)
    return Loaded(
        {
            "cpu": None,
            "peak": max(answer["peak_bytes"] for answer in answers),
            "bytes_read": most,
            "reads": None,
            "figures": {"of a share": most * len(answers) / job["nbytes"]},
        }
    )
