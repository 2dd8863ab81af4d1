"""MaxText's Qwen 2, 2.5 and 3, and the text models of its Qwen 3 VL."""

from lazyload.architecture import MLP, DecoderConfig, Experts
from lazyload.errors import LayoutError
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.tree import layout, refuse, stack, under
from lazyload.layouts.layout import Layout


def qwen(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Qwen 2, 2.5 and 3, and the text model of Qwen 3 VL, dense or with experts in every layer."""
    refuse("Qwen has no bias on what attention puts out", config, "attn.o.bias")
    if config.layers_with(MLP) and config.layers_with(Experts):
        raise LayoutError(
            "MaxText's Qwen has an MLP or experts in all layers alike; this model has both "
            "(mlp_only_layers, decoder_sparse_step)"
        )
    layer = (
        blocks.NORMS
        | under("self_attention", blocks.attention())
        | under("mlp", blocks.MLP)
        | under("moe_block", blocks.EXPERTS)
    )
    return layout(config, stack(config, scan_layers, layer), scan_layers, vocab_size)


def qwen3_vl_moe(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """The text model of Qwen 3 VL with experts, which MaxText does not scan."""
    if scan_layers:
        raise LayoutError("MaxText's converter does not scan Qwen 3 VL with experts; use scan_layers=False")
    return qwen(config, scan_layers, vocab_size)
