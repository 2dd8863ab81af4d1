"""Which layers of a decoder are stacked: those that are alike, one after another or in turns."""

from lazyload.architecture.decoder import DecoderConfig, Layer

Cycle = tuple[range, ...]
"""Layers in turns: for each place in the cycle the layers that stand there, by number, equally many for every place."""


def cycles(config: DecoderConfig) -> tuple[Cycle, ...]:
    """All layers of a decoder in their order, as few cycles as they make.

    A layer whose keys and values others attend to, or that has part in a shared selection, is a cycle by itself: what
    it hands on goes from layer to layer, not around a cycle.

    Example:
        >>> from dataclasses import replace
        >>> from lazyload.architecture import MLP, Attention, Norm
        >>> local = Layer(
        ...     mixer=Attention(num_heads=1, num_kv_heads=1, head_dim=2, window=4),
        ...     feed_forward=MLP(mlp_dim=4),
        ...     norm=Norm(),
        ... )
        >>> full = replace(local, mixer=replace(local.mixer, window=None))
        >>> layers = (local, full, local, full, local)
        >>> cycles(DecoderConfig(vocab_size=4, embed_dim=2, layers=layers, norm=Norm()))
        ((range(0, 3, 2), range(1, 4, 2)), (range(4, 5),))
    """
    found: list[Cycle] = []
    apart = config.shared_kv_layers | config.selecting_layers
    first = 0
    while first < config.num_layers:
        end = next((number for number in range(first, config.num_layers) if number in apart), config.num_layers)
        period, count = _cycle(config.layers[first : max(end, first + 1)])
        stop = first + period * count
        found.append(tuple(range(first + place, stop - period + place + 1, period) for place in range(period)))
        first = stop
    return tuple(found)


def stacks(config: DecoderConfig) -> tuple[range, ...]:
    """The layers of each stack, in the order of the cycles and of the places in them."""
    return tuple(stack for cycle in cycles(config) for stack in cycle)


def _cycle(layers: tuple[Layer, ...]) -> tuple[int, int]:
    """The period of the first layers, and how often it is gone through, so that as many layers as possible are in it.

    Where none follow each other in turns, that is one layer, once.
    """
    best = (1, 1)
    for period in range(1, len(layers) // 2 + 1):
        alike = period
        while alike < len(layers) and layers[alike] == layers[alike - period]:
            alike += 1
        count = alike // period
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best
