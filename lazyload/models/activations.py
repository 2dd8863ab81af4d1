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

from lazyload.models.meshes import automatic_mesh, constrain, usable
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
    return constrain(y, batch_split(axes, over), None, *(() if is_spread(axes[n]) else over[n] for n in outputs))


def value_of(param: nnx.Param[jax.Array]) -> jax.Array:
    """A parameter's array, said to lie where the parameter lies, so that its gradient does, too.

    Left to itself a gradient of one dimension lies as the activations do, and the parameter does after the first step.
    """
    array: jax.Array = param[...]
    axes = param.get_metadata().get("logical_axes", ())
    if automatic_mesh() is None or len(axes) < array.ndim:
        return array
    return constrain(array, *partition(param, axes[len(axes) - array.ndim :]))


def batch_split(axes: Sequence[str], over: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The mesh axes that the batch is split over; None where none is known to be meant for it.

    Args:
        axes: The logical axes of a kernel that activations are multiplied with.
        over: The mesh axes that split each of them.
    """
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
    entries = [usable(mesh, names, size) for size, names in zip(shape, dimensions, strict=True)]
    while automatic_mesh() is not None and entries and not entries[-1]:
        # What a compiled step returns has none of these either, and a step is compiled once.
        entries.pop()
    spec = PartitionSpec(*(entry[0] if len(entry) == 1 else entry or None for entry in entries))
    (table,) = jax.tree.leaves(embedding)
    lies = None if isinstance(table, jax.core.Tracer) else table.sharding
    if isinstance(lies, NamedSharding):
        return jnp.zeros(shape, dtype, device=NamedSharding(lies.mesh, spec))
    array = jnp.zeros(shape, dtype)
    placed: jax.Array = (
        jax.sharding.reshard(array, spec) if automatic_mesh() is None else jax.lax.with_sharding_constraint(array, spec)
    )
    return placed


def _split_axes(layer: nnx.Module) -> dict[str, tuple[str, ...]]:
    """The mesh axes over which a layer's parameters split each logical axis."""
    # What qwix adds has the metadata of the kernel beside it, and other dimensions.
    nodes = [node for _, node in nnx.iter_graph(layer)]
    parameters = [node for node in nodes if isinstance(node, nnx.Param) and not isinstance(node, nnx.LoRAParam)]
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
