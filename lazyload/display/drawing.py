"""Drawings of meshes, and of arrays cut into pieces."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lazyload.display import text
from lazyload.display.bars import BLUE
from lazyload.display.html import Html, element, rect, svg
from lazyload.partition import Grid, Partition

_WIDTH, _HEIGHT = 176.0, 54.0
_FLAT = 22.0
"""How high an array of one dimension is."""
_FEWEST_PIXELS = 2.5
"""How small a piece may be to be drawn by itself."""
_MOST_PANELS = 4
_GAP = 6.0
_LETTER = 6.2
"""How wide a letter is, in pixels."""
_EDGE: Mapping[str, str | float] = {"stroke": "currentColor", "stroke_opacity": 0.55, "stroke_width": 0.7}
_EMPTY: Mapping[str, str | float] = {"fill": "currentColor", "fill_opacity": 0.06, **_EDGE}
_FILLED: Mapping[str, str | float] = {"fill": BLUE, **_EDGE}


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
    side = 30.0 if inner <= 16 else 12.0
    drawn = []
    for number, device in enumerate(grid.devices):
        y, x = divmod(number, inner)
        drawn.append(_cell(x * side + 1, y * side * 0.6 + 1, side, side * 0.6, str(device), filled=number == 0))
    title = f"mesh of {text.mesh(grid.axes)}" if name else "one device"
    kind = f"{len(grid.devices)} x {grid.kind}" if grid.kind else f"{len(grid.devices)} devices of an abstract mesh"
    along = f"{name} runs along the rows" + (f", {' and '.join(axis for axis, _ in outer)} down" if outer else "")
    is_small = rows <= 16 and inner <= 64
    return element(
        "div",
        *((svg(inner * side + 2, rows * side * 0.6 + 2, title, *drawn),) if is_small else ()),
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
        filled = grid.devices[0] in elsewhere
        title = f"all of it: {_said(elsewhere, grid)}"
        return svg(_WIDTH, _FLAT, title, _cell(1, 1, _WIDTH - 2, _FLAT - 2, title, filled=filled))
    holders = grid.holders(partition)
    number, most = len(holders), len(next(iter(holders.values())))
    by = "1 device" if most == 1 else f"{most} devices"
    title = f"{number} pieces, each on {by}" if number > 1 else f"all of it on {by}"
    height = _HEIGHT if len(partition) > 1 else _FLAT
    cuts = _cuts(partition, grid)
    places = list(_places(cuts, height))
    words = [_said(devices, grid) for devices in holders.values()]
    drawn = list(_too_many(number, height))
    if cuts.panels <= _MOST_PANELS and min(places[0][2:]) >= _FEWEST_PIXELS:
        is_first = [grid.devices[0] in devices for devices in holders.values()]
        drawn = [_cell(*place, said, filled=mark) for place, said, mark in zip(places, words, is_first, strict=True)]
    is_labelled = all(_has_room(said, *places[0][2:]) for said in words)
    below = () if is_labelled else (element("div", title, class_="lz-dim"),)
    return element("div", svg(_WIDTH, height, title, *drawn), *below)


def _cuts(partition: Partition, grid: Grid) -> Cuts:
    """The last two dimensions that are split give the directions; those before them make panels."""
    *outer, first, second = [1, 1, *(parts for dimension in partition if (parts := dimension.parts(grid.axes)) > 1)]
    return Cuts(math.prod(outer), first, second)


def _places(cuts: Cuts, height: float) -> Iterator[tuple[float, float, float, float]]:
    """Left, top, width and height of each piece, in the order of the pieces' numbers."""
    panel = (_WIDTH - 2 - _GAP * (cuts.panels - 1)) / cuts.panels
    wide, high = panel / cuts.across, (height - 2) / cuts.down
    for number, first, second in itertools.product(*map(range, cuts)):
        row, column = (first, second) if cuts.first <= cuts.second else (second, first)
        yield 1 + number * (panel + _GAP) + column * wide, 1 + row * high, wide, high


def _too_many(number: int, height: float) -> Iterator[Html]:
    """Pieces that are too small to be drawn one by one: the first one as large as it is, if that can be seen."""
    share = max(2.0, (_WIDTH - 2) / number)
    yield rect(1, 1, _WIDTH - 2, height - 2, **_EMPTY)
    yield rect(1, 1, share, height - 2, fill=BLUE)


def _cell(x: float, y: float, width: float, height: float, label: str, *, filled: bool) -> Html:
    """A piece, labelled where there is room for it."""
    has_room = _has_room(label, width, height)
    words = (_label(x + width / 2, y + height / 2, label, filled=filled),) if has_room else ()
    look = {**(_FILLED if filled else _EMPTY), **({} if min(width, height) > 6 else {"stroke_width": 0.3})}
    return element("g", rect(x, y, width, height, label, **look), *words)


def _has_room(label: str, width: float, height: float) -> bool:
    return len(label) * _LETTER + 2 <= width and height >= 12


def _label(x: float, y: float, words: str, *, filled: bool) -> Html:
    return element(
        "text",
        words,
        x=x,
        y=y,
        fill="#fff" if filled else "currentColor",
        font_size=11,
        text_anchor="middle",
        dominant_baseline="central",
        pointer_events="none",
    )


def _said(devices: tuple[int, ...], grid: Grid) -> str:
    """The devices in short."""
    if len(devices) == len(grid.devices) > 1 and set(devices) == set(grid.devices):
        return f"all {len(devices)}"
    return text.ranges(sorted(devices), most=2)
