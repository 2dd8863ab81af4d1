"""Where activations lie on a mesh: sequences are spread as parameters are, heads and widths split as parameters' are.

Left to itself the compiler often spreads the embedding's dimension where the parameters are, and exchanges activations
instead of gathering parameters.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from lazyload.models.meshes import automatic_mesh, constrain, spec_on
from lazyload.models.parameters import partition
from lazyload.sharding import batch_axes, is_spread


def as_outputs(y: jax.Array, kernel: Any, axes: Sequence[str], outputs: Iterable[int]) -> jax.Array:
    """An activation, split as its kernel is.

    Args:
        y: `[batch, length, *outputs]`.
        kernel: The parameter that made it, or what stands in its place.
        axes: The kernel's logical axes.
        outputs: Which of the kernel's dimensions are the activation's.
    """
    if automatic_mesh() is None:
        return y
    over = partition(kernel, axes)
    return constrain(y, _batch(axes, over), None, *(() if is_spread(axes[n]) else over[n] for n in outputs))


def as_parameter(array: jax.Array, param: Any, axes: Sequence[str]) -> jax.Array:
    """A parameter's array where the parameter lies, so that its gradient does, too."""
    return array if automatic_mesh() is None else constrain(array, *partition(param, axes))


def by_batch(x: jax.Array, kernel: Any, axes: Sequence[str]) -> jax.Array:
    """An array whose first dimension is the batch, with that spread as for outputs of the kernel."""
    if automatic_mesh() is None:
        return x
    return constrain(x, _batch(axes, partition(kernel, axes)), *(None,) * (x.ndim - 1))


def _batch(axes: Sequence[str], over: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The mesh axes that the batch is split over; None where none is known to be meant for it."""
    mesh = automatic_mesh()
    assert mesh is not None  # the callers see to it
    spread = {name for axis, names in zip(axes, over, strict=True) if is_spread(axis) for name in names}
    return batch_axes(mesh, spread) or None


def zeros(
    axes: Sequence[str], shape: tuple[int, ...], dtype: DTypeLike, layer: nnx.Module, embedding: nnx.Variable[jax.Array]
) -> jax.Array:
    """Zeros, where what a layer makes of these axes will lie.

    Args:
        axes: The logical axes, `batch` for sequences; none for what is on every device.
        shape: The shape.
        dtype: The dtype.
        layer: The layer.
        embedding: What is spread beside the data.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return jnp.zeros(shape, dtype)
    over = _split_axes(layer) | {"batch": batch_axes(mesh, _spread(embedding))}
    dimensions = [over.get(axis, ()) for axis in axes] or [()] * len(shape)
    spec = PartitionSpec(
        *(None if entry is PartitionSpec.UNCONSTRAINED else entry for entry in spec_on(mesh, shape, dimensions))
    )
    lies = embedding[...]
    if (
        isinstance(lies, jax.Array)
        and not isinstance(lies, jax.core.Tracer)
        and isinstance(lies.sharding, NamedSharding)
    ):
        return jnp.zeros(shape, dtype, device=NamedSharding(lies.sharding.mesh, spec))
    if automatic_mesh() is None:
        return jax.sharding.reshard(jnp.zeros(shape, dtype), spec)
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), spec)


def _split_axes(layer: nnx.Module) -> dict[str, tuple[str, ...]]:
    """The mesh axes over which a layer's parameters split each logical axis."""
    parameters = [node for _, node in nnx.iter_graph(layer) if isinstance(node, nnx.Param)]
    return {
        axis: over
        for param in parameters
        for axes in (param.get_metadata().get("logical_axes", ()),)
        for axis, over in zip(axes, partition(param, axes), strict=True)
        if over and not is_spread(axis)
    }


def _spread(embedding: nnx.Variable[jax.Array]) -> set[str]:
    axes = embedding.get_metadata().get("logical_axes", ())
    pairs = zip(axes, partition(embedding, axes), strict=True)
    return {name for axis, over in pairs if is_spread(axis) for name in over}
