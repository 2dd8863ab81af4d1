"""Lazy tensors as the writer uses them: what a block reads, how best to cut, what is refused."""

import threading
from collections.abc import Mapping

import numpy as np
import pytest
from support.in_memory import FLOAT32, SIZES, Arrays, Sizes

from lazyload.layouts.boxes import normalised, ranges_of, stretch, widened
from lazyload.layouts.conversion import resolve
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.scratch import Scratch

PER_LAYER = Layout({"{layer}.w": "q : (head head_dim) embed"})


def layers() -> Arrays:
    return Arrays({f"{n}.w": np.arange(60, dtype=np.float32).reshape(12, 5) + 100 * n for n in range(4)})


def lazy(target: str, source: Arrays | None = None, stored: Layout = PER_LAYER, sizes: Sizes = SIZES) -> LazyTensor:
    return resolve(source or layers(), stored, Layout({"w": target}), sizes, FLOAT32).tensors["w"]


def test_a_block_reads_no_more_than_it_needs() -> None:
    source = layers()
    tensor = lazy("q : embed layer head head_dim", source)
    block = tensor[0:5, 2:3, 1:2, 0:4]
    assert source.bytes_read == block.nbytes
    assert source.reads == 1
    assert tensor.sources == ("0.w", "1.w", "2.w", "3.w")
    assert tensor.nbytes == 4 * 5 * 4 * 3 * 4


class Recorded(Arrays):
    """A checkpoint in memory that keeps the boxes that are read of it; its tensors are stored in an order."""

    def __init__(self, arrays: Mapping[str, np.ndarray], order: tuple[int, ...] = ()):
        super().__init__(arrays)
        self.tensors = {name: info._replace(order=order) for name, info in self.tensors.items()}
        self.boxes: list[tuple[slice, ...]] = []

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        self.boxes.append(index)
        return super().read(name, index)


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ((), (slice(0, 2), slice(0, 300), slice(0, 1700))),
        ((0, 2, 1), (slice(0, 2), slice(0, 300), slice(0, 1700))),
        ((2, 0, 1), (slice(0, 5), slice(0, 300), slice(0, 512))),
        ((1, 2, 0), (slice(0, 5), slice(0, 64), slice(0, 1700))),
    ],
    ids=str,
)
def test_a_large_tensor_is_read_in_pieces_along_what_is_stored_outermost(
    order: tuple[int, ...], first: tuple[slice, ...]
) -> None:
    sizes = Sizes({"layer": 1, "head": 5, "head_dim": 300, "embed": 1700}, {})
    source = Recorded({"w": np.random.default_rng(0).random((5, 300, 1700), np.float32)}, order)
    tensor = lazy("q : embed head_dim head", source, Layout({"w": "q : head head_dim embed"}), sizes)
    block = tensor[0:1700, 0:300, 0:5]
    np.testing.assert_array_equal(block, source.arrays["w"].T)
    assert source.boxes[0] == first
    assert len(source.boxes) > 2
    assert source.bytes_read == block.nbytes


def test_chunks_are_cut_along_what_is_stored_outermost() -> None:
    sizes, stored = Sizes({"layer": 1, "mlp": 3, "embed": 5}, {}), Layout({"w": "m : mlp embed"})
    for order, cut in (((), 1), ((1, 0), 0)):
        source = Recorded({"w": np.zeros((3, 5), np.float32)}, order)
        assert lazy("m : embed mlp", source, stored, sizes).split_order[0] == cut


def test_a_block_of_pairs_reads_whole_heads() -> None:
    source = layers()
    block = lazy("q : embed layer head (pair half)", source)[0:5, 2:3, 1:2, 0:2]
    np.testing.assert_array_equal(block[:, 0, 0], source.arrays["2.w"][[4, 6]].T)
    assert (source.reads, source.bytes_read) == (1, 4 * 5 * 4)


def test_a_range_of_layers_that_both_sides_stack_is_read_at_once() -> None:
    source = Arrays({"w": np.arange(10, dtype=np.float32).reshape(2, 5)})
    stored, target = (Layout([Table({"w": f"n : {axes}"}, only={"layer": (1, 3)})]) for axes in
                      ("layer embed", "embed layer"))  # fmt: skip
    tensor = resolve(source, stored, target, SIZES, FLOAT32).tensors["w"]
    np.testing.assert_array_equal(tensor[:, :], source.arrays["w"].T)
    assert source.reads == 1


def test_a_tensor_that_is_read_twice_is_a_source_once() -> None:
    source, stored = Arrays({"w": np.arange(20, dtype=np.float32).reshape(4, 5)}), Layout({"w": "n : layer embed"})
    target = Layout([Table({name: "n : layer embed"}, only={"layer": layers}) for name, layers in
                     {"even": (0, 2), "odd": (1, 3)}.items()])  # fmt: skip
    tensors = resolve(source, stored, target, SIZES, FLOAT32).tensors
    assert tensors["odd"].sources == ("w",)
    np.testing.assert_array_equal(tensors["odd"][:, :], source.arrays["w"][1::2])


