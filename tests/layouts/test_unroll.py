"""Which arrays a layout comes to: their paths, shapes and axes; layers of several sizes; and what cannot be."""

import itertools

import numpy as np
import pytest
from support.in_memory import FLOAT32, SIZES, Arrays, Sizes

from lazyload.errors import LayoutError
from lazyload.layouts.axes import Group
from lazyload.layouts.conversion import axes_of, resolve
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.unroll import unroll_tree

# Every third layer is as wide as two others, as in Gemma 4.
NARROW = Group((0, 1, 3, 4), {**SIZES.axes, "layer": 6})
WIDE = Group((2, 5), {**SIZES.axes, "layer": 6, "head_dim": 8, "pair": 4})
TWO_SIZES = Sizes(NARROW.sizes, of_role={role: [NARROW, WIDE] for role in ("q", "k", "v")})
STORED = Layout({"{layer}.q": "q : (head head_dim) embed"})
CYCLE = {"split": {"layer": ("cycle", "place")}, "sizes": {"place": 3}}


def checkpoint() -> Arrays:
    heads = {layer: 3 * group.sizes["head_dim"] for group in (NARROW, WIDE) for layer in group.layers}
    return Arrays({f"{n}.q": np.arange(heads[n] * 5, dtype=np.float32).reshape(-1, 5) + 1000 * n for n in range(6)})


def shapes(layout: Layout, sizes: Sizes = SIZES) -> dict[str, tuple[int, ...]]:
    return {path: shape for path, (shape, _) in axes_of(unroll_tree(layout, sizes)).items()}


def test_shapes_and_axes_are_known_without_a_source() -> None:
    layout = Layout({"q": "q : embed layer (head head_dim)", "i.{layer}": "q : embed head (pair half)"})
    axes = axes_of(unroll_tree(layout, SIZES))
    assert list(axes) == ["q", "i.0", "i.1", "i.2", "i.3"]
    assert axes["q"] == ((5, 4, 12), ("embed", "layer", "head"))
    assert axes["i.3"] == ((5, 3, 4), ("embed", "head", "head_dim"))


def test_paths_write_indices_names_positions_and_parts_of_axes() -> None:
    entry, only = "mlp : mlp embed", {"layer": (1, 3)}
    assert list(shapes(Layout([Table({"{gate_up:a,b}.{layer}": entry}, only)]))) == ["a.1", "a.3", "b.1", "b.3"]
    assert list(shapes(Layout([Table({"x.{layer:0..}": entry}, only)]))) == ["x.0", "x.1"]
    pairs = Table({"{place}": "mlp : cycle (gate_up mlp) embed"}, only, {"layer": ("cycle", "place")}, {"place": 2})
    assert axes_of(unroll_tree(Layout([pairs]), SIZES)) == {
        place: ((1, 6, 5), ("layer", "gate_up", "embed")) for place in ("0", "1")
    }


def test_a_model_of_one_layer() -> None:
    sizes, source = Sizes({**SIZES.axes, "layer": 1}), Arrays({"0.n": np.arange(5, dtype=np.float32)})
    stored, stacked = Layout({"{layer}.n": "n : embed"}), Layout({"n": "n : embed layer"})
    there = resolve(source, stored, stacked, sizes, FLOAT32).tensors["n"][:, :]
    np.testing.assert_array_equal(there[:, 0], range(5))
    np.testing.assert_array_equal(
        resolve(Arrays({"n": there}), stacked, stored, sizes, FLOAT32).tensors["0.n"][:,], range(5)
    )


def test_an_axis_of_three_parts_two_of_them_in_the_path() -> None:
    table = Table({"{a}.{c}": "n : b embed"}, split={"layer": ("a", "b", "c")}, sizes={"b": 2, "c": 2})
    source = Arrays({f"{layer}.n": np.full(5, layer, np.float32) for layer in range(8)})
    sizes = Sizes({"layer": 8, "embed": 5})
    tensors = resolve(source, Layout({"{layer}.n": "n : embed"}), Layout([table]), sizes, FLOAT32).tensors
    assert {path: lazy[:, :][:, 0].tolist() for path, lazy in tensors.items()} == {
        "0.0": [0, 2], "0.1": [1, 3], "1.0": [4, 6], "1.1": [5, 7]}  # fmt: skip


