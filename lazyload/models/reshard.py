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
        >>> moved = reshard(model, Mesh(np.array(jax.devices()[:1]), ("tp",)))
        >>> tuple(moved.kernel[...].sharding.spec)
        (None, 'tp')
    """
    if not isinstance(model, nnx.Module):
        raise ArgumentError(f"reshard: {type(model).__name__} is no module of Flax NNX")
    mesh = mesh_or_default(mesh)
    graphdef, state = nnx.split(model)
    variables, treedef = jax.tree.flatten_with_path(state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    paths = [".".join(str(getattr(key, "key", key)) for key in path) for path, _ in variables]
    arrays = {path: found for path, (_, variable) in zip(paths, variables, strict=True) if (found := _array(variable))}
    places = shardings(mesh, rules, arrays)
    targets = [places.get(path, NamedSharding(mesh, PartitionSpec())) for path in paths]
    moved = jax.device_put([variable for _, variable in variables], targets)
    for path, variable in zip(paths, moved, strict=True):
        if path in arrays:
            place(variable, variable[...])
    resharded: Module = nnx.merge(graphdef, jax.tree.unflatten(treedef, moved))
    return resharded


def _array(variable: nnx.Variable[Any]) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
    """Shape and logical axes; None where these are not known, or quantisation has put something else in its place.

    Raises:
        ArgumentError: It has no value.
    """
    leaves = jax.tree.leaves(variable)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise ArgumentError("reshard: the model's parameters have no values; load it onto the mesh instead, with into=")
    # Of LoRA's parameters qwix says what it says of the kernels beside them, which have other dimensions.
    axes = () if isinstance(variable, nnx.LoRAParam) else tuple(variable.get_metadata().get("logical_axes", ()))
    return (tuple(leaves[0].shape), axes) if axes and len(leaves) == 1 else None
