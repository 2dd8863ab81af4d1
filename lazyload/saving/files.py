"""A folder of safetensors as the hub holds it, written tensor by tensor in bounded memory and published at once."""

import contextlib
import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lazyload.cache import liveness
from lazyload.cache.quantities import parse_size
from lazyload.display.text import size as shown_size
from lazyload.errors import ArgumentError, SaveError
from lazyload.layouts.boxes import boxes_of, extents_of
from lazyload.layouts.scratch import Scratch
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.files import index_name, single_name
from lazyload.sources.safetensors import header_of

_BLOCK_BYTES = 16 << 20
WRITES_AT_ONCE = 4

_FILES = "files"
_OWNER = "owner"
"""The mark of the process that writes the files beside it."""

logger = logging.getLogger("lazyload")


class Readable(Protocol):
    """A tensor that is read block by block, as `lazyload.layouts.lazy.LazyTensor`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""

    def read_into(self, out: np.ndarray, index: Box) -> int:
        """Reads one block, and says how many of its values overflow float16."""


@dataclass(frozen=True)
class Part:
    """A block of a tensor, and where in the file it goes."""

    tensor: Readable
    box: Box
    start: int


@contextlib.contextmanager
def new_folder(folder: Path, nbytes: int, scratch_bytes: int = 0) -> Iterator[Path]:
    """A fresh folder beside `folder`, which becomes `folder` when the body has ended, in one atomic step.

    It lies in a hidden one, `.NAME.<unique>`, with a mark of this process. What writers of the same folder have left
    that were killed is removed first.

    Args:
        folder: What there must not be yet, or be empty.
        nbytes: How many bytes will be written there.
        scratch_bytes: How many more its disk has to hold while the body runs.

    Raises:
        SaveError: There is something in the folder, or it cannot be made, or the disk is too small.
    """
    folder = Path(os.path.realpath(folder))
    hidden = folder.with_name(f".{folder.name}.{os.urandom(16).hex()}")
    temporary = hidden / _FILES
    try:
        _require_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        if (free := shutil.disk_usage(folder.parent).free) < nbytes + scratch_bytes:
            meanwhile = f" and, while it is written, {shown_size(scratch_bytes)} more" if scratch_bytes else ""
            raise SaveError(f"{folder} needs {shown_size(nbytes)}{meanwhile}; its disk has {shown_size(free)} left")
        hidden.mkdir()
        with liveness.marked(hidden / _OWNER):
            temporary.mkdir()
            yield temporary
            _require_free(folder)
            # An empty folder is replaced, one in which there is something by now is not.
            os.rename(temporary, folder)
    except OSError as error:
        if isinstance(error, SaveError) or error.errno is None:
            raise
        raise SaveError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def shard_bytes(size: int | str) -> int:
    """How many bytes a file may have at most.

    Raises:
        ArgumentError: It is no size, or holds nothing.
    """
    most = parse_size(size) if isinstance(size, str) else size
    if type(most) is not int or most < 1:
        raise ArgumentError(f"max_shard_size={size!r:.100}: give bytes, or a size such as '5GB'")
    return most


def write_tensors(folder: Path, tensors: Mapping[str, Readable], max_shard_bytes: int) -> int:
    """Writes tensors into one file, or into several with their index.

    Args:
        folder: Where to.
        tensors: By name.
        max_shard_bytes: The size of a file at most, unless one tensor is larger.

    Returns:
        How many values of the source overflow float16.

    Raises:
        OSError: A file cannot be written.
    """
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        return write_one(folder / single_name(""), shards[0])
    overflowed = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        overflowed += write_one(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    counts = {
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "total_size": sum(tensor.nbytes for tensor in tensors.values()),
    }
    index = {"metadata": counts, "weight_map": dict(sorted(weight_map.items()))}
    write_file(folder / index_name(""), (json.dumps(index, indent=2) + "\n").encode())
    return overflowed


def written_order(tensors: Mapping[str, Readable], max_shard_bytes: int) -> list[str]:
    """The names of tensors in the order in which `write_tensors` writes them."""
    return [name for shard in _shards(tensors, max_shard_bytes) for name in _header(shard)[1]]


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file, and waits until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove_leftovers(folder: Path) -> None:
    """Removes what dead writers of a folder have left, as far as this process may, and nothing else."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{32}}")
    try:
        names = os.listdir(folder.parent)
    except OSError:
        # One may write into a folder that one may not look into.
        return
    for path in [folder.with_name(name) for name in names if ours.fullmatch(name)]:
        if _is_left(path):
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.lexists(path):
                logger.info("%s: removed what a process that was killed has left of another save there", path)


def _is_left(path: Path) -> bool:
    """Whether a folder has what a writer puts there, and no more, and its writer is dead."""
    try:
        names = os.listdir(path)
    except OSError:
        # A file, or another user's.
        return False
    is_ours = all(name in (_FILES, _OWNER) or liveness.is_unfinished(name) for name in names)
    if not is_ours or os.path.islink(path):
        return False
    if _OWNER in names:
        return not liveness.is_alive(path / _OWNER)
    # A folder is there for a moment before its mark is.
    return liveness.age(path) >= liveness.UNKNOWN_SECONDS


def _require_free(folder: Path) -> None:
    try:
        is_taken = bool(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise SaveError(f"{folder} is a file, or lies below one; give a folder that is not there yet") from None
    if is_taken:
        raise SaveError(f"{folder} is not empty, and nothing there is overwritten: give another folder, or remove it")


def _shards(tensors: Mapping[str, Readable], max_shard_bytes: int) -> list[dict[str, Readable]]:
    """The tensors file by file, layer after layer."""
    shards: list[dict[str, Readable]] = [{}]
    held = 0
    for name in sorted(tensors, key=_as_counted):
        nbytes = tensors[name].nbytes
        if shards[-1] and held + nbytes > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensors[name]
        held += nbytes
    return shards


def _as_counted(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 behind layer 9."""
    pieces = re.split(r"(\d+)", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def write_one(path: Path, tensors: Mapping[str, Readable]) -> int:
    """Writes tensors into one file; says how many values overflow float16."""
    header, starts = _header(tensors)
    parts = itertools.chain.from_iterable(_parts(tensors[name], start) for name, start in starts.items())
    scratch = Scratch()
    with path.open("xb") as file, ThreadPoolExecutor(WRITES_AT_ONCE, thread_name_prefix="lazyload") as pool:
        file.write(header)
        file.flush()
        try:
            overflowed = sum(pool.map(lambda part: _write_part(file.fileno(), part, scratch), parts))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        os.fsync(file.fileno())
    return overflowed


def _header(tensors: Mapping[str, Readable]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a file, and where in it each tensor begins, in their order there."""
    return header_of({name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in tensors.items()})


def _parts(tensor: Readable, start: int) -> Iterator[Part]:
    """A tensor's blocks, each of which is one stretch of the file."""
    for box in boxes_of(tensor.shape, extents_of(tensor.shape, _BLOCK_BYTES // tensor.dtype.itemsize)):
        yield Part(tensor, box, start)
        start += math.prod(cut.stop - cut.start for cut in box) * tensor.dtype.itemsize


def _write_part(descriptor: int, part: Part, scratch: Scratch) -> int:
    # Of the thread's own memory, and contiguous, whatever the strides of what it is filled from.
    block = scratch.array([cut.stop - cut.start for cut in part.box], part.tensor.dtype)
    overflowed = part.tensor.read_into(block, part.box)
    memory, done = block.reshape(-1).view(np.uint8).data, 0
    while done < len(memory):
        done += os.pwrite(descriptor, memory[done:], part.start + done)
    return overflowed
