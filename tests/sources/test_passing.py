"""Bytes that pass through a window of memory: what is read, in whatever order, is right, and nobody waits forever."""

import faulthandler
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from lazyload.errors import CorruptSourceError
from lazyload.sources import passing
from lazyload.sources.passing import Passing, PassingFile
from lazyload.sources.stretches import Stretch

CONTENT = {name: random.Random(name).randbytes(size) for name, size in (("a", 5000), ("b", 3001))}
BLOCK, WINDOW, SMALL = 100, 600, 20


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are small, so that few bytes are many blocks."""
    sizes = {"_BLOCK_BYTES": BLOCK, "_WINDOW_BYTES": WINDOW, "_SMALL_BYTES": SMALL, "_GAP_BYTES": 10}
    for name, nbytes in {**sizes, "_SECONDS_TO_BE_READ": 0.01}.items():
        monkeypatch.setattr(passing, name, nbytes)


@pytest.fixture(autouse=True)
def bound() -> Iterator[None]:
    """Every test ends soon, or all of its process does: what waits forever cannot be ended otherwise."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Far:
    """Files that are far away, and what was asked for."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, int]] = Counter()
        self.meanwhile: Callable[[Stretch], None] = lambda at: None

    def fetch(self, name: str, at: Stretch, look: Callable[[], None]) -> bytes:
        self.meanwhile(at)
        look()
        self.asked.update((name, position) for position in range(*at))
        return CONTENT[name][at.start : at.stop]

    def passing(self, wanted: dict[str, Sequence[Stretch]], **sha256: str | None) -> Passing:
        files = [
            PassingFile(name, len(CONTENT[name]), some, sha256.get(name, hashlib.sha256(CONTENT[name]).hexdigest()))
            for name, some in wanted.items()
        ]
        return Passing(self.fetch, files, "org/model", lambda nbytes: None)


def tensors(name: str, nbytes: Sequence[int]) -> list[Stretch]:
    """A file in stretches of these sizes, over and over."""
    found, start = [], 0
    while start < len(CONTENT[name]):
        stop = min(start + nbytes[len(found) % len(nbytes)], len(CONTENT[name]))
        found.append(Stretch(start, stop))
        start = stop
    return found


def read(source: Passing, name: str, at: Stretch) -> None:
    out = bytearray(at.nbytes)
    source.read_into(name, at.start, memoryview(out))
    assert out == CONTENT[name][at.start : at.stop]


ALL = {name: tensors(name, (250, 7, 90, 12, 401)) for name in CONTENT}


def test_what_is_read_in_order_is_fetched_once() -> None:
    far, held = Far(), []
    with far.passing(ALL) as source:
        far.meanwhile = lambda at: held.append(source._held)
        for name, some in ALL.items():
            for at in some:
                read(source, name, at)
    assert set(far.asked.values()) == {1}
    assert len(far.asked) == sum(map(len, CONTENT.values())) == source.nbytes
    assert source.nbytes_again == 0
    assert max(held) <= WINDOW


def test_small_tensors_can_be_read_late_without_being_fetched_again() -> None:
    far = Far()
    with far.passing(ALL) as source:
        for is_small in (False, True):
            for name, some in ALL.items():
                for at in some:
                    # What lies in two blocks is no small tensor of one.
                    if (at.nbytes <= SMALL and at.start // BLOCK == (at.stop - 1) // BLOCK) == is_small:
                        read(source, name, at)
    assert set(far.asked.values()) == {1}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threads", [1, 3])
def test_whatever_is_read_in_whatever_order_is_right(seed: int, threads: int) -> None:
    dice, far = random.Random(seed), Far()
    reads = [(name, at) for name, some in ALL.items() for at in some]
    reads += [("a", Stretch(40, 4900)), ("b", Stretch(0, 0)), *dice.sample(reads, 5)]
    dice.shuffle(reads)
    with far.passing(ALL) as source, ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda each: read(source, *each), reads))
    assert len(far.asked) == sum(map(len, CONTENT.values()))


def test_what_nobody_reads_keeps_nobody_waiting() -> None:
    far = Far()
    with far.passing(ALL) as source:
        read(source, "b", ALL["b"][-1])
    assert len(far.asked) == source.nbytes


def test_only_what_is_wanted_is_fetched() -> None:
    far, wanted = Far(), {"a": [Stretch(100, 350), Stretch(355, 500), Stretch(4000, 4100)]}
    with far.passing(wanted) as source:
        for at in wanted["a"]:
            read(source, "a", at)
    assert {position for _, position in far.asked} == {*range(100, 500), *range(4000, 4100)}
    assert source.nbytes == 500


def test_little_that_is_not_wanted_is_fetched_along_so_that_the_file_can_be_checked() -> None:
    far, wanted = Far(), {"a": [Stretch(0, 2000), Stretch(2100, 5000)]}

    def read_all() -> None:
        with far.passing(wanted, a="0" * 64) as source:
            for at in wanted["a"]:
                read(source, "a", at)

    with pytest.raises(CorruptSourceError, match="what arrived as a is not the file that the hub speaks of"):
        read_all()
    assert len(far.asked) == 5000


@pytest.mark.parametrize("reads", [True, False])
def test_what_cannot_be_fetched_is_told_to_all_that_wait(reads: bool) -> None:
    far = Far()

    def fail(at: Stretch) -> None:
        if at.start >= 1000:
            raise CorruptSourceError("gone")

    def wait() -> None:
        with far.passing(ALL) as source, ThreadPoolExecutor(3) as pool:
            tasks = [pool.submit(read, source, "b", at) for at in ALL["b"][-3:]] if reads else []
            for task in tasks:
                assert isinstance(task.exception(timeout=30), CorruptSourceError)

    far.meanwhile = fail
    with pytest.raises(CorruptSourceError, match="gone"):
        wait()
    assert len(far.asked) < 2500


def test_an_error_of_the_reader_ends_what_is_under_way() -> None:
    far, begun, ended = Far(), threading.Event(), threading.Event()

    def look_again_and_again(at: Stretch) -> None:
        begun.set()
        ended.wait(0.2)

    def interrupted() -> None:
        with far.passing(ALL):
            assert begun.wait(30)
            raise KeyboardInterrupt

    far.meanwhile = look_again_and_again
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    asked = len(far.asked)
    time.sleep(0.3)
    assert len(far.asked) == asked <= WINDOW + BLOCK


def test_who_gives_up_wakes_who_waits() -> None:
    far, released = Far(), threading.Event()

    def hold(at: Stretch) -> None:
        released.wait(30)

    def give_up() -> None:
        with far.passing(ALL) as source, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(read, source, "a", ALL["a"][0])
            time.sleep(0.05)
            source.stop(KeyboardInterrupt())
            assert isinstance(waiting.exception(timeout=10), KeyboardInterrupt)
            released.set()

    far.meanwhile = hold
    with pytest.raises(KeyboardInterrupt):
        give_up()
