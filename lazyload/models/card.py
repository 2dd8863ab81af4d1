"""A decoder in a few lines, and as a card for notebooks."""

import math
from collections import Counter

from flax import nnx

from lazyload.architecture import DecoderConfig
from lazyload.display import text, weights
from lazyload.display.html import facts, page
from lazyload.display.shards import each
from lazyload.models.arrays import Held, arrays_of, shards_of, weights_of


def as_text(model: nnx.Module, config: DecoderConfig) -> str:
    """What it is, what it takes, and where it lies: a line each.

    Args:
        model: The decoder.
        config: What it is.
    """
    said = _said(arrays_of(model))
    family = f"{config.family}: " if config.family else ""
    lines = (family + _shape(config), said["parameters"], said["mesh"])
    return "Decoder(\n" + "".join(f"  {line}\n" for line in lines) + ")"


def as_html(model: nnx.Module, config: DecoderConfig) -> str:
    """The same, with a bar of where its bytes go."""
    arrays = arrays_of(model)
    said = _said(arrays)
    rows = [("family", config.family), ("layers", _shape(config)), ("mesh", said["mesh"])]
    return page("Decoder", said["parameters"], facts(rows), weights.bar(weights_of(arrays))).text


def _said(arrays: dict[str, Held]) -> dict[str, str]:
    """Parameters, bytes and dtype in words, and where they lie."""
    found = weights_of(arrays)
    nbytes = sum(array.nbytes for array in found.values())
    count = sum(math.prod(array.shape) for array in arrays.values())
    shards = shards_of("", arrays)
    where = "no values" if shards is None else each(shards)
    mesh = text.mesh(shards.grid.axes) if shards is not None else ""
    return {
        "parameters": f"{text.count(count)} parameters, {text.size(nbytes)}, {weights.dtypes(found)}",
        "mesh": f"{mesh}: {where}" if mesh else where,
    }


def _shape(config: DecoderConfig) -> str:
    """Its layers by the blocks they have, and its widths."""
    kinds = Counter(" + ".join(block.name for block in layer.blocks) for layer in config.layers)
    layers = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{config.num_layers} layers ({layers}), embed_dim {config.embed_dim}, vocab_size {config.vocab_size}"
