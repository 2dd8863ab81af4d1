"""Arrays on the devices of this process, read box by box as a source of tensors."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from lazyload.errors import InputError
from lazyload.layouts.source import Box, TensorInfo
from lazyload.models.arrays import require_here
from lazyload.models.parameters import STORED

QUANTISED = "quantised arrays are not saved, nor models of which a part is; save the model that was quantised"
"""What is said of an array of less than two bytes, or of what is none."""

LORA = (
    "is one of LoRA's parameters: save these alone with save_pretrained(adapter_only=True), and load the base model "
    "with adapter=FOLDER to save both as one"
)


def arrays_of(model: Any) -> dict[str, jax.Array]:
    """The arrays of a module's parameters, or of a nested dictionary or `nnx.State`, by dotted path.

    Raises:
        InputError: Something is no array: it has no values, or is quantised; or the module has LoRA's parameters.
    """
    state = nnx.state(model, STORED) if isinstance(model, nnx.Module) else model
    leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    if not leaves:
        raise InputError(f"there are no arrays in what is to be saved, {type(model).__name__}")
    found: dict[str, jax.Array] = {}
    for keys, leaf in leaves:
        path = ".".join(_name(key) for key in keys)
        if isinstance(leaf, nnx.RngState):
            continue
        if isinstance(leaf, nnx.LoRAParam):
            raise InputError(f"{path} {LORA}")
        # Of what is quantised there are several: numbers and their scales.
        held = jax.tree.leaves(leaf)
        found[path] = _array(path, held[0] if len(held) == 1 else leaf)
    return found


class HeldArrays:
    """Arrays by name, as `lazyload.layouts.source.TensorSource`."""

    def __init__(self, arrays: Mapping[str, jax.Array | np.ndarray]):
        """Reads nothing yet.

        Raises:
            SaveError: A part of an array lies on devices of another process.
        """
        require_here(arrays)
        self.tensors = {path: TensorInfo(tuple(array.shape), np.dtype(array.dtype)) for path, array in arrays.items()}
        self._shards = {path: _shards(array) for path, array in arrays.items()}
        self._order = {path: number for number, path in enumerate(arrays)}

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of an array, from the shards that it meets."""
        box = [(cut.start, cut.stop) for cut in index]
        out: np.ndarray | None = None
        for starts, shard in self._shards[name]:
            common = [
                (max(low, start), min(high, start + size))
                for (low, high), start, size in zip(box, starts, shard.shape, strict=True)
            ]
            if any(low >= high for low, high in common):
                continue
            inside = tuple(slice(low - start, high - start) for (low, high), start in zip(common, starts, strict=True))
            values = _on_host(shard, inside)
            if common == box:
                return values
            if out is None:
                out = np.empty([high - low for low, high in box], self.tensors[name].dtype)
            out[
                tuple(slice(low - first, high - first) for (low, high), (first, _) in zip(common, box, strict=True))
            ] = values
        return np.empty([high - low for low, high in box], self.tensors[name].dtype) if out is None else out

    def scratch_bytes(self, readers: Sequence[Collection[str]], at_once: int) -> int:
        """Nothing of them is on a disk."""
        return 0

    def position(self, name: str) -> int:
        """The array's place among the others; all are here already."""
        return self._order[name]


def _array(path: str, value: Any) -> jax.Array:
    if isinstance(value, jax.ShapeDtypeStruct):
        raise InputError(f"{path} has a shape and no values: load the model before it is saved")
    is_array = isinstance(value, jax.Array | np.ndarray)
    if not is_array or value.dtype.itemsize == 1:
        raise InputError(f"{path} is {value.dtype if is_array else type(value).__name__}: {QUANTISED}")
    if isinstance(value, jax.Array) and value.is_deleted():
        raise InputError(f"{path} has been donated or deleted: save what the step returned")
    return value  # type: ignore[no-any-return]


def _shards(array: jax.Array | np.ndarray) -> list[tuple[tuple[int, ...], Any]]:
    """The pieces of an array that differ, each with where it starts."""
    if not isinstance(array, jax.Array):
        return [((0,) * array.ndim, array)]
    found: dict[tuple[int, ...], Any] = {}
    for shard in array.addressable_shards:
        found.setdefault(tuple(cut.start or 0 for cut in shard.index), shard.data)
    return list(found.items())


def _on_host(shard: Any, inside: Sequence[slice]) -> np.ndarray:
    """A part of a piece; on a CPU a view of it, else a copy that nothing keeps."""
    is_near = not isinstance(shard, jax.Array) or next(iter(shard.devices())).platform == "cpu"
    return np.asarray(shard)[tuple(inside)] if is_near else np.asarray(shard[tuple(inside)])


def _name(key: Any) -> str:
    """One step of the path to a leaf."""
    return str(next((getattr(key, part) for part in ("key", "idx", "name") if hasattr(key, part)), key))
