"""Processes that load the same model together: what each of 1, 2 and 4 reads and how long all take.

    python -m tests.benchmarks.bench_fleet [--gigabytes 0.3] [--processes 1 2 4] [--repeat 3]

All have eight simulated devices together, on one axis, and see one cache. In turn each fleet loads a folder that has
not been converted, and then what is in the cache. Bytes are those of one process, the one that reads most, as a share
of what it would be if all shared alike: of the source on a miss, without what the first process reads to identify it,
and of the checkpoint on a hit. Times are told as ratios to one process, and mean little where processes share their
processors.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import models
from tests.support.fleet import Fleet, fleet

_DEVICES = 8


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.3, help="the size of the model; %(default)s")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="how many; %(default)s")
    parser.add_argument("--repeat", type=int, default=3, help="loads of each kind; %(default)s")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = models.dense(Path(folder, "model"), asked.gigabytes)
        nbytes = models.nbytes_on_disk(model)
        found = {count: _measured(model, Path(folder), count, asked.repeat) for count in asked.processes}
    alone = found[asked.processes[0]]
    print(f"{'processes':>10}{'miss':>8}{'of a share':>12}{'hit':>8}{'of a share':>12}{'peak, MB':>10}")
    for count, loads in found.items():
        seconds = {kind: _seconds(loads[kind]) / _seconds(alone[kind]) for kind in loads}
        source = max(answer["bytes_read"] for answers in loads["miss"] for answer in answers) * count / nbytes
        cache = max(answer["bytes_from_cache"] for answers in loads["hit"] for answer in answers) * count / nbytes
        peak = max(answer["peak_bytes"] for answers in loads["hit"] for answer in answers) / 1e6
        print(f"{count:10}{seconds['miss']:8.2f}{source:12.2f}{seconds['hit']:8.2f}{cache:12.2f}{peak:10.0f}")


def _measured(model: Path, folder: Path, count: int, repeat: int) -> dict[str, list[Sequence[Mapping[str, Any]]]]:
    """The answers of all processes, for each load that missed and each that hit."""
    log = folder / f"log-{count}"
    log.mkdir()
    with fleet(count, _DEVICES // count, log) as running:
        misses = [_load(running, model, folder / f"cache-{count}-{number}") for number in range(repeat)]
        hits = [_load(running, model, folder / f"cache-{count}-0") for _ in range(repeat)]
    return {"miss": misses, "hit": hits}


def _load(running: Fleet, model: Path, cache: Path) -> Sequence[Mapping[str, Any]]:
    answers = running.run({"model": str(model), "options": {"cache_dir": str(cache)}}, timeout=600)
    for answer in answers:
        if "bytes_read" not in answer:
            raise SystemExit(f"a process failed: {answer.get('error')}: {answer.get('message')}")
    return answers


def _seconds(loads: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """The median of how long the slowest process took."""
    return statistics.median(max(answer["seconds"] for answer in answers) for answers in loads)


if __name__ == "__main__":
    main()