@pytest.mark.parametrize(
    ("target", "order"),
    [
        ("q : embed layer head head_dim", (1, 2, 3, 0)),
        ("q : (head head_dim) layer embed", (1, 0, 2)),
        ("q : embed (pair half) head layer", (3, 2, 1, 0)),
        ("q : (layer embed) head head_dim", (0, 1, 2)),
    ],
)
def test_cutting_in_order_leaves_reads_contiguous(target: str, order: tuple[int, ...]) -> None:
    assert lazy(target).split_order == order


def test_the_order_of_cutting_is_that_of_the_largest_role_and_passes_over_axes_of_size_one() -> None:
    axes = {"layer": 1, "wide": 6, "narrow": 2, "embed": 5, "one": 1}
    sizes = Sizes(axes, {})
    source = Arrays({"a": np.zeros((2, 5), np.float32), "b": np.zeros((5, 6), np.float32)})
    stored = Layout({"a": "a : narrow embed", "b": "b : embed wide"})
    joined = resolve(source, stored, Layout({"w": "a | b : (narrow | wide) embed"}), sizes, FLOAT32).tensors["w"]
    assert joined.split_order == (1, 0)
    ones = Arrays({"a": np.zeros((1, 2, 5), np.float32)})
    assert lazy("a : embed (one narrow)", ones, Layout({"a": "a : one narrow embed"}), sizes).split_order == (1, 0)
    assert lazy("a : (one embed) narrow", ones, Layout({"a": "a : one narrow embed"}), sizes).split_order == (1, 0)


def test_a_block_outside_the_padding_does_not_read() -> None:
    source = Arrays({"e": np.ones((7, 5), np.float32)})
    tensor = lazy("embed : vocab embed ; pad vocab 10", source, Layout({"e": "embed : vocab embed"}))
    assert not tensor[7:10, 0:5].any()
    assert source.reads == 0
    assert tensor[3:3, 0:5].shape == (0, 5)
    assert tensor[5:2, 0:5].shape == (0, 5)
    assert source.reads == 0


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ((slice(0, 1),), "1 slices for 2 dimensions"),
        ((slice(0, 1),) * 3, "3 slices for 2 dimensions"),
        ((slice(None, None, 2), slice(0, 1)), "only step 1 is supported, not 2"),
    ],
)
def test_what_is_no_box_is_refused(index: tuple[slice, ...], complaint: str) -> None:
    tensor = lazy("embed : embed vocab", Arrays({"e": np.ones((7, 5))}), Layout({"e": "embed : vocab embed"}))
    with pytest.raises(IndexError, match=complaint):
        tensor[index]
    with pytest.raises(IndexError, match=complaint):
        tensor.read_into(np.empty((1, 1), np.float32), index)


def test_slices_count_from_the_end_too() -> None:
    assert normalised((slice(-2, None), slice(3, 1)), (5, 4)) == (slice(3, 5), slice(3, 3))


@pytest.mark.parametrize("sizes", [(), (6,), (2, 3), (3, 1, 2), (2, 2, 3), (1, 4)], ids=str)
def test_stretches_cover_a_slice_once_in_order(sizes: tuple[int, ...]) -> None:
    positions = np.arange(np.prod(sizes, dtype=int)).reshape(sizes)
    for start in range(positions.size + 1):
        for stop in range(start, positions.size + 1):
            found = [
                positions[tuple(slice(*pair) for pair in ranges)].ravel() for ranges in ranges_of(start, stop, sizes)
            ]
            assert [int(each) for part in found for each in part] == list(range(start, stop))
            assert len(found) <= 2 * max(len(sizes), 1) - 1


def test_widened_ranges_are_the_smallest_stretch() -> None:
    sizes = (2, 3, 2)
    positions = np.arange(12).reshape(sizes)
    pairs = [[(a, b) for a in range(size) for b in range(a + 1, size + 1)] for size in sizes]
    for ranges in np.ndindex(*(len(some) for some in pairs)):
        limits = [some[number] for some, number in zip(pairs, ranges, strict=True)]
        inside = positions[tuple(slice(*pair) for pair in limits)]
        read = widened(limits, sizes)
        start, stop = stretch(read, sizes)
        assert list(range(start, stop)) == positions[tuple(slice(*pair) for pair in read)].ravel().tolist()
        assert start <= inside.min()
        assert stop > inside.max()
        if inside.size == inside.max() - inside.min() + 1:
            assert (start, stop) == (inside.min(), inside.max() + 1)


def test_scratch_memory_is_used_again_in_a_thread_and_never_by_two() -> None:
    scratch = Scratch()
    first = scratch.array((4, 3), np.dtype(np.float32))
    second = scratch.array((2,), np.dtype(np.int16))
    assert (first.shape, first.dtype, second.shape, second.dtype) == ((4, 3), np.float32, (2,), np.int16)
    assert np.shares_memory(first, second)
    assert scratch.array((40,), np.dtype(np.float64)).shape == (40,)
    others: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: others.append(scratch.array((4, 3), np.dtype(np.float32))))
    thread.start()
    thread.join()
    assert not np.shares_memory(others[0], scratch.array((4, 3), np.dtype(np.float32)))
