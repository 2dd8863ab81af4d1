"""A picture: what a notebook draws, and what a terminal prints of the same."""

from dataclasses import dataclass

from lazyload.display.html import Html
from lazyload.display.text import printable


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
        # It has names of folders and tensors in it, which may steer a terminal.
        return "\n".join(map(printable, self.text.split("\n")))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.html.text
