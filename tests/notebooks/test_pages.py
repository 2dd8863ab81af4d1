"""The pages in a real browser: built from what is here, they fit a desk and a phone, and nothing complains."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import browser
from support.browser import Browser
from support.notebooks import NAMES
from support.page_facts import measure

pytest.importorskip("sphinx")
pytestmark = [
    pytest.mark.xdist_group("notebooks"),
    pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed"),
]

ROOT = Path(__file__).parents[2]
SCREENS = {"desk in the light": (1200, False), "phone in the dark": (390, True)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages, built as for publishing."""
    folder = tmp_path_factory.mktemp("pages")
    command = [sys.executable, str(ROOT / ".github" / "pages" / "build.py"), str(folder)]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout[-5_000:] + build.stderr[-5_000:]
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.running() as running:
        yield running


@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_fits_and_can_be_read(screen: str, pages: Path, chromium: Browser) -> None:
    width, dark = SCREENS[screen]
    names = sorted(page.relative_to(pages).as_posix() for page in pages.rglob("*.html"))
    assert {"index.html", "reference.html", *(f"examples/{name.replace('.', '_')}.html" for name in NAMES)} <= {*names}
    problems = {}
    with browser.serving(pages) as address:
        for name in names:
            with chromium.open(f"{address}/{name}", width=width, dark=dark) as page:
                facts = measure(page, "article")
                found = [*facts.overflowing, *facts.collisions, *facts.faint, *page.complaints()]
                if name != "search.html" and not page.evaluate("document.querySelector('article').innerText.trim()"):
                    found.append("nothing is on it")
                if found:
                    problems[name] = found[:5]
    assert problems == {}


def test_notebooks_have_their_pictures(pages: Path, chromium: Browser) -> None:
    with browser.serving(pages) as address:
        for name in NAMES:
            address_of_page = f"{address}/examples/{name.replace('.', '_')}.html"
            with chromium.open(address_of_page, width=1200) as page:
                facts = measure(page, "article .cell_output")
                assert facts.pictures, name
                assert [box for box in facts.pictures if page.colours(box) < 3] == [], name
