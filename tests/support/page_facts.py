"""What a page looks like, as facts that a test can compare: measured by `page_facts.js` in the page itself."""

from dataclasses import dataclass
from pathlib import Path

from support.browser import Page

_SCRIPT = "\n".join(
    line for line in Path(__file__).with_suffix(".js").read_text().splitlines() if not line.startswith("//")
)


@dataclass(frozen=True)
class Facts:
    """What was measured of the parts of a page.

    Attributes:
        width: Of the page, in CSS pixels.
        overflowing: What is wider than the page and in nothing that scrolls, or is cut off.
        pictures: The boxes of the SVG pictures that are shown: x, y, width, height on the page.
        collisions: Texts of pictures that leave them, or lie on others.
        faint: Texts whose contrast with what is behind them is less than 3.
    """

    width: int
    overflowing: list[str]
    pictures: list[dict[str, float]]
    collisions: list[str]
    faint: list[str]


def measure(page: Page, selector: str) -> Facts:
    """Measures the parts of a page that a CSS selector names."""
    return Facts(**page.evaluate(f"({_SCRIPT.strip()})({selector!r})"))
