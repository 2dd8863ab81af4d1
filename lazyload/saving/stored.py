"""The arrays of an Orbax checkpoint, read box by box as a source of tensors, whichever program has saved it.

A tree's `_METADATA` lists its leaves; each is an array of zarr at the path of its keys, joined by dots. It was seen so
in Orbax 0.11.30 to 0.12.8 (`orbax/checkpoint/_src/metadata/tree.py`).
"""

import copy
import json
import math
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from lazyload.checkpoint.store import array_spec
from lazyload.errors import CorruptSourceError, SourceNotFoundError
from lazyload.layouts.source import Box, TensorInfo
from lazyload.saving.unpacked import Unpacked
from lazyload.storage import Storage

_TREE = "_METADATA"
_ITEMS = ("", "items", "default", "state", "model_params", "params")
"""Where the tree of parameters is in a checkpoint of several items, as MaxText, Orbax and Tunix name it."""

_CACHED_BYTES = 128 << 20
"""Of decoded chunks, so that one which several tensors are in is not decoded for each of them. Arrays that do not fit
are unpacked."""

_MORE_BYTES = 1 << 20
"""Beside one decoded chunk, for what TensorStore keeps of the checkpoint itself."""

_VALUE = "value"
"""How `nnx.State` ends the path of an array in Orbax's trees."""


