"""A module on another mesh: its parameters know their logical axes, and the rules say where these go there."""

from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lazyload.errors import ArgumentError
from lazyload.models.fill import place
from lazyload.sharding import Rules, mesh_or_default, shardings

Module = TypeVar("Module", bound=nnx.Module)


def reshard(model: Module, mesh: Mesh | None = None, *, rules: Rules | None = None) -> Module:
    """The same model on another mesh, whose axes may have other names and sizes.

    Each parameter goes where `from_pretrained` would have put it there. The new model has arrays of its own, unless
    they lie there already; the old one stays as it is.

    Args:
        model: A `Decoder`, or another module whose `nnx.Param`s have `logical_axes` among their metadata. Every
            device of the mesh gets a copy of parameters that have none, such as those of LoRA, and of other variables.
        mesh: The mesh; None for the one that `jax.set_mesh` has set, else all devices on one axis `fsdp`.
        rules: From logical axis to mesh axes, as for `from_pretrained`.

    Returns:
        A new module.

    Raises:
        ArgumentError: It is no module, or its parameters have no values.
        ShardingError: The mesh has no devices, or a rule names an axis that it, or the model, does not have.

    Example:
        >>> import numpy as np
        >>> kernel = nnx.Param(np.ones((4, 2), np.float32), logical_axes=("embed", "mlp"), eager_sharding=False)
        >>> model = nnx.Linear(4, 2, use_bias=False, rngs=nnx.Rngs(0))
        >>> model.kernel = kernel
        >>> reshard(model, Mesh(np.array(jax.devices()[:1]), ("tp",))).kernel[...].sharding.spec
        PartitionSpec(None, 'tp')
    """
    if not isinstance(model, nnx.Module):
        raise ArgumentError(f"reshard: {type(model).__name__} is no module of Flax NNX")
    mesh = mesh_or_default(mesh)
    graphdef, state = nnx.split(model)
    leaves = nnx.to_flat_state(state)
    values = {path: leaf.get_value() for path, leaf in leaves}
    axes = {path: leaf.get_metadata().get("logical_axes", ()) for path, leaf in leaves}
    # What a library for quantisation has put in the place of an array is none.
    known = {path: axes[path] for path, value in values.items() if axes[path] and isinstance(value, jax.Array)}
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in values.values()):
        raise ArgumentError("reshard: the model's parameters have no values; load it onto the mesh instead, with into=")
    arrays = {_text(path): (tuple(values[path].shape), tuple(axes)) for path, axes in known.items()}
    places = shardings(mesh, rules, arrays)
    whole = NamedSharding(mesh, PartitionSpec())
    targets = {path: jax.tree.map(lambda _, at=path: places.get(_text(at), whole), values[path]) for path in values}
    moved: dict[Any, Any] = jax.device_put(values, targets)
    resharded: Module = nnx.merge(graphdef, state)
    parameters = {path: node for path, node in nnx.iter_graph(resharded) if isinstance(node, nnx.Variable)}
    for path, array in moved.items():
        if path in known:
            place(parameters[path], array)
        else:
            parameters[path].set_value(array)
    return resharded


def _text(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
