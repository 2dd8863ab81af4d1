"""Chunks are written in the order in which what they read arrives."""

import numpy as np
from support.in_memory import SIZES, Arrays, Sizes

from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.order import in_order_of_arrival
from lazyload.layouts.conversion import resolve
from lazyload.layouts.layout import Layout
from lazyload.layouts.lazy import LazyTensor

HUB = Layout(
    {"{layer}.o": "attn.o : embed (head head_dim)", "{layer}.norm": "norm : embed", "embed": "embed : vocab embed"}
)
SCANNED = Layout(
    {"norms": "norm : embed layer", "out": "attn.o : (head head_dim) layer embed", "embed": "embed : vocab embed"}
)


def arrays(model: Sizes, order: list[str]) -> Arrays:
    shapes = {"embed": (7, 5)} | {f"{n}.o": (5, 12) for n in range(4)} | {f"{n}.norm": (5,) for n in range(4)}
    return Arrays({name: np.zeros(shapes[name], np.float32) for name in order})


def chunks(lazy: LazyTensor, path: str, shape: tuple[int, ...]) -> list[tuple[str, int, tuple[slice, ...]]]:
    return [(path, *item) for item in enumerate(boxes(lazy.shape, shape))]


def test_a_chunk_comes_when_the_last_tensor_that_it_reads_has() -> None:
    layers = [f"{n}.{name}" for n in (2, 0, 3, 1) for name in ("norm", "o")]
    source = arrays(SIZES, [*layers, "embed"])
    tensors = resolve(source, HUB, SCANNED, SIZES, np.dtype(np.float32)).tensors
    work = [
        *chunks(tensors["embed"], "embed", (4, 5)),
        *chunks(tensors["norms"], "norms", (5, 2)),
        *chunks(tensors["out"], "out", (12, 1, 5)),
    ]
    ordered = [(path, number) for path, number, _ in in_order_of_arrival(work, tensors)]
    assert ordered == [
        ("out", 2),
        ("out", 0),
        ("norms", 1),
        ("out", 3),
        ("norms", 0),
        ("out", 1),
        ("embed", 0),
        ("embed", 1),
    ]


def test_an_array_and_its_copy_are_read_side_by_side() -> None:
    """So that what arrives once can be let go of."""
    layout = Layout({"embed": "embed : vocab embed"})
    one = resolve(Arrays({"embed": np.zeros((7, 5), np.float32)}), layout, layout, SIZES, np.dtype(np.float32)).tensors
    tensors = {"embed": one["embed"], "copy": one["embed"]}
    work = [*chunks(one["embed"], "embed", (3, 5)), *chunks(one["embed"], "copy", (3, 5))]
    ordered = [(path, number) for path, number, _ in in_order_of_arrival(work, tensors)]
    assert ordered == [(path, number) for number in range(3) for path in tensors]