def test_names_give_an_axis_its_size() -> None:
    assert list(shapes(Layout({"{kind:x,y,z}": "mlp : mlp"}))) == ["x", "y", "z"]


def test_a_single_number_a_layer() -> None:
    stored, stacked = Layout({"{layer}.s": "scalar :"}), Layout({"s": "scalar : layer"})
    source = Arrays({f"{n}.s": np.array(n, np.float32) for n in range(4)})
    np.testing.assert_array_equal(resolve(source, stored, stacked, SIZES, FLOAT32).tensors["s"][:,], range(4))
    back = resolve(Arrays({"s": np.arange(4, dtype=np.float32)}), stacked, stored, SIZES, FLOAT32).tensors
    assert [back[f"{n}.s"][()] for n in range(4)] == [0, 1, 2, 3]


def test_layers_may_be_of_two_kinds() -> None:
    sizes = Sizes(SIZES.axes, layers={"dense": (0, 3), "sparse": (1, 2)})
    files = {"l.0.d": 0, "l.3.d": 3, "l.1.s": 1, "l.2.s": 2}
    source = Arrays({name: np.full(5, value, np.float32) for name, value in files.items()})
    stored = Layout({"l.{layer}.d": "dense : embed", "l.{layer}.s": "sparse : embed"})
    target = Layout({"d": "dense : layer embed", "s.{layer:0..}": "sparse : embed"})
    tensors = resolve(source, stored, target, sizes, FLOAT32).tensors
    np.testing.assert_array_equal(tensors["d"][:, :][:, 0], [0, 3])
    assert [tensors[f"s.{n}"][:,][0] for n in range(2)] == [1, 2]


def test_roles_that_a_model_lacks_are_left_out() -> None:
    sizes = Sizes(SIZES.axes, of_role={"k": [], "v": [], "none": [Group((), SIZES.axes)]})
    layout = Layout({"q.{layer}": "q : head", "k.{layer}": "k : width", "kv": "k | v : (head | head)",
                     "none.{layer}": "none : head", "stacked": "none : layer head"}, general=True)  # fmt: skip
    assert list(shapes(layout, sizes)) == ["q.0", "q.1", "q.2", "q.3"]
    assert list(resolve(Arrays({f"q.{n}": np.zeros(3) for n in range(4)}), layout, layout, sizes, FLOAT32).tensors) == [
        "q.0", "q.1", "q.2", "q.3"]  # fmt: skip


def test_a_table_for_no_layers_has_no_arrays() -> None:
    assert shapes(Layout([Table({"q": "q : layer head", "{layer}.q": "q : head"}, only={"layer": ()})])) == {}


@pytest.mark.parametrize("others", [[], [Group((0, 1), SIZES.axes)]])
def test_roles_that_share_an_array_are_in_the_same_layers(others: list[Group]) -> None:
    layout = Layout({"{layer}.qk": "q | k : (head | kv_head)"})
    with pytest.raises(LayoutError, match=r"line '\{layer\}.qk': 'q' and 'k' share an array, but not all layers"):
        unroll_tree(layout, Sizes(SIZES.axes, of_role={"k": others}))


@pytest.mark.parametrize("path", ["layers.{layer}.q", "layers_{layer:0..}.q"])
def test_layers_of_two_sizes_have_arrays_of_their_own(path: str) -> None:
    source = checkpoint()
    tensors = resolve(source, STORED, Layout({path: "q : embed head (pair half)"}), TWO_SIZES, FLOAT32).tensors
    found = {"".join(filter(str.isdigit, path)): lazy for path, lazy in tensors.items()}
    assert sorted(found) == list("012345")
    for layer, lazy in found.items():
        stored = source.arrays[f"{layer}.q"]
        expected = stored.reshape(3, 2, -1, 5).transpose(3, 0, 2, 1).reshape(5, 3, -1)
        np.testing.assert_array_equal(lazy[:, :, :], expected)


