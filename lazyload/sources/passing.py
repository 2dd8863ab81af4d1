"""Bytes of far files on their way through memory: fetched ahead, in the order in which they are wanted, and not stored.

The files are cut into blocks. A few threads fetch them in order, another one hashes them in order, and whoever reads
waits until a block is there. Together they take no more than a window of memory: a block leaves it once it has been
hashed and all that is wanted of it has been read. Small tensors are set aside, so that one that is read late keeps no
block. What is read out of order waits for nobody: where the window is full of blocks that nobody reads, the oldest
leaves it, and what is asked for after it has left is fetched once more.
"""

import bisect
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from lazyload.errors import CorruptSourceError
from lazyload.progress import Advance
from lazyload.sources.background import Background
from lazyload.sources.stretches import Stretch, cut, joined

logger = logging.getLogger("lazyload")

_BLOCK_BYTES = 8 << 20
_WINDOW_BYTES = 80 << 20
_FETCHES = 6
_GAP_BYTES = 1 << 20
"""What is not wanted between what is: fetched along, where it is quicker than another request."""

_SHARED_GAP_BYTES = 16 << 10
"""The same, where another process fetches it, too."""

_PART, _SHARED_PART = 8, 64
"""What part of a file is little: fetched along, so that the file can be checked."""

_SMALL_BYTES = 256 << 10
_MOST_SMALL_BYTES = 16 << 20
_SECONDS_TO_BE_READ = 0.1
"""For which a full window waits for its blocks to be read while somebody waits for another one."""

Fetch = Callable[[str, Stretch, Callable[[], None]], bytes | bytearray]
"""Fetches bytes of a file; calls its last argument now and then, which ends it when they are not wanted any more."""


@dataclass(frozen=True)
class PassingFile:
    """What is wanted of one file.

    Attributes:
        name: The file.
        size: Its size in bytes.
        wanted: Its stretches that are read, in order; one that is read twice is there twice.
        sha256: What it contains, where that is known; compared where all of it passes.
        is_shared: Whether other processes read what is not wanted here.
    """

    name: str
    size: int
    wanted: Sequence[Stretch]
    sha256: str | None = None
    is_shared: bool = False

    def stretches(self) -> list[Stretch]:
        """What is fetched; the whole file where that is little more than what is wanted, as it can be checked then."""
        some = joined(self.wanted, _SHARED_GAP_BYTES if self.is_shared else _GAP_BYTES)
        little = self.size // (_SHARED_PART if self.is_shared else _PART)
        if self.sha256 and sum(stretch.nbytes for stretch in some) >= self.size - little:
            return [Stretch(0, self.size)]
        return some


@dataclass(eq=False)
class _Block:
    """A piece of a file.

    Attributes:
        file: The file.
        at: Which of its bytes.
        unread: How many of them are wanted and have not been read.
        state: Where it is: not asked for, asked for, in memory, or not in memory any more.
        content: Its bytes, while they are in memory.
        is_hashed: Whether nobody needs it for a checksum.
    """

    file: PassingFile
    at: Stretch
    unread: int
    state: Literal["ahead", "coming", "here", "gone"] = "ahead"
    content: bytes | bytearray = b""
    is_hashed: bool = False


@dataclass
class _Small:
    """Small tensors of a file that are set aside, by where they begin."""

    starts: list[int] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)