class StoredArrays:
    """Arrays by dotted path, as `lazyload.layouts.source.TensorSource`."""

    def __init__(self, checkpoint: Path, scratch: Path):
        """Looks at the tree; arrays are opened when they are chosen.

        Args:
            checkpoint: The checkpoint's folder, or that of one of its items.
            scratch: A folder on the disk where large arrays are unpacked; there by the time that they are read.

        Raises:
            SourceNotFoundError: There is no Orbax checkpoint.
            CorruptSourceError: Its tree cannot be read.
        """
        folders = [checkpoint / item for item in _ITEMS]
        folder = next((folder for folder in folders if (folder / _TREE).is_file()), None)
        if folder is None:
            steps = _steps(checkpoint)
            such = f", of which the last is {steps[-1]}" if steps else ", such as checkpoints/100"
            raise SourceNotFoundError(
                f"{checkpoint} is no Orbax checkpoint: there is no {_TREE} in it or its items; give the folder of one "
                f"step{such}"
            )
        self.folder = folder
        self._scratch = scratch
        self._unpacking = threading.Lock()
        self._unpacked: dict[str, Unpacked] = {}
        self._left: dict[str, int] = {}
        self._failure: Exception | None = None
        self.tensors: Mapping[str, TensorInfo] = {}
        self._is_ocdbt = (folder / "manifest.ocdbt").is_file()
        self._is_zarr3, self._leaves = _leaves(folder / _TREE)
        self._arrays: dict[str, Any] = {}

    @property
    def paths(self) -> list[str]:
        """The paths of all leaves."""
        return list(self._leaves)

    def open(self, paths: list[str]) -> None:
        """Opens some arrays, the only ones that it then has.

        Raises:
            CorruptSourceError: One is not what the tree says.
        """
        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHED_BYTES}})
        waiting = {path: ts.open(self._spec(path), read=True, context=context) for path in paths}
        for path, future in waiting.items():
            try:
                self._arrays[path] = future.result()
            except ValueError as error:
                raise CorruptSourceError(f"{self.folder}: {path} cannot be opened: {error}") from error
        opened = {path: self._arrays[path] for path in paths}
        self.tensors = {
            path: TensorInfo(tuple(array.shape), np.dtype(array.dtype.numpy_dtype)) for path, array in opened.items()
        }

    def renamed(self, names: Mapping[str, str]) -> "StoredArrays":
        """The same with other paths, and without those that `names` has none for; nothing is opened yet."""
        other = copy.copy(self)
        other.tensors = {}
        other._arrays = {}
        other._unpacked = {}
        other._left = {}
        other._leaves = {names[path]: stored for path, stored in self._leaves.items() if path in names}
        return other

    def rows(self, path: str) -> int:
        """The first dimension of an array."""
        self.open([path])
        return self.tensors[path].shape[0]

    def scratch_bytes(self, readers: Sequence[Collection[str]], at_once: int) -> int:
        """How many bytes are unpacked, at most, while arrays are read in an order.

        An array stays unpacked from its first reader to its last one. One that has values which nobody reads, such as
        rows beyond the vocabulary, stays to the end, which is not counted.

        Args:
            readers: The paths of the arrays that are read for one tensor, tensor by tensor.
            at_once: For how many tensors at most.
        """
        last = {path: number + at_once - 1 for number, paths in enumerate(readers) for path in paths}
        unpacked: set[str] = set()
        most = 0
        for number, paths in enumerate(readers):
            unpacked = {path for path in unpacked if last[path] >= number} | set(filter(self._is_unpacked, paths))
            most = max(most, sum(self._nbytes(path) for path in unpacked))
        return most

    def close(self) -> None:
        """Gives up what is unpacked; nothing is read any more."""
        with self._unpacking:
            self._failure = None
            while self._unpacked:
                self._unpacked.popitem()[1].close()

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of an array.

        Raises:
            CorruptSourceError: A chunk is missing or damaged.
        """
        try:
            if self._is_unpacked(name):
                return self._read_unpacked(name, index)
            values: np.ndarray = self._arrays[name][index].read().result()
        except ValueError as error:
            raise CorruptSourceError(f"{self.folder}: {name} cannot be read: {error}") from error
        return values

    def _read_unpacked(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of an array that is unpacked by the first one, and given up with the last."""
        with self._unpacking:
            if self._failure is not None:
                # It would take as long to fail again, on a disk that is full.
                raise self._failure
            if name not in self._unpacked:
                try:
                    self._unpacked[name] = self._unpack(name)
                except Exception as error:
                    self._failure = error
                    raise
                self._left[name] = math.prod(self.tensors[name].shape)
            unpacked = self._unpacked[name]
        values = unpacked.read(index)
        with self._unpacking:
            self._left[name] -= values.size
            if self._left[name] <= 0:
                # Whoever reads on, reads from the same file, which goes with its last reader.
                self._unpacked.pop(name, None)
        return values

    def _unpack(self, name: str) -> Unpacked:
        chunk = math.prod(self._arrays[name].chunk_layout.read_chunk.shape) * self.tensors[name].dtype.itemsize
        context = ts.Context({"cache_pool": {"total_bytes_limit": chunk + _MORE_BYTES}})
        array = ts.open(self._spec(name), read=True, context=context).result()
        return Unpacked(array, self._scratch)

    def _is_unpacked(self, name: str) -> bool:
        """Whether an array is read from the disk where it is unpacked."""
        return self._nbytes(name) > _CACHED_BYTES

    def _nbytes(self, name: str) -> int:
        return math.prod(self.tensors[name].shape) * self.tensors[name].dtype.itemsize

    def _spec(self, path: str) -> dict[str, Any]:
        storage = Storage(ocdbt=self._is_ocdbt, zarr3=self._is_zarr3)
        return array_spec(self.folder, self._leaves[path], storage)

    def position(self, name: str) -> int:
        """All arrays are here already."""
        return 0


def _steps(run: Path) -> list[Path]:
    """The folders of a run's steps, where Orbax's and MaxText's managers have them, in their order."""
    found = [path for place in (run, run / "checkpoints") if place.is_dir() for path in place.iterdir()]
    return sorted((path for path in found if path.name.isdecimal()), key=lambda path: int(path.name))


def _leaves(file: Path) -> tuple[bool, dict[str, str]]:
    """Whether arrays are in zarr's third format; and by the path that layouts know, that in the checkpoint."""
    try:
        tree = json.loads(file.read_text())
        keys = [[str(key["key"]) for key in leaf["key_metadata"]] for leaf in tree["tree_metadata"].values()]
        is_zarr3 = bool(tree.get("use_zarr3", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptSourceError(f"{file} is no tree that Orbax has written: {error!r:.200}") from None
    paths = (".".join(path) for path in keys)
    return is_zarr3, {path.removesuffix(f".{_VALUE}"): path for path in paths}
