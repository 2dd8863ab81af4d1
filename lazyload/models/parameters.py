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
    rngs: nnx.Rngs,
) -> nnx.Param:
    """A parameter whose partitioning metadata are the logical names of its axes.

    The names are not those of a mesh, so Flax must not shard by them when a mesh happens to be set.

    Args:
        initializer: Called with a key, the shape and the dtype.
        axes: One name a dimension.
        sizes: The size of every named axis.
        dtype: The dtype of the parameter.
        rngs: Where the key comes from.
    """
    shape = tuple(sizes[axis] for axis in axes)
    annotated = nnx.with_partitioning(initializer, axes)
    return nnx.Param(annotated(rngs.params(), shape, dtype), eager_sharding=False)


def placed(array: jax.Array) -> nnx.Param:
    """A parameter that holds the array; its partitioning metadata are the array's own `PartitionSpec`."""
    spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else PartitionSpec()
    annotated = nnx.with_partitioning(lambda: array, tuple(spec))
    return nnx.Param(annotated(), eager_sharding=False)


def partition(param: nnx.Param) -> tuple[str | tuple[str, ...] | None, ...]:
    """One entry a dimension: what the parameter's partitioning metadata say of it, None where they say nothing."""
    named = tuple(nnx.spmd.get_var_pspec(param) or ())
    return named + (None,) * (len(param.shape) - len(named))