class Passing:
    """The bytes of files, while they pass. Leaving the context waits for the rest of them, and compares checksums.

    Attributes:
        compared: The files that pass as a whole, whose checksums are compared.
        nbytes: How many are fetched.
        nbytes_again: How many of them more than once.
    """

    def __init__(self, fetch: Fetch, files: Sequence[PassingFile], model: str, advance: Advance):
        """Fetches nothing yet.

        Args:
            fetch: Fetches bytes.
            files: The files, in the order in which they are to pass.
            model: What messages call the model.
            advance: Called with the numbers of bytes that have arrived, from any thread.
        """
        self._fetch = fetch
        self._model = model
        self._advance = advance
        self._background = Background(_FETCHES + 1)
        self._blocks = {file.name: list(_blocks(file)) for file in files}
        self._starts = {name: [block.at.start for block in blocks] for name, blocks in self._blocks.items()}
        self._ordered = [block for blocks in self._blocks.values() for block in blocks]
        self._hashed = [file for file in files if _is_checked(file)]
        self.compared = [file.name for file in self._hashed]
        self._small = {file.name: _Small([at.start for at in file.wanted if _is_small(at)]) for file in files}
        self._small_nbytes = 0
        self._next = 0
        self._window: list[_Block] = []
        self._held = 0
        self._awaited: dict[_Block, int] = {}
        self.nbytes = sum(block.at.nbytes for block in self._ordered)
        self.nbytes_again = 0

    def holds(self, name: str) -> bool:
        """Whether a file is one of those that pass."""
        return name in self._blocks

    def starts(self) -> Mapping[str, int]:
        """How many bytes arrive before each of the files."""
        starts, before = {}, 0
        for name, blocks in self._blocks.items():
            starts[name] = before
            before += max((block.at.stop for block in blocks), default=0)
        return starts

    def __enter__(self) -> Self:
        self._background.__enter__()
        self._background.start(self._hash)
        for _ in range(_FETCHES):
            self._background.start(self._fetch_blocks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._background.__exit__(kind, error, traceback)
        if self.nbytes_again:
            logger.debug("%s: %d bytes have been fetched more than once", self._model, self.nbytes_again)

    def stop(self, error: BaseException) -> None:
        """Ends all, and whatever waits, with an error."""
        self._background.stop(error)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` from a position of a file on, as soon as its bytes are there.

        Raises:
            LazyLoadError: What keeps them from coming.
        """
        stop = start + len(out)
        small = self._find_small(name, start, stop)
        if small is not None:
            out[:] = small
            return
        blocks, position = self._blocks[name], start
        number = max(0, bisect.bisect_right(self._starts[name], start) - 1)
        while position < stop:
            block = blocks[number] if number < len(blocks) else None
            if block is not None and block.at.stop <= position:
                number += 1
                continue
            is_inside = block is not None and block.at.start <= position
            end = stop if block is None else min(stop, block.at.stop if is_inside else block.at.start)
            at = Stretch(position, end)
            out[position - start : end - start] = (
                self._content(block, at) if block and is_inside else self._again(name, at)
            )
            position = end

    def _find_small(self, name: str, start: int, stop: int) -> bytes | None:
        """The bytes, where they are set aside."""
        small = self._small[name]
        number = bisect.bisect_right(small.starts, start) - 1
        if number < 0:
            return None
        first = small.starts[number]
        content = small.contents.get(first, b"")[start - first : stop - first]
        return content if len(content) == stop - start else None

    def _content(self, block: _Block, at: Stretch) -> memoryview | bytes | bytearray:
        with self._background.changed:
            if block.state in ("ahead", "coming"):
                self._awaited[block] = self._awaited.get(block, 0) + 1
                self._background.changed.notify_all()
                try:
                    self._background.wait_for(lambda: block.state in ("here", "gone") or None)
                finally:
                    self._awaited[block] -= 1
                    if not self._awaited[block]:
                        del self._awaited[block]
            self._background.require_no_error()
            content = block.content if block.state == "here" else None
            if content is not None:
                block.unread -= at.nbytes
                if block.unread <= 0:
                    self._background.changed.notify_all()
        if content is None:
            return self._again(block.file.name, at)
        return memoryview(content)[at.start - block.at.start : at.stop - block.at.start]

    def _again(self, name: str, at: Stretch) -> bytes | bytearray:
        """Fetches what is not in memory any more, or was not expected to be read."""
        # It may have been set aside while its block was waited for.
        if (small := self._find_small(name, *at)) is not None:
            return small
        with self._background.changed:
            self.nbytes_again += at.nbytes
        return self._fetch(name, at, self._background.require_no_error)

    def _fetch_blocks(self) -> None:
        while (block := self._taken()) is not None:
            content = self._fetch(block.file.name, block.at, self._background.require_running)
            with self._background.changed:
                block.content, block.state = content, "here"
                block.is_hashed = not _is_checked(block.file)
                self._set_aside(block)
                self._background.changed.notify_all()
            self._advance(block.at.nbytes)

    def _taken(self) -> _Block | None:
        """The next block to be fetched, once there is room for it; None after the last one."""
        with self._background.changed:
            while self._next < len(self._ordered):
                if self._background.wait_for(self._has_room, _SECONDS_TO_BE_READ):
                    return self._take()
                self._make_room_for_the_awaited()
            return None

    def _has_room(self) -> bool | None:
        """Whether there is room for the next block, or none left to be fetched."""
        if self._next >= len(self._ordered):
            return True
        for done in [block for block in self._window if self._is_done(block)]:
            self._let_go(done)
        nbytes = self._ordered[self._next].at.nbytes
        return self._held + nbytes <= _WINDOW_BYTES or not self._window or None

    def _take(self) -> _Block | None:
        if self._next >= len(self._ordered):
            return None
        block = self._ordered[self._next]
        self._next += 1
        self._held += block.at.nbytes
        self._window.append(block)
        block.state = "coming"
        return block

    def _is_done(self, block: _Block) -> bool:
        return block.state == "here" and block.is_hashed and (block.unread <= 0 or self._background.is_left)

    def _make_room_for_the_awaited(self) -> None:
        """Lets go of the oldest block where somebody waits for one that has not even been asked for."""
        if any(block.state == "ahead" for block in self._awaited):
            oldest = next((block for block in self._window if block.state == "here" and block.is_hashed), None)
            if oldest is not None:
                self._let_go(oldest)

    def _let_go(self, block: _Block) -> None:
        block.state, block.content = "gone", b""
        self._window.remove(block)
        self._held -= block.at.nbytes
        self._background.changed.notify_all()

    def _set_aside(self, block: _Block) -> None:
        """Keeps the small tensors that lie in a block as a whole."""
        small = self._small[block.file.name]
        for wanted in _inside(block):
            if _is_small(wanted) and self._small_nbytes + wanted.nbytes <= _MOST_SMALL_BYTES:
                first = wanted.start - block.at.start
                small.contents[wanted.start] = bytes(memoryview(block.content)[first : first + wanted.nbytes])
                self._small_nbytes += wanted.nbytes

    def _hash(self) -> None:
        for file in self._hashed:
            sha256 = hashlib.sha256()
            for block in self._blocks[file.name]:
                with self._background.changed:
                    self._background.wait_for(functools.partial(_is_here, block))
                sha256.update(block.content)
                with self._background.changed:
                    block.is_hashed = True
                    self._background.changed.notify_all()
            if sha256.hexdigest() != file.sha256:
                raise CorruptSourceError(
                    f"{self._model}: what arrived as {file.name} is not the file that the hub speaks of, and nothing "
                    "of it is kept; call again, and see what is between here and the hub"
                )


def _is_checked(file: PassingFile) -> bool:
    return file.sha256 is not None and file.stretches() == [Stretch(0, file.size)]


def _is_here(block: _Block) -> bool | None:
    return block.state == "here" or None


def _is_small(stretch: Stretch) -> bool:
    return stretch.nbytes <= _SMALL_BYTES


def _blocks(file: PassingFile) -> Iterator[_Block]:
    """The blocks of a file, in order."""
    starts = [wanted.start for wanted in file.wanted]
    for at in cut(file.stretches(), _BLOCK_BYTES):
        before = bisect.bisect_right(starts, at.start) - 1
        first = bisect.bisect_left(starts, starts[before]) if before >= 0 else 0
        unread = 0
        for wanted in file.wanted[first:]:
            if wanted.start >= at.stop:
                break
            if not (_is_small(wanted) and at.start <= wanted.start and wanted.stop <= at.stop):
                unread += max(0, min(wanted.stop, at.stop) - max(wanted.start, at.start))
        yield _Block(file, at, unread)


def _inside(block: _Block) -> Iterator[Stretch]:
    """The wanted stretches that lie in a block as a whole."""
    starts = [wanted.start for wanted in block.file.wanted]
    for wanted in block.file.wanted[bisect.bisect_left(starts, block.at.start) :]:
        if wanted.stop > block.at.stop:
            break
        yield wanted
