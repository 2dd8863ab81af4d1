"""Broken checkpoints: whatever is wrong is an error of this library, told soon, in little memory.

`LAZYLOAD_FUZZ=2000` tries more of them, `LAZYLOAD_FUZZ_FIRST` others.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import lazyload

COUNT = int(os.environ.get("LAZYLOAD_FUZZ", "200"))
FIRST = int(os.environ.get("LAZYLOAD_FUZZ_FIRST", "0"))


def test_broken_checkpoints_are_errors_of_ours(tmp_path: Path) -> None:
    paths = (Path(lazyload.__file__).parents[1], Path(__file__).parents[1])
    command = [sys.executable, "-m", "support.fuzz", str(tmp_path), str(FIRST), str(COUNT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60 + COUNT)
    found = json.loads(result.stdout)
    print(found)
    assert found["foreign"] == []
    assert sum(found["outcomes"].values()) == COUNT
    assert len(found["outcomes"]) > 4
    seconds, what = found["slowest"]
    # A second on a machine that does nothing else.
    assert seconds < 5, what
    assert found["megabytes"] < 300
