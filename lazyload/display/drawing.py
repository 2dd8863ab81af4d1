"""Drawings of meshes, and of arrays cut into pieces."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lazyload.display import text
from lazyload.display.bars import BLUE
from lazyload.display.html import Html, element, rect, svg
from lazyload.partition import Grid, Partition

_WIDTH, _HEIGHT = 176.0, 54.0
_FLAT = 22.0
"""How high an array of one dimension is."""
_FEWEST_PIXELS = 2.5
"""How small a piece may be to be told apart."""
_MOST_PANELS = 4
_MOST_DEVICES = 16
"""The number of devices in a row or column up to which a mesh is drawn."""
_GAP = 6.0
_LETTER = 6.2
"""How wide a letter is, in pixels."""
_EDGE: Mapping[str, str | float] = {"stroke": "currentColor", "stroke_opacity": 0.55, "stroke_width": 0.7}
_EMPTY: Mapping[str, str | float] = {"fill": "currentColor", "fill_opacity": 0.06, **_EDGE}
_WORDS: Mapping[str, str | float] = {
    "fill": "currentColor",
    "font_size": 11,
    "text_anchor": "middle",
    "dominant_baseline": "central",
    "pointer_events": "none",
}

Box = tuple[float, float, float, float]
"""Left, top, width and height of a piece."""


class Cuts(NamedTuple):
    """How a drawing shows the pieces of an array: panels side by side, each cut in two directions.

    Attributes:
        panels: The number of panels.
        first: Into how many parts the first of the two dimensions is split.
        second: Into how many the second one is.
    """

    panels: int
    first: int
    second: int

    @property
    def down(self) -> int:
        """The number of pieces below each other: of the dimension with fewer parts, so that there is room for words."""
        return min(self.first, self.second)

    @property
    def across(self) -> int:
        """The number of pieces side by side in a panel."""
        return max(self.first, self.second)


def draw_mesh(grid: Grid) -> Html:
    """The devices in rows, the last axis of the mesh running along them; the first one filled."""
    first = f"filled: device {grid.devices[0]}, and what it holds; numbers: the devices that hold a piece"
    *outer, (name, inner) = grid.axes.items() or [("", 1)]
    rows = math.prod(size for _, size in outer)
    drawn: list[Html] = []
    if max(rows, inner) <= _MOST_DEVICES:
        places = [(1.0 + x * 30, 1.0 + y * 18, 30.0, 18.0) for y, x in itertools.product(range(rows), range(inner))]
        drawn = list(_cells(places, list(map(str, grid.devices)), 0))
    title = f"mesh of {text.mesh(grid.axes)}" if name else "one device"
    kind = f"{len(grid.devices)} x {grid.kind}" if grid.kind else f"{len(grid.devices)} devices of an abstract mesh"
    along = f"{name} runs along the rows" + (f", {' and '.join(axis for axis, _ in outer)} down" if outer else "")
    return element(
        "div",
        *((svg(inner * 30 + 2, rows * 18 + 2, title, *drawn),) if drawn else ()),
        element("div", element("div", f"{kind}; {along}" if name else kind), element("div", first), class_="lz-dim"),
        class_="lz-mesh",
    )


def draw_array(partition: Partition, grid: Grid, elsewhere: tuple[int, ...] = ()) -> Html:
    """An array cut into its pieces, with the devices that hold each; the piece of the first device is filled.

    Args:
        partition: Where it lies.
        grid: The mesh.
        elsewhere: Where it does not lie on the mesh: the devices that hold all of it.
    """
    if elsewhere:
        title = f"all of it: {_said(elsewhere, grid)}"
        filled = 0 if grid.devices[0] in elsewhere else None
        return svg(_WIDTH, _FLAT, title, *_cells([(1.0, 1.0, _WIDTH - 2, _FLAT - 2)], [title], filled))
    holders = grid.holders(partition)
    number, most = len(holders), len(next(iter(holders.values())))
    by = "1 device" if most == 1 else f"{most} devices"
    title = f"{number} pieces, each on {by}" if number > 1 else f"all of it on {by}"
    height = _HEIGHT if len(partition) > 1 else _FLAT
    cuts = _cuts(partition, grid)
    places = list(_places(cuts, height))
    words = [_said(devices, grid) for devices in holders.values()]
    first = next(n for n, devices in enumerate(holders.values()) if grid.devices[0] in devices)
    if cuts.panels <= _MOST_PANELS and all(_has_room(said, places[0]) for said in words):
        return svg(_WIDTH, height, title, *_cells(places, words, first))
    drawn = _lines(cuts, height, places[first])
    return element("div", svg(_WIDTH, height, title, *drawn), element("div", title, class_="lz-dim"))


def _cuts(partition: Partition, grid: Grid) -> Cuts:
    """The last two dimensions that are split give the directions; those before them make panels."""
    *outer, first, second = [1, 1, *(parts for dimension in partition if (parts := dimension.parts(grid.axes)) > 1)]
    return Cuts(math.prod(outer), first, second)


def _places(cuts: Cuts, height: float) -> Iterator[Box]:
    """Where each piece is drawn, in the order of the pieces' numbers."""
    panel = (_WIDTH - 2 - _GAP * (cuts.panels - 1)) / cuts.panels
    wide, high = panel / cuts.across, (height - 2) / cuts.down
    for number, first, second in itertools.product(*map(range, cuts)):
        row, column = (first, second) if cuts.first <= cuts.second else (second, first)
        yield 1 + number * (panel + _GAP) + column * wide, 1 + row * high, wide, high


def _lines(cuts: Cuts, height: float, first: Box) -> Iterator[Html]:
    """Pieces that are too small for words: the cuts, as far as they can be told apart, and the first device's piece."""
    x, y, wide, high = first
    yield rect(1, 1, _WIDTH - 2, height - 2, **_EMPTY)
    yield rect(x, y, max(wide, _FEWEST_PIXELS), max(high, _FEWEST_PIXELS), fill=BLUE)
    if cuts.panels > 1 or min(wide, high) < _FEWEST_PIXELS:
        return
    down = [f"M{1 + number * wide:.2f} 1v{height - 2:g}" for number in range(1, cuts.across)]
    across = [f"M1 {1 + number * high:.2f}h{_WIDTH - 2:g}" for number in range(1, cuts.down)]
    width = 0.7 if min(wide, high) > 6 else 0.3
    yield element("path", d="".join(down + across), **{**_EDGE, "stroke_width": width})


def _cells(places: Sequence[Box], words: Sequence[str], first: int | None) -> Iterator[Html]:
    """Pieces with words on them, one of them filled."""
    filled: Mapping[str, str | float] = {"fill": BLUE, "fill_opacity": 1}
    boxes = [rect(*place, "", **(filled if number == first else {})) for number, place in enumerate(places)]
    yield element("g", *boxes, **_EMPTY)
    texts = []
    for number, ((x, y, wide, high), said) in enumerate(zip(places, words, strict=True)):
        colour: Mapping[str, str | float] = {"fill": "#fff"} if number == first else {}
        texts.append(element("text", said, x=x + wide / 2, y=y + high / 2, **colour))
    # Set for all at once, since a mesh may have many devices.
    yield element("g", *texts, **_WORDS)


def _has_room(label: str, place: Box) -> bool:
    _, _, wide, high = place
    return len(label) * _LETTER + 2 <= wide and high >= 12


def _said(devices: tuple[int, ...], grid: Grid) -> str:
    """The devices in short."""
    if len(devices) == len(grid.devices) > 1 and set(devices) == set(grid.devices):
        return f"all {len(devices)}"
    return text.ranges(sorted(devices), most=2)
