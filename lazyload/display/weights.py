"""Where the bytes of a model go: by block, by layer, and by kind of array."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lazyload.display import bars, text
from lazyload.display.html import Html, element, more, table
from lazyload.display.kinds import block_of, folded, layer_of, which

_COLOURS = {
    "attn": bars.BLUE,
    "mlp": bars.ORANGE,
    "moe": bars.RED,
    "linear_attn": bars.PINK,
    "embed": bars.SKY,
    "lm_head": bars.GREEN,
    "norms": bars.GREY,
    "other": bars.GREY,
}
_MOST_BLOCKS = 8
_HIGH = 84.0
"""How high the chart of layers is, in pixels; what would not be one pixel high is left out."""


@dataclass(frozen=True)
class Array:
    """One array of a model.

    Attributes:
        shape: Its shape.
        dtype: The name of its dtype.
        nbytes: Its size in bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


Arrays = Mapping[str, Array]


def of_records(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Array]:
    """The arrays that a manifest records."""
    return {path: Array(tuple(record["shape"]), record["dtype"], record["nbytes"]) for path, record in records.items()}


def by_block(arrays: Arrays) -> dict[str, int]:
    """The bytes of each block of the model, the largest first; those of small ones together, where there are many."""
    found: dict[str, int] = {}
    for path, array in arrays.items():
        block = block_of(path)
        found[block] = found.get(block, 0) + array.nbytes
    ranked = sorted(found.items(), key=lambda item: -item[1])
    if len(ranked) <= _MOST_BLOCKS:
        return dict(ranked)
    rest = sum(nbytes for _, nbytes in ranked[_MOST_BLOCKS - 1 :])
    return {**dict(ranked[: _MOST_BLOCKS - 1]), "other": rest}


def dtypes(arrays: Arrays) -> str:
    """The dtypes of the arrays in a line, that of most bytes first: `bfloat16; float32: 24 arrays, 12.3 kB`."""
    found: dict[str, list[int]] = {}
    for array in arrays.values():
        found.setdefault(array.dtype, []).append(array.nbytes)
    first, *others = sorted(found.items(), key=lambda item: -sum(item[1])) or [("none", [])]
    said = [f"{dtype}: {len(sizes)} arrays, {text.size(sum(sizes))}" for dtype, sizes in others]
    return "; ".join([first[0], *said])


def bar(arrays: Arrays) -> Html:
    """One bar of the blocks, and what they take."""
    blocks = by_block(arrays)
    colours, said = _colours(blocks), _said(blocks)
    title = "bytes by block: " + ", ".join(f"{name} {share}" for name, share in said.items())
    return element("div", bars.stacked(blocks, colours, said, title), bars.legend(colours, said))


def chart(arrays: Arrays) -> Html:
    """The same layer by layer, in the model's order; nothing for arrays that are of no layer by their paths."""
    blocks = by_block(arrays)
    colours = _colours(blocks)
    stacks: dict[str, dict[str, float]] = {}
    for path, array in arrays.items():
        number, block = layer_of(path), block_of(path)
        block = block if block in blocks else "other"
        stack = stacks.setdefault(path.split(".")[0] if number is None else f"layer {number}", {})
        stack[block] = stack.get(block, 0) + array.nbytes
    if not any(name.startswith("layer ") for name in stacks):
        return Html("")
    totals = {name: sum(stack.values()) for name, stack in stacks.items()}
    tallest = max(totals, key=lambda name: totals[name])
    names = [name for name in _in_order(stacks) if totals[name] * _HIGH >= totals[tallest]]
    said = {
        f"{name}, {text.size(totals[name])}": {block: stacks[name][block] for block in blocks if block in stacks[name]}
        for name in names
    }
    title = f"bytes of {len(names)} parts of the model in its order: {names[0]} to {names[-1]}"
    caption = (
        f"in the order of the model, {names[0]} to {names[-1]}; the largest is {tallest}, {text.size(totals[tallest])}"
    )
    return element(
        "div", bars.columns(said, colours, _HIGH, title), element("div", caption, class_="lz-dim"), class_="lz-chart"
    )


def kinds_table(arrays: Arrays) -> Html:
    """Each kind of array in a row."""
    rows: list[tuple[Html | str, ...]] = [(element("code", name), *cells) for name, *cells in _rows(arrays)]
    return table(_HEADER, rows, right=_NUMBERS)


def as_html(arrays: Arrays) -> Html:
    """All of it."""
    return element("div", bar(arrays), chart(arrays), more("by kind of array", kinds_table(arrays)))


def as_text(arrays: Arrays) -> str:
    """The kinds of arrays in columns, then the blocks in a line."""
    blocks = ", ".join(f"{name} {share}" for name, share in _said(by_block(arrays)).items())
    return f"{text.columns(_HEADER, list(_rows(arrays)), right=_NUMBERS)}\n\n{blocks}"


_HEADER = ("array", "times", "layers", "shape", "dtype", "each", "in all")
_NUMBERS = ("times", "each", "in all")


def _rows(arrays: Arrays) -> list[tuple[str, ...]]:
    kinds = folded(dict(arrays))
    return [
        (
            kind.name,
            str(kind.times),
            which(kind, kinds),
            text.shape(kind.value.shape),
            kind.value.dtype,
            text.size(kind.value.nbytes),
            text.size(kind.value.nbytes * kind.times),
        )
        for kind in kinds
    ]


def _colours(blocks: Mapping[str, int]) -> dict[str, str]:
    return bars.palette(list(blocks), _COLOURS)


def _said(blocks: Mapping[str, int]) -> dict[str, str]:
    """Bytes and share of each block."""
    total = sum(blocks.values()) or 1
    return {name: f"{text.size(nbytes)} ({nbytes / total:.1%})" for name, nbytes in blocks.items()}


def _in_order(stacks: Iterable[str]) -> list[str]:
    """What comes before the layers, the layers, and what comes after them."""
    layers = sorted((name for name in stacks if name.startswith("layer ")), key=lambda name: int(name.split()[1]))
    others = [name for name in stacks if not name.startswith("layer ")]
    before = [name for name in others if "embed" in name]
    return [*before, *layers, *(name for name in others if name not in before)]
