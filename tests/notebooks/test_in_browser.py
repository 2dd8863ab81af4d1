"""Notebooks in a real browser: what they show is there, fits the page, and can be read in the light and in the dark.

As they run now; `test_pages.py` looks at them as they are kept.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from support import browser
from support.browser import Browser
from support.notebooks import NAMES, as_page
from support.page_facts import measure

pytestmark = [
    pytest.mark.xdist_group("notebooks"),
    pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed"),
]

OUTPUTS = ".jp-OutputArea-output"
WIDTHS = {"desk": 1200, "phone": 390}
PICTURES = {
    "quickstart.ipynb": {"show-model", "report", "again", "sharding", "plan"},
    "rl.ipynb": {"load", "load-reference", "show-policy", "sharding"},
    "cache.ipynb": {"entry"},
}
"""The cells that draw."""

TEXTS = {
    "quickstart.ipynb": ["Qwen/Qwen3-0.6B", "bfloat16", "fsdp=4, tp=2", "layers.*.attn.q_proj.kernel", "restore"],
    "rl.ipynb": ["reference  the cat", "policy     the cat", "float32", "fsdp=4, tp=2"],
    "cache.ipynb": ["HuggingFaceTB/SmolLM2-135M", "bfloat16", "was written as", "converted again", "asked for"],
}
"""What stands in the outputs."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.running() as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address that it has."""
    folder = tmp_path_factory.mktemp("pages")
    with browser.serving(folder) as address:
        yield folder, address


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_there_and_fit_the_page(
    name: str,
    theme: str,
    executed: Callable[[str], nbformat.NotebookNode],
    chromium: Browser,
    site: tuple[Path, str],
) -> None:
    folder, address = site
    page_name = f"{name}-{theme}"
    (folder / f"{page_name}.html").write_text(as_page(executed(name), dark=theme == "dark"))
    for device, width in WIDTHS.items():
        with chromium.open(f"{address}/{page_name}.html", width=width, dark=theme == "dark") as page:
            # To look at: pytest's `--basetemp` says where.
            (folder / f"{page_name}-{device}.png").write_bytes(page.picture())
            facts = measure(page, OUTPUTS)
            assert facts.overflowing == [], f"{device}: wider than the page"
            assert facts.collisions == [], device
            assert facts.faint == [], device
            assert page.complaints() == []
            for box in facts.pictures:
                assert box["width"] > 20, box
                assert box["height"] > 8, box
                # On a phone, a wide table scrolls.
                is_in_view = box["x"] + box["width"] <= width
                assert is_in_view or device == "phone", box
                assert not is_in_view or page.colours(box) > 2, f"{device}: the picture at {box} is blank"
            drawn = page.evaluate(
                "[...document.querySelectorAll('.jp-OutputArea-output svg')]"
                ".map(svg => svg.closest('[id^=cell-id]').id.split('=')[1])"
            )
            assert PICTURES[name] <= set(drawn)
            shown = page.evaluate(
                f"[...document.querySelectorAll('{OUTPUTS}')].map(part => part.innerText).join('\\n')"
            )
            assert [text for text in TEXTS[name] if text not in shown] == []
