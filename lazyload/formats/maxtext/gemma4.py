"""MaxText's Gemma 4: dense, with experts beside the MLP, and the small ones (E2B, E4B).

Norms are stored as they are: Gemma 4 adds no one to them.
"""

import math
from collections.abc import Sequence

from lazyload.architecture import Attention, DecoderConfig, Experts
from lazyload.errors import LayoutError
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.gemma import norms
from lazyload.formats.maxtext.tree import layout, refuse, scanned, under
from lazyload.layouts.layout import Layout, Table

_CYCLE = 6
_SMALL_CYCLES = (5, 6)
"""Of E2B, and of E4B."""

_PER_LAYER_INPUT = {
    "per_layer_input_gate.kernel": "ple.gate : embed ple_dim",
    "per_layer_projection.kernel": "ple.out : ple_dim embed",
    "post_per_layer_input_norm.scale": "ple.norm : embed",
}
_PER_LAYER_EMBEDDING = {
    "embed_tokens_per_layer": "ple.embed : ple_vocab ple_embed",
    "per_layer_model_projection.kernel": "ple.proj : embed ple_embed",
    "per_layer_projection_norm.scale": "ple.proj_norm : ple_dim",
}
_LAYER = {
    **norms(),
    **under("self_attention", blocks.attention()),
    **_PER_LAYER_INPUT,
    "layer_scalar": "layer_scalar : 1",
}
_DENSE = under("mlp", blocks.MLP)
_SPARSE = {
    **under("mlp.moe_block.MoeBlock_0", blocks.EXPERTS),
    "mlp.moe_block.MoeBlock_0.per_expert_scale": "router.expert_scale : expert",
    **under("mlp.moe_block.shared_experts", blocks.MLP),
    "mlp.pre_forward_scale_2": "router.norm : embed",
    "mlp.pre_feedforward_layernorm_2.scale": "moe_norm : embed",
    "mlp.post_feedforward_layernorm_1.scale": "post_dense_norm : embed",
    "mlp.post_feedforward_layernorm_2.scale": "post_moe_norm : embed",
}


def gemma4(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Gemma 4: scanned in cycles, whose local layers are scanned within them; the small ones are not scanned."""
    refuse("Gemma 4 has no biases (attention_bias)", config, "attn.q.bias", "attn.o.bias")
    if config.per_layer_embedding is not None or config.shared_kv_layers:
        _require_small(config, scan_layers)
    else:
        _require_cycles(config, (_CYCLE,))
    layer = _LAYER | (_SPARSE if config.first(Experts) else _DENSE)
    scale = math.sqrt(config.embed_dim)
    if not scan_layers:
        above = under("decoder.per_layer_embedder", _PER_LAYER_EMBEDDING)
        tables = [Table(above), Table(under("decoder.layers_{layer}", layer))]
        return layout(config, tables, scan_layers, vocab_size, embed_scale=scale)
    attending = global_layers(config)
    local = Table(
        under("decoder.scanned_blocks.local_layers", scanned(layer, "block local")),
        only={"layer": [number for number in range(config.num_layers) if number not in attending]},
        split={"layer": ("block", "local")},
        sizes={"local": _CYCLE - 1},
    )
    others = Table(under("decoder.scanned_blocks.global_layer", scanned(layer, "layer")), only={"layer": attending})
    return layout(config, [local, others], scan_layers, vocab_size, embed_scale=scale)


def global_layers(config: DecoderConfig) -> list[int]:
    """The layers with full attention."""
    mixers = enumerate(layer.mixer for layer in config.layers)
    return [number for number, mixer in mixers if isinstance(mixer, Attention) and mixer.window is None]


def _require_small(config: DecoderConfig, scan_layers: bool) -> None:
    """Refuses what MaxText's model of E2B and E4B (`gemma4_small`) cannot express."""
    if scan_layers:
        raise LayoutError(
            "MaxText does not scan a Gemma 4 whose layers have inputs of their own (hidden_size_per_layer_input) or "
            "share keys and values (num_kv_shared_layers), as E2B and E4B; use scan_layers=False"
        )
    if config.first(Experts):
        raise LayoutError(
            "MaxText's small Gemma 4 (hidden_size_per_layer_input, num_kv_shared_layers) has no experts "
            "(enable_moe_block)"
        )
    if any(isinstance(layer.mixer, Attention) and layer.mixer.v_from_k for layer in config.layers):
        raise LayoutError(
            "MaxText's small Gemma 4 (hidden_size_per_layer_input, num_kv_shared_layers) does not take values for "
            "keys (attention_k_eq_v)"
        )
    _require_cycles(config, _SMALL_CYCLES)


def _require_cycles(config: DecoderConfig, cycles: Sequence[int]) -> None:
    """Refuses layers that do not come in cycles, all local but the last."""
    found = global_layers(config)
    if not any(found == list(range(cycle - 1, config.num_layers, cycle)) for cycle in cycles):
        raise LayoutError(
            f"MaxText's Gemma 4 has full attention in every {' or '.join(f'{cycle}th' for cycle in cycles)} layer; "
            f"layer_types has it in layers {found} of {config.num_layers}"
        )