def test_slices_of_layers_of_two_sizes_are_read_in_one_piece_each() -> None:
    source = checkpoint()
    target = Layout({"{layer}.k": "q : embed head head_dim"})
    tensors = resolve(source, STORED, target, TWO_SIZES, FLOAT32).tensors
    for layer, lazy in enumerate(tensors[f"{n}.k"] for n in range(6)):
        before = source.bytes_read, source.reads
        block = lazy[0:5, 1:3, 0 : lazy.shape[2]]
        np.testing.assert_array_equal(block, source.arrays[f"{layer}.q"].reshape(3, -1, 5)[1:3].transpose(2, 0, 1))
        assert (source.bytes_read - before[0], source.reads - before[1]) == (block.nbytes, 1)


def test_each_place_of_a_cycle_is_stacked_by_itself() -> None:
    source = checkpoint()
    for target in (
        Layout([Table({"{place}": "q : embed cycle head head_dim"}, **CYCLE)]),
        Layout([Table({f"{n}": "q : embed layer head head_dim"}, only={"layer": range(n, 6, 3)}) for n in range(3)]),
    ):
        tensors = resolve(source, STORED, target, TWO_SIZES, FLOAT32).tensors
        assert {path: lazy.shape for path, lazy in tensors.items()} == {
            "0": (5, 2, 3, 4), "1": (5, 2, 3, 4), "2": (5, 2, 3, 8)}  # fmt: skip
        for place, cycle in itertools.product(range(3), range(2)):
            stored = source.arrays[f"{3 * cycle + place}.q"]
            np.testing.assert_array_equal(
                tensors[f"{place}"][:, cycle : cycle + 1, :, :][:, 0], stored.reshape(3, -1, 5).transpose(2, 0, 1)
            )


def test_blocks_within_which_the_layers_of_one_size_are_stacked_again() -> None:
    source = checkpoint()
    narrow = {"only": {"layer": NARROW.layers}, "split": {"layer": ("block", "local")}, "sizes": {"local": 2}}
    target = Layout(
        [
            Table({"local": "q : embed block local head head_dim"}, **narrow),
            Table({"global": "q : embed layer head head_dim"}, only={"layer": WIDE.layers}),
        ]
    )
    tensors = resolve(source, STORED, target, TWO_SIZES, FLOAT32).tensors
    assert {path: lazy.shape for path, lazy in tensors.items()} == {"local": (5, 2, 2, 3, 4), "global": (5, 2, 3, 8)}
    for block, local in itertools.product(range(2), range(2)):
        found = tensors["local"][:, block : block + 1, local : local + 1, :, :][:, 0, 0]
        stored = source.arrays[f"{3 * block + local}.q"]
        np.testing.assert_array_equal(found, stored.reshape(3, -1, 5).transpose(2, 0, 1))
        whole = tensors["global"][:, block : block + 1, :, :][:, 0]
        np.testing.assert_array_equal(whole, source.arrays[f"{3 * block + 2}.q"].reshape(3, -1, 5).transpose(2, 0, 1))


def test_concatenated_roles_of_two_sizes() -> None:
    joined = Layout({"{layer}": "q | k | v : (head head_dim | kv_head head_dim | kv_head head_dim)"})
    assert shapes(joined, TWO_SIZES) == {"0": (20,), "1": (20,), "3": (20,), "4": (20,), "2": (40,), "5": (40,)}


