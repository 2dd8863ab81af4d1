"""MaxText's Qwen 3 Next, and Qwen 3.5 with experts: gated delta nets, and attention in every fourth layer."""

from lazyload.architecture import Attention, DecoderConfig, Experts
from lazyload.errors import LayoutError
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.blocks import Entries
from lazyload.formats.maxtext.tree import layout, refuse, require_cycles, scanned, under
from lazyload.layouts.layout import Layout, Table

_ATTENTION = blocks.attention() | {
    "query.kernel": "attn.q : embed head (query_gate head_dim)",
    "out.kernel": "attn.o : (head head_dim) embed",
}
_DELTA_NET = {
    "conv1d.kernel": "delta.conv_q | delta.conv_k | delta.conv_v : "
    "conv_width 1 (key_head key_dim | key_head key_dim | key_head group value_dim)",
    "A_log": "delta.a_log : (key_head group) ; unrounded",
    "dt_bias": "delta.dt_bias : (key_head group) ; unrounded",
    "norm.rms_norm.scale": "delta.norm : value_dim ; unrounded",
    "out_proj.kernel": "delta.o : (key_head group value_dim) embed",
}
_FUSED = {
    "in_proj_qkvz.kernel": "delta.qkvz : embed (key_head qkvz)",
    "in_proj_ba.kernel": "delta.ba : embed (key_head beta_alpha)",
}
_APART = {
    "in_proj_qkvz.kernel": "delta.q | delta.k | delta.v | delta.z : "
    "embed (key_head (key_dim | key_dim | group value_dim | group value_dim))",
    "in_proj_ba.kernel": "delta.b | delta.a : embed (key_head (group | group))",
}
"""MaxText's Qwen 3.5 has the projections of Qwen 3 Next, which the hub's has not."""

_LAYER = {
    "input_layernorm.scale": "attn_norm : embed",
    "post_attention_layernorm.scale": "mlp_norm : embed",
    **under("attention.attention", _ATTENTION),
    **under("attention", _DELTA_NET),
    **under("mlp.routed_experts", blocks.EXPERTS),
    **under("mlp.shared_expert", blocks.SHARED_EXPERTS),
    "mlp.shared_expert_gate.kernel": "shared.gate : embed 1",
}


def qwen3_next(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Qwen 3 Next: scanned in cycles, whose layers without attention are scanned within them."""
    cycle = _cycle(config, scan_layers)
    layer = _LAYER | under("attention", _FUSED)
    if not scan_layers:
        return layout(config, [_numbered(layer)], scan_layers, vocab_size)
    attending = config.layers_with(Attention)
    local = Table(
        under("decoder.layers.local_layers", scanned(layer, "block local")),
        only={"layer": [number for number in range(config.num_layers) if number not in attending]},
        split={"layer": ("block", "local")},
        sizes={"local": cycle - 1},
    )
    others = Table(under("decoder.layers.global_layer", scanned(layer, "layer")), only={"layer": attending})
    return layout(config, [local, others], scan_layers, vocab_size)


def qwen3_5_moe(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Qwen 3.5 with experts: scanned in cycles, a stack for each place in them."""
    cycle = _cycle(config, scan_layers)
    layer = _LAYER | under("attention", _APART)
    tables = [
        Table(under(f"decoder.layers.layer_{place}", scanned(layer, "layer")), only={"layer": layers})
        for place, layers in ((place, range(place, config.num_layers, cycle)) for place in range(cycle))
    ]
    return layout(config, tables if scan_layers else [_numbered(layer)], scan_layers, vocab_size)


def cycle_of(config: DecoderConfig) -> int:
    """After how many layers there is one with attention again: MaxText's `inhomogeneous_layer_cycle_interval`.

    Raises:
        LayoutError: The layers do not follow each other so.
    """
    attending = config.layers_with(Attention)
    cycle = attending[0] + 1 if attending else 4
    if cycle == 1 or attending != tuple(range(cycle - 1, config.num_layers, cycle)):
        raise LayoutError(
            "MaxText's Qwen 3 Next and 3.5 have attention after a fixed number of gated delta nets "
            f"(inhomogeneous_layer_cycle_interval); layer_types has it in layers {list(attending)}"
        )
    return cycle


def _cycle(config: DecoderConfig, scan_layers: bool) -> int:
    """The cycle of a model; refuses one that MaxText's layers cannot express."""
    refuse("Qwen 3 Next and 3.5 have no biases (attention_bias)", config, "attn.q.bias", "attn.o.bias")
    experts = config.first(Experts)
    if experts is None or len(config.layers_with(Experts)) < config.num_layers:
        raise LayoutError(
            "MaxText's Qwen 3 Next and 3.5 have experts in all layers; this model has an MLP in some "
            "(mlp_only_layers, decoder_sparse_step)"
        )
    if experts.shared_mlp_dim != experts.mlp_dim:
        raise LayoutError(
            "MaxText's shared expert is as wide as a routed one (moe_mlp_dim); this model has "
            f"shared_expert_intermediate_size = {experts.shared_mlp_dim} and moe_intermediate_size = {experts.mlp_dim}"
        )
    cycle = cycle_of(config)
    if scan_layers:
        require_cycles(config, cycle, "MaxText scans its layers in cycles; use scan_layers=False")
    return cycle


def _numbered(layer: Entries) -> Table:
    return Table(under("decoder.layers_{layer}", layer))
