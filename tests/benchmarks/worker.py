"""A process that measures one contender as often as it is asked to.

    python -P worker.py CONTENDERS.py FUNCTION JOB.json

It answers every line on stdin with a line of JSON on stdout. What a call returns may have `told`, by name what it knows
of the sample itself. It needs the standard library alone, since it runs in the
environments of all contenders.
"""

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    file, function, job = sys.argv[1:]
    # What libraries print goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call = prepared(file, function, json.loads(Path(job).read_text()))
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measured(*call)), file=answers, flush=True)


def prepared(file: str, function: str, job: Mapping[str, Any]) -> tuple[Callable[[str], object], str]:
    """What is measured, and where it may write."""
    spec = importlib.util.spec_from_file_location("contenders", file)
    assert spec
    assert spec.loader
    contenders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contenders)
    return getattr(contenders, function)(job), job["scratch"]


def measured(call: Callable[[str], object], scratch: str) -> dict[str, Any]:
    """One call: seconds, processor time, bytes and reads, and the peak of memory above what was in use before."""
    folder = tempfile.mkdtemp(dir=scratch)
    _settle()
    rest, done = _memory("VmRSS"), _reads()
    cpu, started = time.process_time(), time.perf_counter()
    result = call(folder)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak, reads = _memory("VmHWM"), _reads()
    told = getattr(result, "told", {})
    if hasattr(result, "close"):
        result.close()
    del result
    shutil.rmtree(folder)
    # Others are measured until the next call.
    _settle()
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak": None if rest is None or peak is None else peak - rest,
        "bytes_read": reads.get("rchar", 0) - done["rchar"] if done else None,
        "reads": reads.get("syscr", 0) - done["syscr"] if done else None,
        **told,
    }


def _settle() -> None:
    """Gives back the memory that nobody uses, and has Linux forget the peak so far."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> int | None:
    """Bytes of this process; None where only Linux tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field))


def _reads() -> dict[str, int]:
    """Bytes that were read through system calls, and the number of these; nothing where only Linux tells."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(number) for name, _, number in (line.partition(": ") for line in lines)}


if __name__ == "__main__":
    main()
