"""MaxText's Llama 4, as its script `llama_or_mistral_ckpt` stores it."""

from lazyload.architecture import DecoderConfig
from lazyload.errors import LayoutError
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.tree import layout, refuse, require_cycles, scanned, under
from lazyload.layouts.layout import Layout, Table

CYCLE = 4
"""The layers after which experts, chunks and rotary embeddings repeat: `inhomogeneous_layer_cycle_interval`."""


def llama4(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Llama 4: scanned in cycles of four layers, a stack for each place in them; nothing is scaled or reordered."""
    refuse("Llama 4 has no biases (attention_bias)", config, "attn.q.bias", "attn.o.bias")
    experts = under("MoeBlock_0", blocks.EXPERTS) | under("shared_experts", blocks.SHARED_EXPERTS)
    layer = (
        blocks.NORMS
        | under("self_attention", blocks.attention())
        | under("mlp", blocks.MLP)
        | under("Llama4MoEBlock_0", experts)
    )
    if not scan_layers:
        return layout(config, [Table(under("decoder.layers_{layer}", layer))], scan_layers, vocab_size)
    require_cycles(config, CYCLE, "MaxText scans its layers in cycles; use scan_layers=False")
    feed_forwards = [layer.feed_forward and layer.feed_forward.name for layer in config.layers]
    if feed_forwards[CYCLE:] != feed_forwards[:-CYCLE]:
        raise LayoutError(
            f"MaxText's Llama 4 repeats itself after {CYCLE} layers; this model's experts do not "
            "(interleave_moe_layer_step, moe_layers). Use scan_layers=False"
        )
    places = [range(place, config.num_layers, CYCLE) for place in range(CYCLE)]
    tables = [
        Table(under(f"decoder.layers.layers_{place}", scanned(layer, "layer")), only={"layer": layers})
        for place, layers in enumerate(places)
    ]
    return layout(config, tables, scan_layers, vocab_size)
