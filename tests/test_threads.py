"""Threads of one process: every function and every `Cache` may be called from several at once."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import pytest
from flax import nnx
from support import tiny
from support.hub import Hub

import lazyload
from lazyload import errors

T = TypeVar("T")
THREADS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make(tmp_path / "tiny")


def at_once(*calls: Callable[[], T]) -> list[T]:
    """What the calls return, each made in a thread of its own, all at the same moment."""
    barrier = threading.Barrier(len(calls))

    def started(call: Callable[[], T]) -> T:
        barrier.wait(60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(started, calls))


def leaves(model: Any) -> Sequence[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))]


def require_equal(one: Any, other: Any) -> None:
    for ours, theirs in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_same_model_from_many_threads_is_converted_once(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def load() -> tuple[Any, lazyload.LoadReport]:
        return lazyload.from_pretrained(folder, cache_dir=cache), lazyload.last_report()

    loaded = at_once(*[load] * THREADS)
    reports = [report for _, report in loaded]
    assert [report.bytes_written > 0 for report in reports].count(True) == 1
    assert {report.key for report in reports} == {lazyload.plan(folder, cache_dir=cache).key}
    assert len(list(cache.glob("models--*/*/data-*"))) == 1, "neither a second generation, nor marks, are left"
    for model, _ in loaded[1:]:
        require_equal(model, loaded[0][0])


def test_the_same_hub_model_too(folder: Path, tmp_path: Path, hub: Hub) -> None:
    hub.add("org/tiny", folder)
    converted = at_once(*[lambda: lazyload.convert("org/tiny", cache_dir=tmp_path / "cache")] * THREADS)
    assert [result.converted for result in converted].count(True) == 1
    assert len({result.path for result in converted}) == 1


def test_different_models_at_once_and_a_report_for_each_thread(
    folder: Path, qwen: Path, tmp_path: Path, hub: Hub
) -> None:
    hub.add("org/tiny", folder)
    calls: list[tuple[str | Path, dict[str, Any]]] = [
        (folder, {}),
        (folder, {"dtype": "float32"}),
        (folder, {"layout": lazyload.MaxText()}),
        ("org/tiny", {"storage": {"ocdbt": False}}),
        (qwen, {}),
        (qwen, {"layers": range(1, 3)}),
    ]

    def loading(model: str | Path, options: dict[str, Any]) -> Callable[[], tuple[Any, lazyload.LoadReport]]:
        def load() -> tuple[Any, lazyload.LoadReport]:
            built = lazyload.from_pretrained(model, cache_dir=tmp_path / "cache", progress=False, **options)
            return built, lazyload.last_report()

        return load

    for is_hit in (False, True):
        loaded = at_once(*(loading(model, options) for model, options in calls))
        for (model, options), (built, report) in zip(calls, loaded, strict=True):
            assert report.model == str(model)
            assert report.hit == is_hit
            assert report.key == lazyload.plan(model, cache_dir=tmp_path / "cache", **options).key
            alone = lazyload.from_pretrained(model, cache_dir=tmp_path / "alone", **options)
            for ours, theirs in zip(jax.tree.leaves(built), jax.tree.leaves(alone), strict=True):
                np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_one_that_fails_leaves_the_others_alone(folder: Path, tmp_path: Path) -> None:
    broken = tiny.make(tmp_path / "broken")
    (file,) = broken.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])

    def load(model: Path) -> bool:
        try:
            lazyload.from_pretrained(model, cache_dir=tmp_path / "cache")
        except errors.CorruptSourceError:
            return False
        return True

    calls = [lambda model=model: load(model) for model in (folder, broken) * 4]
    assert at_once(*calls) == [True, False] * 4


def test_plans_configs_and_the_cache_beside_conversions(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = lazyload.Cache(root)
    expected = lazyload.config(folder)
    done = threading.Event()

    def converting() -> int:
        try:
            for size in (4096, 8192, 16384, 32768):
                lazyload.convert(folder, cache_dir=root, storage={"chunk_bytes": size})
        finally:
            done.set()
        return 1

    def looking(look: Callable[[], object]) -> Callable[[], int]:
        def looks() -> int:
            count = 0
            while not done.is_set() or count == 0:
                look()
                count += 1
            return count

        return looks

    def plan() -> None:
        assert lazyload.plan(folder, cache_dir=root, storage={"chunk_bytes": 4096}).nbytes > 0

    def config() -> None:
        assert lazyload.config(folder, cache_dir=root) == expected

    def entries() -> None:
        assert all(entry.nbytes for entry in cache.entries())
        assert cache.problems() == {}

    at_once(converting, *map(looking, (plan, config, entries, cache.prune, lambda: lazyload.verify(cache_dir=root))))
    assert len(cache.entries()) == 4
    assert [verification.problems for verification in lazyload.verify(cache_dir=root)] == [()] * 4


def test_loads_beside_removals_end_with_the_model(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = lazyload.Cache(root)
    expected = lazyload.from_pretrained(folder, cache_dir=root)
    done = threading.Event()
    refusals: list[str] = []

    def loading() -> None:
        for _ in range(4):
            require_equal(lazyload.from_pretrained(folder, cache_dir=root), expected)

    def removing() -> None:
        while not done.is_set():
            try:
                cache.remove(str(folder))
            except errors.CacheError as error:
                refusals.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        removals = pool.submit(removing)
        try:
            for load in [pool.submit(loading) for _ in range(3)]:
                load.result()
        finally:
            done.set()
        removals.result()
    assert [text for text in refusals if "kept" not in text and "neither a model" not in text] == []


def test_modules_are_filled_side_by_side(folder: Path, tmp_path: Path) -> None:
    config = lazyload.config(folder)
    modules = [lazyload.Decoder(config, rngs=None) for _ in range(THREADS)]
    calls = [
        lambda module=module: lazyload.from_pretrained(folder, cache_dir=tmp_path / "cache", into=module)
        for module in modules
    ]
    assert all(filled is module for filled, module in zip(at_once(*calls), modules, strict=True))
    for module in modules[1:]:
        require_equal(module, modules[0])


def test_each_thread_has_a_report_of_its_own(folder: Path, tmp_path: Path) -> None:
    lazyload.convert(folder, cache_dir=tmp_path / "cache")
    lazyload.convert(folder, cache_dir=tmp_path / "cache", dtype="float32")
    barrier = threading.Barrier(2)

    def load(dtype: Any) -> str:
        barrier.wait(60)
        key = lazyload.convert(folder, cache_dir=tmp_path / "cache", dtype=dtype).key
        barrier.wait(60)
        assert lazyload.last_report().key == key
        return key

    first, second = at_once(lambda: load("bfloat16"), lambda: load("float32"))
    assert first != second


def test_families_are_registered_beside_lookups(folder: Path) -> None:
    family = lazyload.Family("bigrams", ("bigrams",), lambda values: values, lambda values: lazyload.Layout({}))
    expected = lazyload.config(folder)
    calls: list[Callable[[], object]] = [lambda: lazyload.register(family), lambda: lazyload.config(folder)]
    found = at_once(*calls * 4)
    assert found[1::2] == [expected] * 4


@pytest.mark.parametrize("attempt", range(2))
def test_the_first_use_may_be_in_many_threads(folder: Path, tmp_path: Path, attempt: int) -> None:
    """Names that need Flax are imported when they are asked for, and JAX, Flax and TensorStore by the first load."""
    code = f"""
import threading, lazyload
barrier, found, failed = threading.Barrier(9), [], []
def use(what):
    barrier.wait()
    try:
        found.append(what())
    except BaseException as error:
        failed.append(repr(error))
folder, cache = {str(folder)!r}, {str(tmp_path / "cache")!r}
calls = [lambda: lazyload.Decoder, lambda: lazyload.fill, lambda: lazyload.config(folder)] * 2
calls += [lambda: lazyload.from_pretrained(folder, cache_dir=cache)] * 3
threads = [threading.Thread(target=use, args=(call,)) for call in calls]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
assert len(found) == 9
"""
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
