"""Parameters that know the names of their axes."""

from collections.abc import Mapping

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike


def parameter(
    initializer: nnx.initializers.Initializer,
    axes: tuple[str, ...],
    sizes: Mapping[str, int],
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs | None,
) -> nnx.Param:
    """A parameter with the logical names of its axes as its metadata `logical_axes`.

    They are not Flax's partitioning metadata: Flax takes those for axes of whatever mesh is set, and fails.

    Args:
        initializer: Called with a key, the shape and the dtype.
        axes: One name a dimension.
        sizes: The size of every named axis.
        dtype: The dtype of the parameter.
        rngs: Where the key comes from; None for a parameter without a value, a `jax.ShapeDtypeStruct`.
    """
    shape = tuple(sizes[axis] for axis in axes)
    value = jax.ShapeDtypeStruct(shape, dtype) if rngs is None else initializer(rngs.params(), shape, dtype)
    return nnx.Param(value, logical_axes=axes, eager_sharding=False)


def placed(array: jax.Array, axes: tuple[str, ...]) -> nnx.Param:
    """A parameter that holds the array; its partitioning metadata are the array's own `PartitionSpec`."""
    spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else PartitionSpec()
    annotated = nnx.with_partitioning(lambda: array, tuple(spec))
    return nnx.Param(annotated(), logical_axes=axes, eager_sharding=False)


def partition(param: nnx.Param) -> tuple[str | tuple[str, ...] | None, ...]:
    """One entry a dimension: the mesh axes that the partitioning metadata name, None where they name none."""
    named = tuple(nnx.spmd.get_var_pspec(param) or ())
    return named + (None,) * (len(param.shape) - len(named))
