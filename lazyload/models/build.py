"""A decoder around arrays that are already on their devices."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

from lazyload.architecture.decoder import DecoderConfig
from lazyload.models.decoder import Decoder
from lazyload.models.fill import check_fit, parameter_shapes
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
    check_fit(parameter_shapes(model), arrays)
    for path, array in arrays.items():
        *parents, name = path.split(".")
        module: Any = model
        for parent in parents:
            module = module[int(parent)] if parent.isdigit() else getattr(module, parent)
        setattr(module, name, placed(array, getattr(module, name).logical_axes))
    return model
