"""HTML and SVG as values: what is text is escaped, and what is made is well-formed XML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lazyload.display.text import printable


@dataclass(frozen=True)
class Html:
    """A piece of HTML or SVG.

    Attributes:
        text: How it is written.
    """

    text: str

    def __str__(self) -> str:
        return self.text


def element(tag: str, *inner: "Html | str", **attributes: str | float) -> Html:
    """An element; texts in it, and the values of its attributes, are escaped, and what cannot be seen is spelled out.

    Args:
        tag: Its name.
        *inner: What it holds.
        **attributes: Its attributes; a `_` at the end of a name is left out, others are written `-`.

    Example:
        >>> str(element("td", "a < b", class_="number", aria_label="a"))
        '<td class="number" aria-label="a">a &lt; b</td>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(printable(_number(value)), quote=True)}"'
        for name, value in attributes.items()
    )
    held = "".join(part.text if isinstance(part, Html) else escape(printable(part), quote=False) for part in inner)
    # An end tag each, since HTML would not take `<td/>` for a whole element.
    return Html(f"<{tag}{written}>{held}</{tag}>")


def svg(width: float, height: float, title: str, *inner: Html, stretched: bool = False) -> Html:
    """A drawing, with what it shows in words for who cannot see it.

    Args:
        width: Its width in pixels.
        height: Its height in pixels.
        title: What it shows.
        *inner: What is drawn.
        stretched: Whether it becomes as wide as the page, its height staying what it is.
    """
    shown = "100%" if stretched else f"{_number(width)}px"
    return element(
        "svg",
        element("title", title),
        *inner,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
        aria_label=title,
        class_="lz-svg",
        preserveAspectRatio="none" if stretched else "xMidYMid",
        # Style sheets of notebooks make the height follow the width.
        style=f"width:{shown};height:{_number(height)}px",
    )


def rect(x: float, y: float, width: float, height: float, title: str = "", /, **attributes: str | float) -> Html:
    """A rectangle; its title is shown where a mouse rests on it."""
    inner = (element("title", title),) if title else ()
    return element("rect", *inner, x=x, y=y, width=width, height=height, **attributes)


def table(header: Sequence[str], rows: Iterable[Sequence["Html | str"]], right: Sequence[str] = ()) -> Html:
    """A table.

    Args:
        header: The columns' titles.
        rows: Their cells.
        right: The titles of columns of numbers.
    """
    classes = ["lz-r" if title in right else "lz-l" for title in header]
    head = element("tr", *(element("th", title, class_=name) for title, name in zip(header, classes, strict=True)))
    body = [
        element("tr", *(element("td", cell, class_=name) for cell, name in zip(row, classes, strict=True)))
        for row in rows
    ]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="lz-scroll")


def page(title: str, said: str, *inner: Html) -> Html:
    """All that one output shows: a title, a line of what matters, and the rest."""
    heading = element("div", element("span", title, class_="lz-name"), " ", element("span", said, class_="lz-said"))
    return element("div", element("style", Html(STYLE)), heading, *inner, class_="lazyload")


def more(summary: str, *inner: Html) -> Html:
    """What is folded away until somebody opens it."""
    return element("details", element("summary", summary), *inner)


def facts(rows: Iterable[tuple[str, "Html | str"]]) -> Html:
    """What is known of something, by name."""
    cells = [element("tr", element("th", name), element("td", value)) for name, value in rows if value]
    return element("table", element("tbody", *cells), class_="lz-facts")


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


STYLE = """
.lazyload{font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:inherit;max-width:1080px;
margin:.3em 0;font-variant-numeric:tabular-nums}
.lazyload .lz-name{font-weight:600;font-size:14px;margin-right:.8em}
.lazyload .lz-said,.lazyload th,.lazyload .lz-dim,.lazyload summary{opacity:.7}
.lazyload .lz-scroll{overflow-x:auto}
.lazyload table{border-collapse:collapse;border:0;margin:.5em 0;font-size:inherit;color:inherit;table-layout:auto}
.lazyload tr,.lazyload th,.lazyload td{background:none!important;border:0;color:inherit;white-space:nowrap;
max-width:none}
.lazyload th,.lazyload td{padding:3px 16px 3px 0;text-align:left!important;line-height:inherit;
vertical-align:middle;font-size:inherit}
.lazyload th{font-weight:400}
.lazyload thead th,.lazyload tbody td{border-bottom:1px solid rgba(128,128,128,.28)}
.lazyload .lz-facts td,.lazyload .lz-facts th{border:0;padding:1px 16px 1px 0;white-space:normal;vertical-align:top}
.lazyload .lz-facts th{white-space:nowrap}
.lazyload td.lz-l{white-space:normal;min-width:110px}
.lazyload th.lz-r,.lazyload td.lz-r{text-align:right!important}
.lazyload code{font:12px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:none!important;
color:inherit;padding:0!important}
.lazyload .lz-svg{display:block;max-width:none;color:inherit}
.lazyload .lz-bar{margin:.5em 0 .35em}
.lazyload .lz-legend{margin:0 0 .5em}
.lazyload .lz-chart{margin:.9em 0 .5em}
.lazyload .lz-mesh{display:flex;flex-wrap:wrap;gap:6px 16px;align-items:center;margin:.6em 0;overflow-x:auto}
.lazyload .lz-item{display:inline-block;margin-right:18px;white-space:nowrap}
.lazyload .lz-key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:7px}
.lazyload summary{cursor:pointer;margin:.4em 0}
"""
