"""The peak of a process's memory."""

import resource
import sys
from pathlib import Path


def peak_megabytes() -> float:
    """The most memory that this process has had since its program began.

    Linux counts in `ru_maxrss` what the process that started it had, too, and in `VmHWM` not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
