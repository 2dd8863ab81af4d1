"""Conversions between random layouts, every block compared with a conversion written plainly in NumPy."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.in_memory import FLOAT32, SIZES, Arrays, Sizes, slices

from lazyload.errors import LayoutError
from lazyload.layouts.conversion import resolve
from lazyload.layouts.layout import Layout, Table

QUERY = {
    "a.{layer}.q": "q : (head head_dim) embed",
    "b.{layer:0..}.q": "q : embed head (pair half)",
    "c.q": "q : embed layer head head_dim",
    "d.q": "q : layer (embed head) head_dim",
    "e.{head}.{layer}.q": "q : embed (half pair)",
    "f.q": "q : (head layer) (pair half embed)",
}
MLP = {
    "a.{layer}.{gate_up:gate,up}": "mlp : mlp embed",
    "b.{layer}": "mlp : (gate_up mlp) embed",
    "c.{layer}": "mlp : embed (mlp gate_up)",
    "d.{gate_up:0,1}": "mlp : embed layer mlp",
    "e": "mlp : (layer mlp) (embed gate_up)",
}
EXPERTS = {
    "a.{layer}.{expert}.{gate_up:w1,w3}": "experts : mlp embed",
    "b.{layer}": "experts : expert embed (mlp gate_up)",
    "c.{gate_up:0,1}": "experts : expert layer embed mlp",
    "d.{expert}": "experts : layer (gate_up embed) mlp",
}
CYCLES = Table(
    {"s.layers_{kind}": "q : embed block head head_dim"}, split={"layer": ("block", "kind")}, sizes={"kind": 2}
)
NESTED = Table(
    {"n.layers": "q : embed block kind (head head_dim)"}, split={"layer": ("block", "kind")}, sizes={"kind": 2}
)
RANGES = [
    Table({"first.{layer:0..}": "q : embed head head_dim"}, only={"layer": range(0, 1)}),
    Table({"rest": "q : embed layer head (pair half)"}, only={"layer": range(1, 4)}),
]
HALVES = [
    Table({"low": "q : (head layer) embed head_dim"}, only={"layer": range(2)}),
    Table({"high": "q : layer (pair half) (head embed)"}, only={"layer": range(2, 4)}),
]


def layouts_of(table: Mapping[str, str]) -> list[Layout]:
    return [Layout({path: entry}) for path, entry in table.items()]


GROUPS = [
    [
        *layouts_of(QUERY),
        Layout([CYCLES]),
        Layout([NESTED]),
        Layout(RANGES),
        Layout(HALVES),
        Layout({"g.q": "q : embed layer head head_dim ; scale 0.5"}),
    ],
    layouts_of(MLP),
    layouts_of(EXPERTS),
]
PAIRS = [pair for group in GROUPS for pair in itertools.product(group, group)]


def role_values(layout: Layout) -> dict[str, np.ndarray]:
    """A value for each element of each role, told apart by axis: role -> array over all axes, sorted by name."""
    names = {"q": ("layer", "head", "half", "pair", "embed"), "mlp": ("layer", "gate_up", "mlp", "embed"),
             "experts": ("layer", "expert", "gate_up", "mlp", "embed")}  # fmt: skip
    return {
        role: np.arange(np.prod([SIZES.axes[axis] for axis in axes])).reshape([SIZES.axes[axis] for axis in axes])
        for role, axes in names.items()
    }


def store(layout: Layout) -> dict[str, np.ndarray]:
    """The role's values in a layout, element by element: the plain meaning of the notation."""
    axes = {"q": ("layer", "head", "half", "pair", "embed"), "mlp": ("layer", "gate_up", "mlp", "embed"),
            "experts": ("layer", "expert", "gate_up", "mlp", "embed")}  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for table in layout.tables:
        ((path, text),) = table.lines.items()
        text, *operations = text.split(";")
        role, pattern = (word.strip() for word in text.split(":"))
        scale = float(operations[0].split()[1]) if operations else 1.0
        values = role_values(layout)[role]
        layers = list(table.only.get("layer", range(4)))
        for index in np.ndindex(values.shape):
            at = dict(zip(axes[role], index, strict=True))
            if at["layer"] not in layers:
                continue
            value = values[index]
            position = layers.index(at["layer"])
            at |= {"block": position // 2, "kind": position % 2}
            extents = {**SIZES.axes, "layer": len(layers), "block": len(layers) // 2, "kind": 2}
            if role == "q":
                at["head_dim"] = at["half"] * 2 + at["pair"]
            name = path
            for axis, names in (("gate_up", "gate,up"), ("gate_up", "w1,w3"), ("gate_up", "0,1")):
                name = name.replace(f"{{{axis}:{names}}}", names.split(",")[at.get("gate_up", 0)])
            name = name.replace("{layer:0..}", str(position))
            for axis in at:
                name = name.replace(f"{{{axis}}}", str(at[axis]))
            at["layer"] = position
            place, shape = [], []
            for dimension in pattern.replace("( ", "(").split(" ") if "(" not in pattern else split_dimensions(pattern):
                where, extent = 0, 1
                for axis in dimension.strip("()").split():
                    where, extent = where * extents[axis] + at[axis], extent * extents[axis]
                place.append(where)
                shape.append(extent)
            arrays.setdefault(name, np.full(shape, -1, np.float32))[tuple(place)] = value * scale
    return arrays


def split_dimensions(pattern: str) -> list[str]:
    dimensions, depth = [""], 0
    for letter in pattern:
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            dimensions.append("")
        else:
            dimensions[-1] += letter
    return dimensions


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair_of_layouts_agrees_with_the_plain_meaning(source: Layout, target: Layout) -> None:
    conversion = resolve(Arrays(store(source)), source, target, SIZES, FLOAT32)
    expected = store(target)
    assert set(conversion.tensors) == set(expected)
    for path, lazy in conversion.tensors.items():
        np.testing.assert_array_equal(lazy[tuple(slice(0, size) for size in lazy.shape)], expected[path])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_slice_agrees_with_the_plain_meaning(data: st.DataObject) -> None:
    source, target = data.draw(st.sampled_from(PAIRS))
    arrays = Arrays(store(source))
    conversion = resolve(arrays, source, target, SIZES, FLOAT32)
    path = data.draw(st.sampled_from(sorted(conversion.tensors)))
    lazy = conversion.tensors[path]
    index = data.draw(slices(lazy.shape))
    expected = store(target)[path][index]
    np.testing.assert_array_equal(lazy[index], expected)
    if expected.size:
        assert set(lazy.sources_of(index)) == arrays.names_read
        assert lazy.rows_of(index) == arrays.rows_read, "and no more"
    strided = np.full([2 * size for size in expected.shape], -7, np.float32)[
        tuple([slice(None, None, 2)] * expected.ndim)
    ]
    lazy.read_into(strided, index)
    np.testing.assert_array_equal(strided, expected)


def test_what_a_format_makes_up_is_read_from_nothing_both_ways() -> None:
    source = Layout({"a.{layer}": "q : head head_dim"})
    target = Layout(
        [Table({"b": "q : layer head head_dim"}), Table({"{head:c}": "q : layer head_dim ; fill 1"}, {"head": (0,)})]
    )
    stored = Arrays({f"a.{layer}": np.full((3, 4), np.nan, np.float32) for layer in range(4)})
    made_up = resolve(stored, source, target, SIZES, FLOAT32).tensors["c"]
    np.testing.assert_array_equal(made_up[:, 1:3], np.ones((4, 2), np.float32))
    assert stored.reads == 0
    there = {"b": np.arange(48, dtype=np.float32).reshape(4, 3, 4), "c": np.ones((4, 4), np.float32)}
    back = resolve(Arrays(there), target, source, SIZES, FLOAT32)
    assert back.skipped == ("c",)
    np.testing.assert_array_equal(back.tensors["a.2"][:, :], there["b"][2])


def test_whole_numbers_become_others_and_no_fractions() -> None:
    source, target = Layout({"a": "t : vocab head"}), Layout({"b": "t : vocab head ; as int32"})
    model = Sizes(SIZES.axes, layers={"t": ()})
    numbers = np.arange(21, dtype=np.int64).reshape(7, 3)
    (lazy,) = resolve(Arrays({"a": numbers}), source, target, model, FLOAT32).tensors.values()
    assert lazy.dtype == np.int32
    np.testing.assert_array_equal(lazy[:, :], numbers)
    with pytest.raises(LayoutError, match="b: int32 cannot hold float32"):
        resolve(Arrays({"a": numbers.astype(np.float32)}), source, target, model, FLOAT32)
