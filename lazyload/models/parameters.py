"""How a module declares its parameters: by the rows of its block's table.

    parameters = Parameters(attention.parameters, {"embed": 64, **attention.axes}, dtype=jnp.bfloat16, rngs=rngs)
    parameters["q_proj"].declare("kernel", initializer)        # "q_proj.kernel" : embed head head_dim

A table says what there is: path, role and axes. A module says how it is computed with.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lazyload.layouts.notation import AxisNames, Line, outermost, parse_line
from lazyload.sharding import partitions


class Row(NamedTuple):
    """One parameter of a table.

    Attributes:
        dimensions: For each dimension the axes that it merges; several such where roles follow each other along it.
        dtype: Its dtype where it has one of its own.
    """

    dimensions: tuple[tuple[AxisNames, ...], ...]
    dtype: np.dtype[Any] | None


class Parameters:
    """The parameters that a module is to have.

    Attributes:
        sizes: The size of every named axis.
    """

    def __init__(
        self,
        table: Mapping[str, str],
        sizes: Mapping[str, int],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs | None,
        compute_dtype: DTypeLike | None = None,
        layers: int | None = None,
    ):
        """What a table says.

        Args:
            table: From path to role and axes.
            sizes: The size of every named axis.
            dtype: The dtype of parameters that have none of their own.
            rngs: Where random values come from; None for parameters without values, `jax.ShapeDtypeStruct`s.
            compute_dtype: The dtype that weights are converted to where they are multiplied with; None for their own.
            layers: How many layers are stacked on an axis `layer` before the table's; None for no such axis. A module
                is made, and called, as one layer of them.
        """
        self._rows = _rows(tuple(table.items()))
        self._prefix = ""
        self._dtype = dtype
        self._rngs = rngs
        self._compute_dtype = compute_dtype
        self._layers = layers
        self.sizes = sizes

    def __getitem__(self, module: str) -> "Parameters":
        """Those of the module that is the attribute of this name."""
        below = object.__new__(Parameters)
        below.__dict__.update(self.__dict__)
        below._prefix = f"{self._prefix}{module}."
        return below

    def __contains__(self, path: str) -> bool:
        """Whether there is such a parameter, or a module with parameters."""
        full = self._prefix + path
        return full in self._rows or any(row.startswith(f"{full}.") for row in self._rows)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one parameter."""
        return tuple(_extent(parts, self.sizes) for parts in self._rows[self._prefix + name].dimensions)

    def compute_dtype(self, name: str) -> DTypeLike | None:
        """The dtype that one parameter is computed with; None for that which it has."""
        return self._compute_dtype if self._rows[self._prefix + name].dtype is None else None

    def axes(self, name: str) -> tuple[str, ...]:
        """The logical axis of each dimension of one parameter."""
        return tuple(outermost(parts[0]) for parts in self._rows[self._prefix + name].dimensions)

    def declare(self, name: str, initializer: Initializer) -> nnx.Param[jax.Array]:
        """One parameter, with the logical names of its axes as its metadata `logical_axes`.

        They are not Flax's partitioning metadata: Flax takes those for axes of whatever mesh is set, and fails.

        Args:
            name: The last part of its path.
            initializer: Called with a key, the shape and the dtype.
        """
        row = self._rows[self._prefix + name]
        shape, dtype = self.shape(name), self._dtype if row.dtype is None else row.dtype
        stacked = () if self._layers is None else (self._layers,)
        value: Any = jax.ShapeDtypeStruct(stacked + shape, dtype)
        if self._rngs is not None:
            keys = [self._rngs.params() for _ in range(self._layers or 1)]
            values = [initializer(key, shape, dtype) for key in keys]
            value = jnp.stack(values) if stacked else values[0]
        axes = ("layer",) * len(stacked) + self.axes(name)
        return nnx.Param(value, logical_axes=axes, eager_sharding=False)


def partition(param: Any, axes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For each dimension of a parameter the axes of the mesh that is set over which it is split.

    They are those of its partitioning metadata. Where it has none, or they are of another mesh, because its array has
    been brought to this one by other means than this library's, the default rules tell them.

    Args:
        param: The parameter, or what a library for quantisation has put in its place.
        axes: Its logical axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if isinstance(param, nnx.Variable):
        (spec,) = jax.tree.leaves(nnx.get_partition_spec(param), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
        entries = tuple((entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec)
        # Of scanned layers, the array at hand is one layer of the array that the metadata speak of.
        entries = entries[len(entries) - len(axes) :]
        if len(entries) == len(axes) and all(name in mesh.shape for entry in entries for name in entry):
            return entries
    if mesh.empty:
        return ((),) * len(axes)
    return tuple(dimension.over for dimension in partitions(mesh, None, {"": (tuple(param.shape), tuple(axes))})[""])


def computed(param: nnx.Param[jax.Array], dtype: DTypeLike | None) -> jax.Array:
    """A parameter's value in the dtype that it is computed with; None for its own."""
    value = param[...]
    return value if dtype is None else value.astype(dtype)


@functools.lru_cache
def _rows(table: tuple[tuple[str, str], ...]) -> Mapping[str, Row]:
    """The rows of a table by path, one for each of the names that a path template stands for."""
    rows: dict[str, Row] = {}
    for path, text in table:
        line = parse_line(path, text)
        dimensions = tuple(
            tuple(pattern[number] for pattern in line.patterns)
            if number == line.concatenated
            else (line.patterns[0][number],)
            for number in range(len(line.patterns[0]))
        )
        rows |= dict.fromkeys(_spelled_out(line), Row(dimensions, line.operations.dtype))
    return rows


def _spelled_out(line: Line) -> list[str]:
    """`{gate_up:gate,up}_proj.kernel` is `gate_proj.kernel` and `up_proj.kernel`."""
    paths = [""]
    for piece in line.path:
        names = (piece,) if isinstance(piece, str) else piece.names
        paths = [path + name for path in paths for name in names]
    return paths


def _extent(parts: tuple[AxisNames, ...], sizes: Mapping[str, int]) -> int:
    return sum(math.prod(sizes[axis] for axis in axes) for axes in parts)
