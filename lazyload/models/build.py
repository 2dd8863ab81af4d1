"""A decoder around arrays that are already on their devices."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from lazyload.errors import TensorMismatchError
from lazyload.models.config import DecoderConfig
from lazyload.models.decoder import Decoder
from lazyload.models.parameters import placed


def build(config: DecoderConfig, dtype: DTypeLike, arrays: Mapping[str, jax.Array]) -> Decoder:
    """A decoder whose parameters are the given arrays; nothing else is allocated.

    Each parameter's partitioning metadata become its array's `PartitionSpec`, so that `nnx.get_partition_spec` tells
    how the model really lies.

    Args:
        config: What the decoder is.
        dtype: The dtype that parameters are declared with; an array keeps its own.
        arrays: Every parameter by its dotted path, `layers.0.attn.q.kernel`.

    Raises:
        TensorMismatchError: Arrays are missing, surplus or of the wrong shape; all of them are listed.
    """
    # Not `nnx.eval_shape`, whose time grows with the square of the number of parameters.
    model = Decoder(config, dtype=dtype, rngs=None)
    shapes = parameter_shapes(model)
    problems = [f"{path} is missing, shape {shapes[path]}" for path in shapes if path not in arrays]
    problems += [f"{path} is no parameter of the model" for path in arrays if path not in shapes]
    problems += [
        f"{path} has shape {array.shape}, the model needs {shapes[path]}"
        for path, array in arrays.items()
        if path in shapes and array.shape != shapes[path]
    ]
    if problems:
        raise TensorMismatchError("the arrays do not fit the decoder's parameters:", problems)
    for path, array in arrays.items():
        *parents, name = path.split(".")
        module: Any = model
        for parent in parents:
            module = module[int(parent)] if parent.isdigit() else getattr(module, parent)
        setattr(module, name, placed(array, getattr(module, name).logical_axes))
    return model


def parameter_shapes(model: Decoder) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by dotted path; the model may be abstract."""
    return {".".join(map(str, path)): param.shape for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))}
