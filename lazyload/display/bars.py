"""Stacked bars, their colours and their legends."""

from collections.abc import Mapping, Sequence

from lazyload.display.html import Html, element, rect, svg

# Okabe and Ito's colours, which people who see fewer colours tell apart, too; all stand out from white and from black.
BLUE, SKY, ORANGE, RED, GREEN, PINK, GREY = (
    "#0072b2",
    "#56b4e9",
    "#e69f00",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8c8c8c",
)

_WIDTH = 1000.0


def stacked(parts: Mapping[str, float], colours: Mapping[str, str], said: Mapping[str, str], title: str) -> Html:
    """A bar as wide as the page, whose parts are as long as their numbers are large.

    Args:
        parts: Numbers by name.
        colours: Their colours, by the same names.
        said: The numbers as people read them.
        title: What the bar shows.
    """
    total = sum(parts.values()) or 1.0
    drawn, x = [], 0.0
    for name, number in parts.items():
        width = number / total * _WIDTH
        drawn.append(rect(x, 0, width, 18, f"{name}: {said[name]}", fill=colours[name], **_EDGE))
        x += width
    return element("div", _wide(18, title, drawn), class_="lz-bar")


def columns(stacks: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], height: float, title: str) -> Html:
    """Columns side by side, each a stack of parts.

    Args:
        stacks: The parts of each column, by what the column is called.
        colours: The parts' colours.
        height: How high the highest one is, in pixels.
        title: What the columns show.
    """
    width = _WIDTH / max(len(stacks), 1)
    tallest = max((sum(stack.values()) for stack in stacks.values()), default=0) or 1.0
    drawn = []
    for number, (name, stack) in enumerate(stacks.items()):
        y = height
        for part, amount in stack.items():
            tall = amount / tallest * height
            y -= tall
            drawn.append(
                rect(number * width, y, width, tall, f"{name}: {part}", fill=colours[part], **_EDGE),
            )
    return _wide(height, title, drawn)


def legend(colours: Mapping[str, str], said: Mapping[str, str]) -> Html:
    """What the colours stand for, in a line or as many as it takes."""
    return element(
        "div",
        *(
            element("span", key(colours[name]), f"{name} ", element("span", text, class_="lz-dim"), class_="lz-item")
            for name, text in said.items()
        ),
        class_="lz-legend",
    )


def key(colour: str) -> Html:
    """A patch of a colour."""
    return element("span", class_="lz-key", style=f"background:{colour}")


def palette(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A colour for each name: its own, or else one that is still free."""
    taken = {known[name] for name in names if name in known}
    free = [colour for colour in (BLUE, ORANGE, GREEN, SKY, RED, PINK) if colour not in taken] or [GREY]
    others = [name for name in names if name not in known]
    return {**known, **{name: free[number % len(free)] for number, name in enumerate(others)}}


_EDGE: Mapping[str, str | float] = {
    "stroke": "rgba(128,128,128,.35)",
    "stroke_width": 1,
    "vector_effect": "non-scaling-stroke",
}


def _wide(height: float, title: str, drawn: Sequence[Html]) -> Html:
    return svg(_WIDTH, height, title, *drawn, stretched=True)
