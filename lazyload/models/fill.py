"""Any Flax NNX module around arrays that are already on their devices."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lazyload.errors import TensorMismatchError

Module = TypeVar("Module", bound=nnx.Module)


def fill(model: Module, arrays: Mapping[str, jax.Array]) -> Module:
    """Puts arrays in the place of a module's parameters; for the `build` of a `lazyload.Target`.

    Each parameter's partitioning metadata become its array's `PartitionSpec`, so that `nnx.get_partition_spec` tells
    how the module really lies.

    Args:
        model: The module; with abstract parameters, such as `nnx.eval_shape` makes, nothing is allocated in vain.
        arrays: Every `nnx.Param` by its dotted path, `blocks.0.kernel`; an array keeps its dtype.

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
    parameters = {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    _check_fit({path: parameter.shape for path, parameter in parameters.items()}, arrays)
    for path, parameter in parameters.items():
        _place(parameter, arrays[path])
    return model


def _place(parameter: nnx.Param[jax.Array], array: jax.Array) -> None:
    """Gives a parameter its array, and the array's `PartitionSpec` beside the metadata that it has."""
    spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else PartitionSpec()
    annotated: Callable[[], Any] = nnx.with_partitioning(lambda: array, tuple(spec))
    placed = nnx.Param(annotated(), eager_sharding=False)
    metadata = {**parameter.get_metadata(), **placed.get_metadata()}
    parameter.update_from_state(placed)
    parameter.set_metadata(metadata)


def _check_fit(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, jax.Array]) -> None:
    """Compares arrays with the parameters that they are for."""
    problems = [f"{path} is missing, shape {shapes[path]}" for path in shapes if path not in arrays]
    problems += [f"{path} is no parameter of the model" for path in arrays if path not in shapes]
    problems += [
        f"{path} has shape {array.shape}, the model needs {shapes[path]}"
        for path, array in arrays.items()
        if path in shapes and array.shape != shapes[path]
    ]
    if problems:
        raise TensorMismatchError("the arrays do not fit the model's parameters:", problems)
