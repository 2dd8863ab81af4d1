"""MaxText's gpt-oss."""

from lazyload.architecture import DecoderConfig
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.tree import layout, stack, under
from lazyload.layouts.layout import Layout


def gpt_oss(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """gpt-oss: scanned in cycles of two layers, a local and a global one."""
    biases = {
        "gate.bias": "router.bias : expert",
        "wi_{gate_up:0,1}_bias": "experts.in.bias : expert expert_mlp",
        "wo_bias": "experts.out.bias : expert embed",
    }
    more = {"out.bias": "attn.o.bias : embed", "sinks": "attn.sinks : head"}
    experts = blocks.EXPERTS | biases
    layer = blocks.NORMS | under("GptOssAttention", blocks.attention() | more) | under("GptOssMlp", experts)
    return layout(config, stack(config, scan_layers, layer, cycle=2), scan_layers, vocab_size)
