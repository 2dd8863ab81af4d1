"""A picture of one experiment: a bar a row, as long as its median took."""

import statistics
from collections.abc import Iterator

from lazyload.display import text
from lazyload.display.bars import BLUE, GREEN, ORANGE
from lazyload.display.html import Html, element, rect, svg
from tests.benchmarks.experiments import Outcome

_ROW, _LABELS, _BARS, _NUMBERS = 22.0, 300.0, 420.0, 90.0
_WORDS = "#7d8590"
"""A grey that stands out from white and from black: a picture in a README does not know which one is behind it."""
_COLOURS = {"lazyload": BLUE, "the machine": GREEN}
_OTHERS = ORANGE


def draw(outcome: Outcome) -> str:
    """The picture, as a file holds it: ours in blue, the machine's in green, other programs' in orange."""
    medians = [
        (statistics.median(sample.seconds for sample in outcome.samples[row.name]), row)
        for row in outcome.experiment.rows
        if row.name in outcome.samples
    ]
    medians.sort(key=lambda item: item[0])
    longest = medians[-1][0]

    def lines() -> Iterator[Html]:
        for number, (seconds, row) in enumerate(medians):
            y, length = 34 + number * _ROW, seconds / longest * _BARS
            yield _words(row.title.replace("`", ""), _LABELS - 8, y + 12, "end")
            yield rect(_LABELS, y, max(length, 1), _ROW - 6, fill=_COLOURS.get(row.by, _OTHERS), rx=2)
            yield _words(text.duration(seconds), _LABELS + length + 8, y + 12, "start")

    title = f"{outcome.experiment.title}: median seconds"
    height = 40 + len(medians) * _ROW
    drawn = [_words(title, 8, 18, "start", weight=600), *lines()]
    return str(svg(_LABELS + _BARS + _NUMBERS, height, title, *drawn)) + "\n"


def _words(said: str, x: float, y: float, anchor: str, weight: float = 400) -> Html:
    return element(
        "text",
        said,
        x=x,
        y=y,
        fill=_WORDS,
        text_anchor=anchor,
        font_family="system-ui,-apple-system,Segoe UI,Roboto,sans-serif",
        font_size=13,
        font_weight=weight,
    )
