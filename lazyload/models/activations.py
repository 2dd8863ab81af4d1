"""Where activations lie on a mesh: sequences are spread as parameters are, heads and widths split as parameters' are.

Left to itself the compiler often spreads the embedding's dimension where the parameters are, and exchanges activations
instead of gathering parameters.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from lazyload.models.meshes import automatic_mesh, constrain
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
