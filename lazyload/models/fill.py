"""Any Flax NNX module around arrays that are already on their devices."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from lazyload.errors import TensorMismatchError
from lazyload.models.parameters import STORED

Module = TypeVar("Module", bound=nnx.Module)


class MeshAxes(tuple[Any, ...]):
    """The mesh axes of an array's dimensions, as a parameter's metadata say them.

    Any two are equal, so that models that differ only in where they lie are trees of the same structure:
    `jax.device_put(state, shardings_of_the_other)`, by which trainers bring one to the mesh of another, asks for that.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MeshAxes) or super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(MeshAxes)


def fill(model: Module, arrays: Mapping[str, jax.Array]) -> Module:
    """Puts arrays in the place of a module's parameters; for the `build` of a `lazyload.Target`.

    Each parameter's partitioning metadata become its array's `PartitionSpec`, with an entry a dimension, so that
    `nnx.get_partition_spec` tells how the module really lies.

    Args:
        model: The module; with abstract parameters, such as `nnx.eval_shape` makes, nothing is allocated in vain.
        arrays: Every `nnx.Param`, and every table that a model of this library has, by its dotted path,
            `blocks.0.kernel`; an array keeps its dtype. What is left out of `nnx.LoRAParam`s stays as it is.

    Returns:
        The same module.

    Raises:
        TensorMismatchError: Arrays are missing, surplus or of the wrong shape; all of them are listed.

    Example:
        >>> import jax.numpy as jnp
        >>> module = nnx.eval_shape(lambda: nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)))
        >>> fill(module, {"kernel": jnp.ones((2, 3))})(jnp.ones(2)).tolist()
        [2.0, 2.0, 2.0]
    """
    # Walking over a module takes longer than all else that is done here.
    parameters = _parameters(model)
    if problems := _misfits(parameters, {path: array.shape for path, array in arrays.items()}):
        raise TensorMismatchError("the arrays do not fit the model's parameters:", problems)
    for path, array in arrays.items():
        place(parameters[path], array)
    return model


def misfits(model: nnx.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """How a module's parameters differ from arrays of these shapes, by path: sentences."""
    return _misfits(_parameters(model), shapes)


def _misfits(parameters: "Mapping[str, nnx.Variable[jax.Array]]", shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = [
        f"{path} is missing, shape {parameter.shape}"
        for path, parameter in parameters.items()
        if path not in shapes and not isinstance(parameter, nnx.LoRAParam)
    ]
    problems += [f"{path} is no parameter of the model" for path in shapes if path not in parameters]
    problems += [
        f"{path} has shape {shape}, the model needs {parameters[path].shape}"
        for path, shape in shapes.items()
        if path in parameters and shape != parameters[path].shape
    ]
    return problems


def values_of(model: nnx.Module) -> dict[str, Any]:
    """The arrays of a module's parameters, or the `jax.ShapeDtypeStruct`s in their place, by dotted path."""
    return {
        ".".join(map(str, path)): value
        for path, value in flatten_dict(nnx.to_pure_dict(nnx.state(model, STORED))).items()
    }


def _parameters(model: nnx.Module) -> "dict[str, nnx.Variable[jax.Array]]":
    return {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, STORED)}


def place(parameter: nnx.Variable[jax.Array], array: jax.Array) -> None:
    """Gives a parameter its array, and the array's `PartitionSpec` beside the metadata that it has."""
    spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else PartitionSpec()
    names = MeshAxes((*spec, *(None,) * (array.ndim - len(spec))))
    annotated: Callable[[], Any] = nnx.with_partitioning(lambda: array, names)
    placed = type(parameter)(annotated(), eager_sharding=False)
    metadata = {**parameter.get_metadata(), **placed.get_metadata()}
    parameter.update_from_state(placed)
    parameter.set_metadata(metadata)
