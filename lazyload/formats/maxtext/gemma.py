"""MaxText's Gemma 2 and 3."""

import math

import ml_dtypes

from lazyload.architecture import DecoderConfig
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.tree import layout, require_cycles, scanned, stack, under
from lazyload.layouts.layout import Layout, Table

_GEMMA_NORM = " ; offset 1 ; as float32"
"""MaxText adds the one of Gemma's norms while converting, in float32, and saves the sum as it is."""


def gemma2(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Gemma 2: a MaxText layer is a pair of layers, a local and a global one."""
    query = {"query.kernel": f"attn.q : embed head head_dim ; scale {blocks.query_scale(config)}"}
    kind = "_{kind:local,global}"
    layer = {
        **norms(kind, _GEMMA_NORM),
        **under(f"self_attention{kind}", blocks.attention() | query),
        **under(f"mlp{kind}", blocks.MLP),
    }
    require_cycles(config, 2, "a MaxText layer is a pair of layers")
    entries = under("layers", scanned(layer, "block")) if scan_layers else under("layers_{block}", layer)
    pairs = Table(under("decoder", entries), split={"layer": ("block", "kind")}, sizes={"kind": 2})
    return layout(config, [pairs], scan_layers, vocab_size, embed_scale=math.sqrt(config.embed_dim), norm=_GEMMA_NORM)


def gemma3(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Gemma 3: scanned in cycles of six layers; the layers that are left over stay apart."""
    layer = {
        **norms("", _GEMMA_NORM),
        **under("self_attention", blocks.attention(norm=_GEMMA_NORM)),
        **under("mlp", blocks.MLP),
    }
    rest = config.num_layers % 6
    cycles = range(config.num_layers - rest)
    tables = stack(config, scan_layers, layer)
    if scan_layers:
        left = under("layers_remainder.layers_{layer:0..}", layer)
        tables = [
            *stack(config, scan_layers, layer, cycle=6, layers=cycles),
            Table(under("decoder", left), only={"layer": range(cycles.stop, config.num_layers)}),
        ]
    # MaxText rounds the factor to bfloat16 first, as the model itself does.
    scale = float(ml_dtypes.bfloat16(math.sqrt(config.embed_dim)))
    return layout(config, tables, scan_layers, vocab_size, embed_scale=scale, norm=_GEMMA_NORM)


def norms(kind: str = "", stored: str = "") -> dict[str, str]:
    """The norms before and after both blocks.

    Args:
        kind: What their names end in.
        stored: How they are stored: operations.
    """
    names = {
        "pre_self_attention_norm": "attn_norm",
        "post_self_attention_norm": "post_attn_norm",
        "pre_ffw_norm": "mlp_norm",
        "post_ffw_norm": "post_mlp_norm",
    }
    return {f"{name}{kind}.scale": f"{role} : embed{stored}" for name, role in names.items()}
