"""What is measured of a page is what a person sees: each defect is found where there is one, and nowhere else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import browser
from support.browser import Browser
from support.page_facts import measure

pytestmark = [
    pytest.mark.xdist_group("notebooks"),
    pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed"),
]

SOUND = """<p>A text</p><div style="overflow-x: auto"><div style="width: 2000px">scrolls</div></div>
<svg width="99" height="40"><rect width="99" height="40" fill="#036"/><text x="9" y="25" fill="#fff">white</text></svg>
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.running() as running:
        yield running


def facts_of(body: str, folder: Path, chromium: Browser, *, dark: bool = False) -> dict[str, list[str]]:
    """What is wrong with a page of this body."""
    style = "<style>@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } }</style>"
    (folder / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{style}<body>{body}")
    with browser.serving(folder) as address, chromium.open(f"{address}/page.html", width=600, dark=dark) as page:
        facts = measure(page, "body")
        assert facts.width == 600
        wrong = {"overflowing": facts.overflowing, "collisions": facts.collisions, "faint": facts.faint}
        wrong |= {"complaints": page.complaints(), "blank": [str(b) for b in facts.pictures if page.colours(b) < 3]}
    return {name: found for name, found in wrong.items() if found}


@pytest.mark.parametrize("dark", [False, True])
def test_a_sound_page_has_no_defect(dark: bool, tmp_path: Path, chromium: Browser) -> None:
    assert facts_of(SOUND, tmp_path, chromium, dark=dark) == {}


@pytest.mark.parametrize(
    ("defect", "body"),
    [
        ("overflowing", '<div style="width: 700px">wide</div>'),
        ("overflowing", '<div style="overflow: hidden; width: 99px"><div style="width: 200px">cut off</div></div>'),
        ("collisions", '<svg width="90" height="40"><text x="60" y="20">leaves it</text></svg>'),
        ("collisions", '<svg width="90" height="40"><text y="20">one</text><text y="22">other</text></svg>'),
        ("faint", '<p style="color: #ccc">pale</p>'),
        ("faint", '<p style="opacity: .3">see-through</p>'),
        ("faint", '<svg width="99" height="40"><rect width="99" height="40" fill="#036"/><text y="25">x</text></svg>'),
        ("blank", '<svg width="99" height="40"></svg>'),
        ("complaints", "<script>console.error('broken')</script>"),
        ("complaints", "<script>throw new Error('broken')</script>"),
        ("complaints", '<img src="missing.png" alt="">'),
    ],
)
def test_a_defect_is_found(defect: str, body: str, tmp_path: Path, chromium: Browser) -> None:
    assert list(facts_of(SOUND + body, tmp_path, chromium)) == [defect]


def test_what_is_faint_in_the_dark_alone_is_found(tmp_path: Path, chromium: Browser) -> None:
    body = '<p style="color: #333">as black as the night</p>'
    assert facts_of(body, tmp_path, chromium) == {}
    assert list(facts_of(body, tmp_path, chromium, dark=True)) == ["faint"]
