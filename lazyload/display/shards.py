"""How a model lies on a mesh: which part of each kind of array each device holds, and why some are whole."""

from collections.abc import Mapping
from dataclasses import dataclass

from lazyload.display import text
from lazyload.display.drawing import draw_array, draw_mesh
from lazyload.display.html import Html, element, page, table
from lazyload.display.kinds import Kind, folded, which
from lazyload.display.picture import Picture
from lazyload.partition import Dimension, Grid, Partition, pieces


@dataclass(frozen=True)
class Placed:
    """One array and where it lies.

    Attributes:
        dtype: The name of its dtype.
        nbytes: Its size in bytes.
        partition: How it is split over the mesh.
        elsewhere: Where it does not lie on the mesh: the devices that hold all of it.
    """

    dtype: str
    nbytes: int
    partition: Partition
    elsewhere: tuple[int, ...] = ()

    def on_each(self, grid: Grid) -> int:
        """The bytes of it that each device holds, of those that hold any."""
        return self.nbytes // pieces(self.partition, grid.axes)

    def devices(self, grid: Grid) -> tuple[int, ...]:
        """The devices that hold any of it."""
        return self.elsewhere or grid.devices


@dataclass(frozen=True)
class Shards:
    """A model on a mesh.

    Attributes:
        title: What the model is called.
        grid: The mesh.
        arrays: Its arrays by path.
    """

    title: str
    grid: Grid
    arrays: Mapping[str, Placed]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, each once."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def device_bytes(self) -> dict[int, int]:
        """The bytes that each device holds."""
        held = dict.fromkeys(self.grid.devices, 0)
        for array in self.arrays.values():
            for device in array.devices(self.grid):
                held[device] = held.get(device, 0) + array.on_each(self.grid)
        return held

    @property
    def replicated_bytes(self) -> int:
        """Bytes of the arrays that every device of the mesh has all of; 0 on one device."""
        if len(self.grid.devices) == 1:
            return 0
        whole = [array for array in self.arrays.values() if array.on_each(self.grid) == array.nbytes]
        return sum(array.nbytes for array in whole if not array.elsewhere)

    def picture(self) -> Picture:
        """The same for a notebook and for a terminal."""
        return Picture(_text(self), _html(self))


def each(shards: Shards) -> str:
    """The bytes of a device in words: `2.1 GB on each of 8 devices`, or what they are between."""
    held = shards.device_bytes.values()
    number, least, most = len(held), text.size(min(held)), text.size(max(held))
    if number == 1:
        return f"{most} on one device"
    return f"{most} on each of {number} devices" if least == most else f"{least} to {most} on {number} devices"


def _summary(shards: Shards) -> str:
    where = f"mesh {text.mesh(shards.grid.axes)}: " if shards.grid.axes else ""
    copies = shards.replicated_bytes
    return f"{where}{each(shards)}, {text.size(shards.nbytes)} in all" + (
        f", {text.size(copies)} of it copied to every device" if copies else ""
    )


def _html(shards: Shards) -> Html:
    kinds = folded(dict(shards.arrays))
    rows = [_row(kind, kinds, shards.grid) for kind in kinds]
    return page(
        shards.title,
        _summary(shards),
        draw_mesh(shards.grid),
        table(("array", "its dimensions", "held by", "a device", "in all"), rows, right=("a device", "in all")),
    )


def _row(kind: Kind[Placed], kinds: list[Kind[Placed]], grid: Grid) -> tuple[Html | str, ...]:
    array = kind.value
    times = f"{kind.times} times, " if kind.times > 1 else ""
    layers = f"layers {which(kind, kinds)}, " if which(kind, kinds) else ""
    return (
        element("div", element("code", kind.name), element("div", f"{times}{layers}{array.dtype}", class_="lz-dim")),
        element("div", *(_dimension(dimension, grid) for dimension in array.partition)),
        draw_array(array.partition, grid, array.elsewhere),
        text.size(array.on_each(grid) * kind.times),
        text.size(array.nbytes * kind.times),
    )


def _dimension(dimension: Dimension, grid: Grid) -> Html:
    parts = dimension.parts(grid.axes)
    size = f"{dimension.axis} {dimension.size}".strip()
    if parts == 1:
        reason = dimension.reason.removeprefix(f"{size} ")
        return element("div", size, element("span", f", whole: {reason}", class_="lz-dim"))
    return element("div", f"{size} = {parts} x {dimension.size // parts} over {', '.join(dimension.over)}")


def _text(shards: Shards) -> str:
    kinds = folded(dict(shards.arrays))
    rows = [
        (
            kind.name,
            str(kind.times),
            which(kind, kinds),
            " ".join(_in_short(dimension, shards.grid) for dimension in kind.value.partition) or "scalar",
            text.size(kind.value.on_each(shards.grid) * kind.times),
            text.size(kind.value.nbytes * kind.times),
        )
        for kind in kinds
    ]
    header = ("array", "times", "layers", "split", "a device", "in all")
    lines = [
        f"{shards.title}: {_summary(shards)}",
        "",
        text.columns(header, rows, right=("times", "a device", "in all")),
    ]
    if reasons := _reasons(kinds, shards.grid):
        lines += ["", "what is not split, and why:"]
        lines += [f"  {reason}: {', '.join(names[:2])}{_further(names[2:])}" for reason, names in reasons.items()]
    return "\n".join(lines)


def _in_short(dimension: Dimension, grid: Grid) -> str:
    """`embed:4096/fsdp`, or without what it is split over."""
    over = f"/{'+'.join(dimension.over)}" if dimension.parts(grid.axes) > 1 else ""
    return f"{dimension.axis or '?'}:{dimension.size}{over}"


def _reasons(kinds: list[Kind[Placed]], grid: Grid) -> dict[str, list[str]]:
    """Why dimensions are whole, and the kinds of arrays that have such ones."""
    found: dict[str, dict[str, None]] = {}
    for kind in kinds:
        for dimension in kind.value.partition:
            if dimension.parts(grid.axes) == 1 and dimension.reason:
                found.setdefault(dimension.reason, {})[kind.name] = None
    return {reason: list(names) for reason, names in found.items()}


def _further(names: list[str]) -> str:
    return f" and {len(names)} more" if names else ""
