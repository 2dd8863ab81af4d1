"""Cards and pictures: well-formed, escaped, the same without scripts and colours, and true."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import pytest
from jax.sharding import AbstractMesh
from support import checkpoints

import lazyload
from lazyload.display import html, text, weights
from lazyload.display.kinds import block_of, folded
from lazyload.display.picture import Picture

ODD = "<script>alert('&') \"x\"<\x1b[31m"
KNOWN = {"div", "span", "style", "table", "thead", "tbody", "tr", "th", "td", "code", "details", "summary"}
KNOWN |= {"svg", "title", "rect", "path", "text", "g"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose name means something to a browser."""
    made = checkpoints.make("qwen3_moe", tmp_path_factory.mktemp("models"))
    return made.rename(made.with_name(ODD))


@pytest.fixture(scope="module")
def shown(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that a notebook draws, of one model."""
    cache_dir = tmp_path_factory.mktemp("cache")
    model = lazyload.from_pretrained(folder, cache_dir=cache_dir, mesh=jax.make_mesh((4, 2), ("fsdp", "tp")))
    cache, report = lazyload.Cache(cache_dir), lazyload.last_report()
    plan = lazyload.plan(folder, cache_dir=cache_dir, mesh=AbstractMesh((64, 4), ("fsdp", "tp")))
    return {
        "model": model,
        "plan": plan,
        "report": report,
        "entry": cache.entries()[0],
        "cache": cache,
        "empty": lazyload.Cache(cache_dir / "none"),
        "plan.show": plan.show(),
        "report.show": report.show(),
        "sharding": lazyload.show_sharding(model),
        "planned": lazyload.show_sharding(plan),
    }


def drawn(value: Any) -> ElementTree.Element:
    return ElementTree.fromstring(value._repr_html_())


def words(element: ElementTree.Element) -> str:
    """What is read: without style and titles."""
    return " ".join(part.strip() for part in _texts(element) if part.strip())


def _texts(element: ElementTree.Element) -> Iterator[str]:
    if element.tag in ("style", f"{SVG}title"):
        return
    yield element.text or ""
    for inner in element:
        yield from _texts(inner)
        yield inner.tail or ""


@pytest.mark.parametrize(
    "name",
    ["model", "plan", "report", "entry", "cache", "empty", "plan.show", "report.show", "sharding", "planned"],
)
def test_it_is_well_formed_and_loads_nothing(shown: dict[str, Any], name: str) -> None:
    root = drawn(shown[name])
    assert root.get("class") == "lazyload"
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= KNOWN, tags - KNOWN
    written = shown[name]._repr_html_()
    assert "<script" not in written
    assert not re.search(r"url\(|@import|\bon\w+=|href|src=", written)
    assert set(re.findall(r"https?://[\w./]+", written)) <= {"http://www.w3.org/2000/svg"}
    for svg in root.iter(f"{SVG}svg"):
        title = svg.find(f"{SVG}title")
        assert title is not None
        assert svg.get("aria-label") == title.text
        assert svg.get("role") == "img"
    # Elements without an end tag would be taken for open ones in HTML.
    assert "/>" not in written


def test_it_is_small(shown: dict[str, Any]) -> None:
    for name, value in shown.items():
        most = 6_000 if name in ("model", "plan", "report", "entry", "cache", "empty") else 60_000
        assert len(value._repr_html_()) < most, name


@pytest.mark.parametrize("sizes", [(2, 4), (16, 16), (64, 64), (4096, 1)])
def test_a_large_mesh_takes_no_more_than_a_small_one(sizes: tuple[int, int], folder: Path, tmp_path: Path) -> None:
    rules = {"embed": "a", "vocab": "b", "head_dim": "b", "expert_mlp": "b"}
    picture = lazyload.show_sharding(lazyload.plan(folder, cache_dir=tmp_path), AbstractMesh(sizes, ("a", "b")), rules)
    ElementTree.fromstring(picture.html.text)
    assert len(picture.html.text) < 80_000


def test_colours_are_those_of_the_page(shown: dict[str, Any]) -> None:
    for value in shown.values():
        written = value._repr_html_()
        assert not re.search(r"(?<![-\w])color:(?!inherit)", written), "text has the page's colour"
        backgrounds = re.findall(r"background(?:-color)?:\s*([^;}\"]+)", written)
        assert {colour for colour in backgrounds if not colour.startswith("none")} <= set(_palette())
        fills = [element for element in drawn(value).iter() if element.get("fill") == "#fff"]
        assert all(element.tag == f"{SVG}text" for element in fills)


def _palette() -> list[str]:
    from lazyload.display import bars

    return [bars.BLUE, bars.SKY, bars.ORANGE, bars.RED, bars.GREEN, bars.PINK, bars.GREY]


def test_names_are_shown_as_they_are(shown: dict[str, Any]) -> None:
    for name in ("plan", "report", "entry", "cache", "plan.show", "report.show", "planned"):
        assert ODD.replace("\x1b", r"\x1b") in words(drawn(shown[name])), name
    for name, value in shown.items():
        assert "\x1b" not in value._repr_html_() + repr(value), name
        value._repr_html_().encode()


def test_the_cards_say_what_matters(shown: dict[str, Any]) -> None:
    said = {name: words(drawn(value)) for name, value in shown.items()}
    for part in ("qwen3_moe", "412,352 parameters", "824.7 kB", "bfloat16", "fsdp=4, tp=2", "on each of 8 devices"):
        assert part in said["model"], part
    assert "72.0%" in said["model"]
    for part in ("qwen3_moe", "nnx", "824.7 kB", "fsdp=64, tp=4", "converted already"):
        assert part in said["plan"], part
    for part in ("converted", "restore", "why", "has not been converted", "824.7 kB", "a second"):
        assert part in said["report"], part
    entry = shown["entry"]
    for part in (entry.key, str(entry.path), "nnx", "bfloat16"):
        assert part in said["entry"], part
    assert "1 converted checkpoint, 824.7 kB" in said["cache"]
    assert entry.key[:8] in said["cache"]
    assert "0 converted checkpoints" in said["empty"]


def test_the_parts_of_a_bar_are_as_long_as_their_bytes(shown: dict[str, Any]) -> None:
    plan = shown["plan"]
    bar = next(drawn(plan).iter(f"{SVG}svg"))
    lengths = {}
    for rect in bar.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        assert title is not None
        lengths[str(title.text).split(":")[0]] = float(rect.get("width", "0"))
    blocks = weights.by_block({path: weights.Array(p.shape, p.dtype, p.nbytes) for path, p in plan.parameters.items()})
    assert lengths == pytest.approx({name: nbytes / plan.nbytes * 1000 for name, nbytes in blocks.items()}, abs=0.01)
    assert sum(blocks.values()) == plan.nbytes
    moe = [p.nbytes for path, p in plan.parameters.items() if ".moe." in path]
    assert blocks["moe"] == sum(moe)


def test_the_piece_of_the_first_device_is_filled(shown: dict[str, Any]) -> None:
    mesh, *arrays = drawn(shown["sharding"]).iter(f"{SVG}svg")
    for drawing in (mesh, *arrays):
        filled = [rect for rect in drawing.iter(f"{SVG}rect") if rect.get("fill")]
        white = [word.text for word in drawing.iter(f"{SVG}text") if word.get("fill")]
        assert len(filled) == len(white) == 1
        assert white[0] in ("0", "0-1", "0, 2, 4, 6", "all 8")
    table, *_ = (svg for svg in arrays if svg.get("aria-label") == "8 pieces, each on 1 device")
    assert [word.text for word in table.iter(f"{SVG}text")] == ["0", "2", "4", "6", "1", "3", "5", "7"]


def test_a_kind_says_of_which_layers_it_is() -> None:
    arrays = {f"layers.{number}.{'moe' if number else 'mlp'}.up": weights.Array((2,), "int8", 2) for number in range(4)}
    assert [line.split()[:3] for line in weights.as_text(arrays).splitlines()[1:3]] == [
        ["layers.0.mlp.up", "1", "0"],
        ["layers.*.moe.up", "3", "1-3"],
    ]


def test_every_layer_is_a_column(shown: dict[str, Any]) -> None:
    _, chart = drawn(shown["plan.show"]).iter(f"{SVG}svg")
    titles = [str(title.text) for title in chart.iter(f"{SVG}title")][1:]
    assert [title.split(",")[0] for title in titles if title.endswith("moe")] == [f"layer {n}" for n in range(4)]
    assert "layer 0, 173.4 kB: attn" in titles


@pytest.mark.parametrize("layout", [lazyload.MaxText(), lazyload.MaxText(scan_layers=False)])
def test_other_layouts(folder: Path, tmp_path: Path, layout: lazyload.MaxText) -> None:
    plan = lazyload.plan(folder, cache_dir=tmp_path, layout=layout, mesh=AbstractMesh((2, 2), ("fsdp", "tensor")))
    for picture in (plan.show(), lazyload.show_sharding(plan)):
        ElementTree.fromstring(picture.html.text)
        assert "824.7 kB" in picture.text
    assert "token_embedder" in str(plan.show())
    scanned = [line for line in str(plan.show()).splitlines() if "wi_0" in line]
    assert len(scanned) == 1


def test_the_text_folds_layers(shown: dict[str, Any]) -> None:
    lines = str(shown["plan.show"]).splitlines()
    assert any(re.search(r"layers\.\*\.moe\.gate_proj\.kernel +4 +8 x 64 x 48 +bfloat16", line) for line in lines)
    assert "layers" not in lines[2].split(), "all kinds are of all layers"
    assert max(map(len, lines[2:])) < 120
    assert len(lines) < 25
    assert repr(shown["plan.show"]) == str(shown["plan.show"])


def test_kinds_tell_layers_apart_that_differ() -> None:
    values = {f"layers.{number}.up": number % 3 == 2 for number in range(9)}
    kinds = folded({"embed": False, **values})
    assert [(kind.name, kind.numbers) for kind in kinds] == [
        ("embed", ()),
        ("layers.*.up", (0, 1, 3, 4, 6, 7)),
        ("layers.*.up", (2, 5, 8)),
    ]
    assert [kind.name for kind in folded({"decoder.layers_0.mlp.wi_0": 1, "decoder.layers_0.mlp.wi_1": 1})] == [
        "decoder.layers_0.mlp.wi_0",
        "decoder.layers_0.mlp.wi_1",
    ]
    assert block_of("params.decoder.layers_11.mlp.wi_0.kernel") == "mlp"


def test_what_is_text_is_escaped() -> None:
    element = html.element("td", "<b>", title='"&<')
    assert str(element) == '<td title="&quot;&amp;&lt;">&lt;b&gt;</td>'
    assert Picture("text", element)._repr_html_() == str(element)


@pytest.mark.parametrize(
    ("nbytes", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (16_381_470_720, "16.4 GB"), (3e12, "3.0 TB")]
)
def test_sizes(nbytes: float, said: str) -> None:
    assert text.size(nbytes) == said
