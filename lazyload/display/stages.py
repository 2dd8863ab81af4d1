"""What a load did: a bar of its stages, and what was moved."""

from collections.abc import Mapping, Sequence

from lazyload.display import bars, text
from lazyload.display.html import Html, element, facts, page

_COLOURS = {
    "open": bars.GREY,
    "plan": bars.GREY,
    "wait": bars.PINK,
    "fetch": bars.SKY,
    "convert": bars.ORANGE,
    "restore": bars.BLUE,
    "build": bars.GREEN,
}


def as_html(
    model: str,
    said: str,
    seconds: Mapping[str, float],
    moved: Mapping[str, tuple[int, str]],
    reasons: Sequence[str],
    *further: Html,
) -> Html:
    """A card.

    Args:
        model: The model's name.
        said: Whether it was a hit, and the like.
        seconds: Seconds of each stage, in order.
        moved: What was moved: bytes, and the stage that moved them, by what it is called.
        reasons: For a miss, why.
        *further: What is shown below.
    """
    colours = bars.palette(list(seconds), _COLOURS)
    words = {stage: text.duration(taken) for stage, taken in seconds.items()}
    total = text.duration(sum(seconds.values()))
    title = f"stages of {total}: " + ", ".join(f"{stage} {taken}" for stage, taken in words.items())
    rows = [(name, _moved(nbytes, seconds.get(stage, 0.0))) for name, (nbytes, stage) in moved.items() if nbytes]
    why = [("why", element("div", *(element("div", reason) for reason in reasons)))] if reasons else []
    return page(
        model,
        f"{said}, {total}",
        bars.stacked(seconds, colours, words, title),
        bars.legend(colours, words),
        facts([*rows, *why]),
        *further,
    )


def _moved(nbytes: int, seconds: float) -> str:
    """Bytes, and how many of them a second."""
    return text.size(nbytes) + (f", {text.size(nbytes / seconds)} a second" if seconds > 0 else "")
