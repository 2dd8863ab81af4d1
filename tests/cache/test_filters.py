"""Filters and orders of entries, sizes and durations: what can be typed, and what is said of the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.entries import COMMITS, publish

from lazyload.cache.cache import Cache
from lazyload.cache.order import ordered
from lazyload.cache.quantities import parse_duration, parse_size
from lazyload.errors import ArgumentError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    publish(tmp_path, "org/a", nbytes=1000, used=100 * 86400, layers=[0, 8])
    publish(tmp_path, "org/b", nbytes=2000, used=3600, dtype=["*norm*=float32", "*=float16"], revision="v1")
    publish(tmp_path, "other/c", nbytes=3000, used=60, layout="maxtext", commit=COMMITS[3])
    publish(tmp_path, "other/c", nbytes=4000, used=0, layout="maxtext", commit=COMMITS[4])
    return Cache(tmp_path)


@pytest.mark.parametrize(
    ("filters", "sizes"),
    [
        (["size>2kB"], [3000, 4000]),
        (["size >= 2000"], [2000, 3000, 4000]),
        (["size<2KiB"], [1000, 2000]),
        (["size=1k"], [1000]),
        (["size==1k"], [1000]),
        (["size!=1k"], [2000, 3000, 4000]),
        (["size<=2000", "size>1000"], [2000]),
        (["accessed>30d"], [1000]),
        (["accessed<2h", "accessed>30m"], [2000]),
        (["modified>1d"], []),
        (["modified<=1d"], [1000, 2000, 3000, 4000]),
        (["model=org/*"], [1000, 2000]),
        (["model!=org/*"], [3000, 4000]),
        (["MODEL=org/a"], [1000]),
        (["layout=maxtext"], [3000, 4000]),
        (["dtype=bfloat16"], [1000, 3000, 4000]),
        (["dtype=[*]norm*"], [2000]),
        (["revision=v1"], [2000]),
        (["revision=main"], [1000, 3000, 4000]),
        (["commit=4444*"], [3000]),
        (["layers=0:8"], [1000]),
        (["layers="], [2000, 3000, 4000]),
        (["superseded=yes"], [3000]),
        (["superseded=no", "layout=maxtext"], [4000]),
        (["superseded!=yes", "layout=maxtext"], [4000]),
    ],
)
def test_filters_choose_entries(cache: Cache, filters: list[str], sizes: list[int]) -> None:
    assert [entry.nbytes for entry in cache.entries(filters=filters)] == sizes


def test_a_key_is_chosen_by_its_start(cache: Cache) -> None:
    entry = cache.entries()[0]
    assert cache.entries(filters=[f"key={entry.key[:8]}*"]) == [entry]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("size", "give a condition on size, accessed"),
        ("colour=red", "give a condition on size, accessed"),
        ("size>big", "'big': give a size"),
        ("accessed>1GB", "'1GB': give a duration"),
        ("model>org", "give model= or model!=, not >"),
        ("superseded=maybe", "give yes or no"),
        ("", "give a condition"),
    ],
)
def test_what_is_no_filter_is_refused(cache: Cache, text: str, complaint: str) -> None:
    for refuse in (lambda: cache.entries(filters=[text]), lambda: cache.remove(filters=[text])):
        with pytest.raises(ArgumentError, match=complaint):
            refuse()
    assert len(cache.entries()) == 4


@pytest.mark.parametrize(
    ("order", "sizes"),
    [
        ("size", [4000, 3000, 2000, 1000]),
        ("size:asc", [1000, 2000, 3000, 4000]),
        ("accessed", [4000, 3000, 2000, 1000]),
        ("accessed:asc", [1000, 2000, 3000, 4000]),
        ("name:desc", [3000, 4000, 2000, 1000]),
    ],
)
def test_orders(cache: Cache, order: str, sizes: list[int]) -> None:
    assert [entry.nbytes for entry in ordered(cache.entries(), order)] == sizes


@pytest.mark.parametrize("order", ["colour", "size:up", "", ":asc"])
def test_what_is_no_order_is_refused(cache: Cache, order: str) -> None:
    with pytest.raises(ArgumentError, match="give one of accessed, modified, name, size"):
        ordered(cache.entries(), order)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("12B", 12),
        ("1KB", 1000),
        ("1.5 MB", 1_500_000),
        ("2gb", 2 * 10**9),
        ("1TiB", 1 << 40),
        ("1Gi", 1 << 30),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("5s", 5), ("1.5h", 5400), ("30d", 2592000), ("2w", 1209600), ("2 Weeks", 1209600), ("1mo", 2592000)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("parse", [parse_size, parse_duration])
@pytest.mark.parametrize("text", ["", "soon", "1.2.3GB", "-1d", "1 2", "GB", "1e3", "ss"])
def test_what_is_no_amount_is_refused(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(ArgumentError, match=r"give a (size|duration), such as"):
        parse(text)
