"""MaxText's DeepSeek V2, V3 and V3.2, and Kimi K2."""

from lazyload.architecture import MLP, DecoderConfig, Experts
from lazyload.errors import LayoutError
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.tree import layout, refuse, stack, under
from lazyload.layouts.layout import Layout


def deepseek(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """DeepSeek V2, V3 and V3.2, and Kimi K2: dense layers before those with experts, each kind stacked on its own.

    The router's bias stands where both of MaxText's loaders look for it, with the one form that both take: scanned,
    the layer comes first.
    """
    dense_layers, sparse_layers = config.layers_with(MLP), config.layers_with(Experts)
    if dense_layers != tuple(range(len(dense_layers))):
        raise LayoutError("MaxText's DeepSeek has its dense layers before those with experts; this model has not")
    refuse("DeepSeek has no biases", config, "attn.kv_a.bias", "attn.o.bias", "mlp.in.bias", "shared.in.bias")
    common = blocks.NORMS | under("self_attention", blocks.LATENT_ATTENTION | under("indexer", blocks.INDEXER))
    bias = "layer expert" if scan_layers else "expert"
    experts = blocks.EXPERTS | {"gate.bias": f"router.selection_bias : {bias} ; unrounded"}
    moe = under("MoeBlock_0", experts) | under("shared_experts", blocks.SHARED_EXPERTS)
    dense, sparse = common | under("mlp", blocks.MLP), common | under("DeepSeekMoeBlock_0", moe)
    tables = [
        *stack(config, scan_layers, dense, "dense_layers", layers=dense_layers),
        *stack(config, scan_layers, sparse, "moe_layers", layers=sparse_layers),
    ]
    return layout(config, tables, scan_layers, vocab_size)
