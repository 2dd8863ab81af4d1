"""Loaders beside those who remove: no load fails, none is wrong, nothing that is written or read is removed.

`LAZYLOAD_TESTS=whole` runs each flavour for a minute instead of a few seconds.
"""

import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import checkpoints

import lazyload

WHOLE = os.environ.get("LAZYLOAD_TESTS") == "whole"
SECONDS = 60.0 if WHOLE else 6.0

LOAD = """
import hashlib, json, sys, time
import jax, numpy as np
import lazyload
from flax import nnx
model, cache, storage, force = sys.argv[1:]
storage = lazyload.Storage(**json.loads(storage))
counts = {"hit": 0, "converted": 0}
digests = set()
lazyload.from_pretrained, lazyload.last_report  # imported before the time begins
print("ready", flush=True)
until = float(sys.stdin.readline())
while time.time() < until:
    module = lazyload.from_pretrained(model, cache_dir=cache, storage=storage, force_convert=force == "True")
    digest = hashlib.sha256()
    for path, value in sorted(nnx.to_flat_state(nnx.state(module, nnx.Param)), key=str):
        digest.update(np.asarray(value[...]).tobytes())
    digests.add(digest.hexdigest())
    counts["hit" if lazyload.last_report().hit else "converted"] += 1
print(json.dumps({"counts": counts, "digests": sorted(digests)}))
"""
REMOVE = """
import json, sys, time
import lazyload
model, cache, how = sys.argv[1:]
counts = {"removed": 0, "kept": 0}
lazyload.Cache  # imported before the time begins
print("ready", flush=True)
until = float(sys.stdin.readline())
while time.time() < until:
    cache = lazyload.Cache(cache.root if isinstance(cache, lazyload.Cache) else cache)
    try:
        if how == "prune":
            counts["removed"] += len(cache.prune(older_than=0))
        else:
            counts["removed"] += len(cache.remove(model))
    except lazyload.errors.CacheError:
        counts["kept"] += 1
    time.sleep(0.002)
print(json.dumps({"counts": counts, "digests": []}))
"""
FLAVOURS = [
    {"ocdbt": ocdbt, "zarr3": zarr3, "compression": compression}
    for ocdbt, zarr3 in ((True, True), (False, False), (False, True), (True, False))
    for compression in ("none", "zstd")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


def start(code: str, *words: object, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    paths = {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, *map(str, words)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | paths | {"XLA_FLAGS": ""} | environment,
    )


def outcome(processes: list[subprocess.Popen[str]]) -> tuple[collections.Counter[str], set[str]]:
    """What the processes counted, all together, and the digests of what they loaded; none may have failed.

    Their time begins when all of them are ready.
    """
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()
    until = time.time() + SECONDS
    for process in processes:
        process.stdin.write(f"{until}\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=SECONDS + 300) for process in processes]
    errors = [error for process, (_, error) in zip(processes, outputs, strict=True) if process.returncode]
    assert errors == []
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    counts: collections.Counter[str] = collections.Counter()
    for each in found:
        counts.update(each["counts"])
    return counts, {digest for each in found for digest in each["digests"]}


@pytest.mark.parametrize("flavour", FLAVOURS if WHOLE else [FLAVOURS[0], FLAVOURS[3]], ids=str)
def test_loaders_beside_prune_rm_and_force(model: Path, tmp_path: Path, flavour: dict[str, object]) -> None:
    storage = json.dumps(flavour)
    processes = [start(LOAD, model, tmp_path, storage, force) for force in (False, False, False, True)]
    processes += [start(REMOVE, model, tmp_path, how) for how in ("prune", "rm")]
    counts, digests = outcome(processes)
    print(f"\n{flavour}: {dict(counts)}")
    assert len(digests) == 1
    assert counts["converted"] > 0
    assert counts["removed"] > 0
    lazyload.Cache(tmp_path).prune()
    left = [path.name for path in tmp_path.rglob("*") if "lease" in path.name or path.suffix in (".owner", ".mark")]
    assert left == []


def test_containers_of_one_host_name_keep_their_hands_off_each_other(model: Path, tmp_path: Path) -> None:
    container = ("unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*container, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a pid namespace cannot be made here")
    storage = json.dumps(FLAVOURS[2])
    processes = [start(LOAD, model, tmp_path, storage, force, before=container) for force in (False, True)]
    processes += [start(REMOVE, model, tmp_path, how, before=container) for how in ("prune", "rm")]
    counts, digests = outcome(processes)
    print(f"\ncontainers: {dict(counts)}")
    assert len(digests) == 1
    assert counts["converted"] > 0