@pytest.mark.parametrize(
    "table",
    [
        Table({"t": "q : embed layer head head_dim"}),
        Table({"t": "q : embed (head head_dim)"}),
        Table({"{cycle}": "q : place head head_dim"}, **CYCLE),
    ],
    ids=["stacked", "without layers", "stacked by cycle"],
)
def test_layers_of_two_sizes_are_no_one_array(table: Table) -> None:
    with pytest.raises(LayoutError) as error:
        unroll_tree(Layout([table]), TWO_SIZES)
    path = "t" if "t" in table.lines else "0"
    assert (
        f"{path!r} cannot hold layers of different sizes (head_dim 4, pair 2 in layers 0, 1, 3, 4; head_dim 8, pair 4 "
        "in layers 2, 5) of 'q'" in str(error.value)
    )
    assert "write {layer} in the path" in str(error.value)


@pytest.mark.parametrize("other", ["a.b", "a.b.c.d"])
def test_an_array_is_no_folder_of_others(other: str) -> None:
    for lines in ({"a": "embed : vocab", other: "embed : vocab"}, {other: "embed : vocab", "a": "embed : vocab"}):
        layout = Layout(lines, name="mine")
        with pytest.raises(LayoutError, match=rf"layout 'mine': 'a' and '{other}' cannot both be arrays"):
            unroll_tree(layout, SIZES)
        with pytest.raises(LayoutError, match=rf"layout 'mine': 'a' and '{other}' cannot both be arrays"):
            resolve(Arrays({"e": np.zeros(7)}), Layout({"e": "embed : vocab"}), layout, SIZES, FLOAT32)


def test_arrays_of_one_folder_and_of_similar_names() -> None:
    layout = Layout({"a.b": "embed : vocab", "a.c": "embed : vocab", "ab": "embed : vocab", "a_b.c": "embed : vocab"})
    assert len(axes_of(unroll_tree(layout, SIZES))) == 4


def test_tensors_of_a_checkpoint_need_be_no_tree() -> None:
    source, stored = Arrays({"a": np.zeros(7), "a.b": np.zeros(5)}), Layout({"a": "x : vocab", "a.b": "y : embed"})
    target = Layout({"x": "x : vocab", "y": "y : embed"})
    assert len(resolve(source, stored, target, SIZES, FLOAT32).tensors) == 2


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (Layout({"t": "embed : vocab width"}), "line 't': unknown axis 'width'; axes known: embed, expert, gate_up"),
        (Layout({"t": "embed : vocab embed ; pad vocab 6"}), "7 cannot be padded to 6"),
        (Layout({"{vocab:a,b}": "embed : embed"}), "2 names for vocab of size 7: a, b"),
        (Layout({"t": "embed : vocab half"}), "write head_dim alone or all of (half pair)"),
        (Layout({"t": "embed : head_dim half pair"}), "write head_dim alone or all of (half pair)"),
        (Layout([Table({"t": "embed : (block kind) embed"}, split={"vocab": ("block", "kind")})]), "size of 'kind'"),
        (
            Layout([Table({"t": "embed : block kind embed"}, split={"vocab": ("block", "kind")}, sizes={"kind": 2})]),
            "7 indices of vocab are not a multiple of 2",
        ),
        (
            Layout([Table({"t": "embed : vocab embed"}, only={"vocab": range(5, 9)})]),
            "a table for vocab [5, 6, 7, 8], but there are 7",
        ),
        (Layout([Table({"t": "embed : vocab"}, only={"vocab": [-1]})]), "a table for vocab [-1], but there are 7"),
        (Layout([Table({"t": "embed : vocab embed"}), Table({"t": "embed : embed vocab"})]), "two lines lead to 't'"),
    ],
)
def test_layouts_that_do_not_fit_the_model_are_errors(layout: Layout, complaint: str) -> None:
    with pytest.raises(LayoutError) as error:
        unroll_tree(layout, SIZES)
    assert complaint in str(error.value)


def test_padding_may_add_nothing() -> None:
    assert shapes(Layout({"t": "embed : vocab embed ; pad vocab 7"})) == {"t": (7, 5)}
