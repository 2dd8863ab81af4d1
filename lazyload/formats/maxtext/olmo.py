"""MaxText's OLMo 3."""

from lazyload.architecture import DecoderConfig
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.tree import layout, stack, under
from lazyload.layouts.layout import Layout


def olmo3(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """OLMo 3: scanned in cycles of four layers, three local ones and a global one; norms come after the blocks."""
    norms = {
        "post_self_attention_layer_norm.scale": "post_attn_norm : embed",
        "post_mlp_layer_norm.scale": "post_mlp_norm : embed",
    }
    qk_norms = {
        "query_norm.scale": "attn.q_norm : (head head_dim)",
        "key_norm.scale": "attn.k_norm : (kv_head head_dim)",
    }
    layer = norms | under("attention", blocks.attention() | qk_norms) | under("mlp", blocks.MLP)
    return layout(config, stack(config, scan_layers, layer, cycle=4), scan_layers, vocab_size)
