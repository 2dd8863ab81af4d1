"""Some layers of a model, converted as a model of their own."""

import numpy as np
import pytest
from support.in_memory import FLOAT32, SIZES, Arrays, Sizes

from lazyload.errors import LayoutError
from lazyload.layouts.axes import Group
from lazyload.layouts.conversion import resolve
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.part import Part

LAYERS = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5)
STORED = {
    "numbered": (Layout({"{layer}.q": "q : head embed"}), {f"{n}.q": LAYERS[n] for n in range(4)}),
    "stacked": (Layout({"q": "q : layer head embed"}), {"q": LAYERS}),
    "side by side": (Layout({"q": "q : embed (layer head)"}), {"q": np.ascontiguousarray(LAYERS.reshape(12, 5).T)}),
    "in pairs": (
        Layout([Table({"{place}.q": "q : cycle head embed"}, split={"layer": ("cycle", "place")}, sizes={"place": 2})]),
        {f"{place}.q": np.ascontiguousarray(LAYERS[place::2]) for place in range(2)},
    ),
}
TARGETS = {
    "numbered": Layout({"{layer}.q": "q : head embed"}),
    "stacked": Layout({"q": "q : head layer embed"}),
}


def cut(layers: range, **changes: int) -> Sizes:
    return Sizes({**SIZES.axes, "layer": len(layers), **changes})


@pytest.mark.parametrize("layers", [range(0, 2), range(1, 3), range(3, 4), range(0, 4)], ids=str)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stored", STORED)
def test_layers_are_found_wherever_they_lie_and_nothing_else_is_read(stored: str, target: str, layers: range) -> None:
    layout, arrays = STORED[stored]
    source = Arrays(arrays)
    conversion = resolve(source, layout, TARGETS[target], cut(layers), FLOAT32, part=Part(SIZES, layers))
    if target == "stacked":
        there = conversion.tensors["q"][:, :, :].transpose(1, 0, 2)
    else:
        assert list(conversion.tensors) == [f"{n}.q" for n in range(len(layers))]
        there = np.stack([tensor[:, :] for tensor in conversion.tensors.values()])
    np.testing.assert_array_equal(there, LAYERS[layers.start : layers.stop])
    assert source.bytes_read == there.nbytes
    unused = {"numbered": 4 - len(layers), "in pairs": len(layers) == 1}.get(stored, 0)
    assert len(conversion.other_layers) == unused
    assert conversion.skipped == conversion.other_layers


def test_what_other_layers_lack_is_no_matter_and_what_nobody_knows_is() -> None:
    layout, arrays = STORED["numbered"]
    some = {"2.q": arrays["2.q"], "3.q": np.zeros((1, 1))}
    conversion = resolve(Arrays(some), layout, layout, cut(range(1)), FLOAT32, part=Part(SIZES, range(2, 3)))
    np.testing.assert_array_equal(conversion.tensors["0.q"][:, :], LAYERS[2])
    assert conversion.other_layers == ("3.q",)
    with pytest.raises(ValueError, match=r"3\.k: in the checkpoint"):
        resolve(Arrays({**some, "3.k": LAYERS}), layout, layout, cut(range(1)), FLOAT32, part=Part(SIZES, range(2, 3)))
    with pytest.raises(ValueError, match=r"1\.q: missing"):
        resolve(Arrays(some), layout, layout, cut(range(2)), FLOAT32, part=Part(SIZES, range(1, 3)))


def test_layers_of_several_sizes_and_tables_for_some_layers() -> None:
    sizes = {**SIZES.axes, "layer": 4}
    groups = [Group((0, 3), sizes), Group((1, 2), {**sizes, "embed": 6})]
    whole = Sizes(sizes, of_role={"q": groups, "k": [Group((2,), sizes)]})
    stored = Layout([Table({"{layer}.q": "q : embed"}), Table({"k.{layer:0..}": "k : head"}, only={"layer": [2]})])
    values = {f"{n}.q": np.arange(6 if n in (1, 2) else 5, dtype=np.float32) + n for n in range(4)}
    source = Arrays({**values, "k.0": np.ones(3, np.float32)})
    left = {**sizes, "layer": 2}
    part = Sizes(left, of_role={"q": [Group((0,), {**left, "embed": 6}), Group((1,), left)], "k": [Group((0,), left)]})
    target = Layout({"{layer}.q": "q : embed", "{layer}.k": "k : head"})
    conversion = resolve(source, stored, target, part, FLOAT32, part=Part(whole, range(2, 4)))
    assert {path: tensor.sources for path, tensor in conversion.tensors.items()} == {
        "0.q": ("2.q",),
        "1.q": ("3.q",),
        "0.k": ("k.0",),
    }
    assert conversion.other_layers == ("0.q", "1.q")


def test_an_axis_that_shrinks_with_the_layers_is_refused() -> None:
    """Its indices would mean others: the layers lie side by side in it, and the layout does not say so."""
    layout = Layout({"e": "e : vocab mlp", "{layer}.q": "q : head embed"})
    whole = Sizes(SIZES.axes, of_role={"e": [Group((), {**SIZES.axes, "mlp": 8})]})
    part = Sizes(cut(range(2)).axes, of_role={"e": [Group((), {**SIZES.axes, "mlp": 4})]})
    source = Arrays({"e": np.zeros((7, 8), np.float32), **STORED["numbered"][1]})
    with pytest.raises(LayoutError, match="'e' cannot be cut to some layers: its axis mlp has size 8"):
        resolve(source, layout, layout, part, FLOAT32, part=Part(whole, range(2)))
