"""Any Flax NNX module around arrays that are already on their devices."""

from collections.abc import Mapping
from typing import TypeVar

import jax
from flax import nnx

from lazyload.errors import TensorMismatchError

Module = TypeVar("Module", bound=nnx.Module)


def fill(model: Module, arrays: Mapping[str, jax.Array]) -> Module:
    """Puts arrays in the place of a module's parameters; for the `build` of a `lazyload.Layout`.

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
    check_fit(parameter_shapes(model), arrays)
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    filled = [(path, parameter.replace(arrays[".".join(map(str, path))])) for path, parameter in parameters]
    nnx.update(model, nnx.from_flat_state(filled))
    return model


def parameter_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by dotted path; the model may be abstract."""
    return {".".join(map(str, path)): param.shape for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def check_fit(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, jax.Array]) -> None:
    """Compares arrays with the parameters that they are for.

    Raises:
        TensorMismatchError: Arrays are missing, surplus or of the wrong shape; all of them are listed.
    """
    problems = [f"{path} is missing, shape {shapes[path]}" for path in shapes if path not in arrays]
    problems += [f"{path} is no parameter of the model" for path in arrays if path not in shapes]
    problems += [
        f"{path} has shape {array.shape}, the model needs {shapes[path]}"
        for path, array in arrays.items()
        if path in shapes and array.shape != shapes[path]
    ]
    if problems:
        raise TensorMismatchError("the arrays do not fit the model's parameters:", problems)
