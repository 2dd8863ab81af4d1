"""The checkpoints of this library's own decoder: the dotted paths of its parameters, as its blocks declare them."""

from lazyload.architecture import DecoderConfig
from lazyload.architecture.stacking import stacks
from lazyload.layouts.layout import Layout, Table


def layout(config: DecoderConfig) -> Layout:
    """The layout `"nnx"`: one table for what belongs to no layer, and one for each kind of layer.

    Example:
        >>> from lazyload.architecture import MLP, Attention, Layer, Norm
        >>> attention = Attention(num_heads=4, num_kv_heads=2, head_dim=8)
        >>> layer = Layer(mixer=attention, feed_forward=MLP(mlp_dim=48), norm=Norm())
        >>> config = DecoderConfig(vocab_size=64, embed_dim=32, layers=(layer,) * 2, norm=Norm())
        >>> layout(config).tables[1].lines["layers.{layer}.attn.q_proj.kernel"]
        'attn.q : embed head head_dim'
    """
    kinds: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, layer in enumerate(config.layers):
        kinds.setdefault(tuple(layer.parameters.items()), []).append(number)
    layers = [
        Table({f"layers.{{layer}}.{path}": entry for path, entry in rows}, only={"layer": numbers})
        for rows, numbers in kinds.items()
    ]
    return Layout([Table(config.parameters), *layers], name="nnx")


def stacked_layout(config: DecoderConfig) -> Layout:
    """The layout `"nnx-scanned"`: alike layers are one array, whose first dimension is the layer.

    Example:
        >>> from lazyload.architecture import MLP, Attention, Layer, Norm
        >>> attention = Attention(num_heads=4, num_kv_heads=2, head_dim=8)
        >>> layer = Layer(mixer=attention, feed_forward=MLP(mlp_dim=48), norm=Norm())
        >>> config = DecoderConfig(vocab_size=64, embed_dim=32, layers=(layer,) * 2, norm=Norm())
        >>> stacked_layout(config).tables[1].lines["layers.0.attn.q_proj.kernel"]
        'attn.q : layer embed head head_dim'
    """
    layers = [
        Table(
            {
                f"layers.{number}.{path}": entry.replace(" : ", " : layer ", 1)
                for path, entry in config.layers[stack[0]].parameters.items()
            },
            only={"layer": stack},
        )
        for number, stack in enumerate(stacks(config))
    ]
    return Layout([Table(config.parameters), *layers], name="nnx-scanned")
