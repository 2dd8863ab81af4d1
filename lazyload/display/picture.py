"""A picture: what a notebook draws, and what a terminal prints of the same."""

from dataclasses import dataclass

from lazyload.display.html import Html


@dataclass(frozen=True, repr=False)
class Picture:
    """What `show` and `show_sharding` return: drawn by notebooks, printed by everything else.

    Attributes:
        text: The same in words and columns.
        html: HTML with inline SVG.
    """

    text: str
    html: Html

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html.text
