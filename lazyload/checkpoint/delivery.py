"""Delivering: arrays reach their devices while the chunks that they are made of are written."""

import threading
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Sharding

from lazyload.checkpoint.assembly import Assembly, HostMemory
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box


class Delivery:
    """Arrays that are assembled chunk by chunk, in whatever order they come.

    What goes wrong with a device is kept until the arrays are asked for: what is written meanwhile is sound.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], shardings: Mapping[str, Sharding]):
        """Takes no memory yet.

        Args:
            tensors: The arrays, by path.
            shardings: Where each of them goes.
        """
        self._tensors = tensors
        self._shardings = shardings
        self._memory = HostMemory()
        self._lock = threading.Lock()
        self._assemblies: dict[str, Assembly] = {}
        self._missing = {path: int(np.prod(lazy.shape, dtype=np.int64)) for path, lazy in tensors.items()}
        self._arrays: dict[str, jax.Array] = {}
        self._error: Exception | None = None

    def take(self, path: str, box: Box, values: np.ndarray) -> None:
        """Takes a box of an array; each is to be given once, from any thread."""
        if self._error:
            return
        try:
            assembly = self._assembly(path)
            assembly.put(box, values)
            with self._lock:
                self._missing[path] -= values.size
                is_complete = not self._missing[path]
            if is_complete:
                self._finish(path)
        except Exception as error:
            self._error = error
            self._assemblies.clear()
            self._arrays.clear()

    def arrays(self) -> dict[str, jax.Array]:
        """All arrays, once all of them have been given.

        Raises:
            Exception: What JAX raised when it was given one.
        """
        if self._error:
            raise self._error
        for path in self._tensors.keys() - self._arrays.keys():
            self._finish(path)
        return {path: self._arrays[path] for path in self._tensors}

    def _assembly(self, path: str) -> Assembly:
        with self._lock:
            if path not in self._assemblies:
                lazy = self._tensors[path]
                self._assemblies[path] = Assembly(lazy.shape, lazy.dtype, self._shardings[path], self._memory)
            return self._assemblies[path]

    def _finish(self, path: str) -> None:
        array = self._assembly(path).array()
        # Until then it keeps its memory here, too, where devices have their own.
        array.block_until_ready()
        self._arrays[path] = array
        self._assemblies.pop(path, None)
