"""A disk that fails once, anywhere: every error is one of ours, nothing is left, and the next call is right.

`LAZYLOAD_TESTS=whole` injects 250 errors.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import checkpoints

import lazyload

WHOLE = os.environ.get("LAZYLOAD_TESTS") == "whole"
ERRORS = 250 if WHOLE else 40

FAIL = """
import ctypes, json, sys, traceback
from pathlib import Path
import lazyload
model, root, flags, calls = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True", json.loads(sys.argv[4])
disk = ctypes.CDLL(None)
disk.what_failed.restype = ctypes.c_char_p
disk.fail_at.argtypes = ctypes.c_char_p, ctypes.c_long, ctypes.c_int
storage = lazyload.Storage(flags, flags)
lazyload.convert(model, cache_dir=root / "first", storage=storage)
disk.fail_at(str(root / "second").encode(), 1 << 40, 5)
lazyload.convert(model, cache_dir=root / "second", storage=storage)
in_all = disk.counted()
outcomes = []
for number, (share, error) in enumerate(calls):
    cache = root / f"x{number}"
    disk.fail_at(str(cache).encode(), int(share * in_all), error)
    try:
        lazyload.convert(model, cache_dir=cache, storage=storage)
        outcome = "converted"
    except lazyload.errors.LazyLoadError:
        outcome = "error"
    except BaseException:
        outcome = traceback.format_exc()
    what = disk.what_failed().decode()
    disk.fail_at(b"", -1, 0)
    outcomes.append([outcome, what])
print(json.dumps([in_all, outcomes]))
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if not compiler or sys.platform != "linux":
        pytest.skip("a file system cannot be mounted here, nor a failing one made")
    library = tmp_path_factory.mktemp("disk") / "failing_disk.so"
    source = Path(__file__).parents[1] / "support" / "failing_disk.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("flags", [True, False])
def test_every_error_is_ours_and_leaves_nothing(disk: Path, model: Path, tmp_path: Path, flags: bool) -> None:
    chance = random.Random(0)
    calls = [[chance.random(), chance.choice([5, 28, 13, 116])] for _ in range(ERRORS // 2)]
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1]), "LD_PRELOAD": str(disk)}
    command = [sys.executable, "-c", FAIL, model, tmp_path, str(flags), json.dumps(calls)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    in_all, outcomes = json.loads(result.stdout.splitlines()[-1])
    foreign, traces = [], []
    for number, (outcome, what) in enumerate(outcomes):
        root = tmp_path / f"x{number}"
        if outcome not in ("converted", "error"):
            foreign.append((what, outcome))
        found = [found.problems for found in lazyload.verify(cache_dir=root)]
        assert found in ([], [()])
        left = [path for path in root.glob("models--*/*/*") if path.name.startswith(("data-", "manifest", "."))]
        if len(left) != 2 * len(found):
            traces.append((what, outcome, [path.name for path in left]))
        lazyload.convert(model, cache_dir=root, storage=lazyload.Storage(flags, flags))
        assert [found.problems for found in lazyload.verify(cache_dir=root)] == [()]
    converted = [outcome for outcome, _ in outcomes].count("converted")
    print(f"\n{len(calls)} errors in {in_all} calls, {converted} of no consequence: {len(foreign)} foreign, ", end="")
    print(f"{len(traces)} left traces")
    assert foreign == []
    assert traces == []
