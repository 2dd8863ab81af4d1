"""`lazyload cache ls`, `info` and `dir`: what they print in each form, for each option."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from support.command import command
from support.entries import COMMITS, publish, publish_folder

from lazyload.cache.cache import Cache
from lazyload.cli import text


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two commits of a branch, one of which supersedes the other; one that was asked for by commit; and a folder."""
    root = tmp_path / "cache"
    publish(root, "org/model", nbytes=1500, used=3 * 86400 + 60)
    publish(root, "org/model", nbytes=2500, used=2 * 3600 + 60, commit=COMMITS[1])
    publish(root, "org/pinned", nbytes=3_000_000, used=90, commit=COMMITS[2], revision=COMMITS[2], layers=[0, 8])
    publish_folder(root, "/models/mine", "one", dtype=["*norm*=float32", "*=float16"], layout="maxtext")
    return root


def keys(cache: Path) -> list[str]:
    return [entry.key for entry in Cache(cache).entries()]


def test_the_table(cache: Path) -> None:
    mine, old, new, pinned = (key[:8] for key in keys(cache))
    lines = command("cache", "ls", cache=cache).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["key", "model", "revision", "layout", "dtype", "storage", "size", "last", "used"],
        [mine, "/models/mine", "maxtext", "*norm*=float32", "*=float16", "ocdbt+zarr3", "1.0", "kB", "just", "now"],
        [
            old,
            "org/model",
            "main@1111111",
            "nnx",
            "bfloat16",
            "ocdbt+zarr3",
            "1.5",
            "kB",
            "3",
            "days",
            "ago",
            "superseded",
        ],
        [new, "org/model", "main@2222222", "nnx", "bfloat16", "ocdbt+zarr3", "2.5", "kB", "2", "hours", "ago"],
        [pinned, "org/pinned", "3333333", "nnx", "bfloat16", "ocdbt+zarr3", "3.0", "MB", "1", "minute", "ago"],
    ]


def test_verbose_says_all_of_it(cache: Path) -> None:
    said = command("cache", "ls", "-v", cache=cache).stdout
    entry = Cache(cache).entries()[-1]
    assert f"{entry.key}  org/pinned" in said
    assert f"{COMMITS[2]}" in said
    assert f"main@{COMMITS[0]}" in said
    assert str(entry.path) in said
    assert "0:8" in said
    assert entry.manifest.created in said


def test_only_keys(cache: Path) -> None:
    for options in (["-q"], ["--quiet"], ["--format", "quiet"]):
        assert command("cache", "ls", *options, cache=cache).stdout.split() == keys(cache)


def test_json(cache: Path) -> None:
    for options in (["--json"], ["--format", "json"]):
        listed = json.loads(command("cache", "ls", *options, cache=cache).stdout)
        assert [each["key"] for each in listed] == keys(cache)
    _, old, new, pinned = listed
    assert old["superseded_by"] == new["key"]
    assert (new["superseded_by"], pinned["superseded_by"]) == (None, None)
    assert (old["revision"], old["commit"], old["nbytes"]) == ("main", COMMITS[0], 1500)
    assert (listed[0]["revision"], listed[0]["commit"]) == (None, None)
    assert Path(old["path"]).is_dir()
    assert {"created", "last_used", "seconds", "source", "fields", "model"} <= old.keys()


def test_csv(cache: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(command("cache", "ls", "--format", "csv", cache=cache).stdout)))
    assert [row["key"] for row in rows] == keys(cache)
    assert rows[0] | {"path": "", "created": "", "last_used": ""} == {
        "key": keys(cache)[0],
        "model": "/models/mine",
        "revision": "",
        "commit": "",
        "nbytes": "1000",
        "created": "",
        "last_used": "",
        "superseded_by": "",
        "path": "",
        "layout": "maxtext",
        "dtype": "*norm*=float32 *=float16",
        "storage": "ocdbt+zarr3",
        "layers": "",
    }
    assert rows[1]["superseded_by"] == keys(cache)[2]
    assert rows[3]["layers"] == "0:8"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["--filter", "size>2kB"], [2500, 3_000_000]),
        (["-f", "size>2kB", "-f", "model=org/m*"], [2500]),
        (["-f", "superseded=yes"], [1500]),
        (["--sort", "size"], [3_000_000, 2500, 1500, 1000]),
        (["--sort", "size:asc", "--limit", "2"], [1000, 1500]),
        (["--sort", "accessed", "--limit", "1"], [1000]),
        (["--limit", "0"], []),
    ],
)
def test_choosing_and_ordering(cache: Path, options: list[str], sizes: list[int]) -> None:
    listed = json.loads(command("cache", "ls", *options, "--json", cache=cache).stdout)
    assert [each["nbytes"] for each in listed] == sizes


def test_nothing_is_said_to_be_nothing(cache: Path, tmp_path: Path) -> None:
    assert command("cache", "ls", cache=tmp_path / "none").stdout == f"nothing in {tmp_path / 'none'}\n"
    assert json.loads(command("cache", "ls", "--json", cache=tmp_path / "none").stdout) == []
    assert command("cache", "ls", "-q", cache=tmp_path / "none").stdout == ""
    said = command("cache", "ls", "-f", "size>1TB", cache=cache).stdout
    assert said == f"nothing in {cache} that is size>1TB\n"
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_used_is_listed_with_the_reason(cache: Path) -> None:
    folder = Cache(cache).entries()[0].folder
    (folder / "manifest.json").write_text("{")
    said = command("cache", "ls", cache=cache).stdout.splitlines()[-1]
    assert said.startswith(f"{folder.name[:8]}  {folder.parent.name}: cannot be used: ")
    assert [
        each.get("problem") is None for each in json.loads(command("cache", "ls", "--json", cache=cache).stdout)
    ] == [
        True,
        True,
        True,
        False,
    ]
    assert "cannot be used" not in command("cache", "ls", "-f", "size>0", cache=cache).stdout


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    publish_folder(tmp_path, "/models/\x1b[31mred\n", "one")
    said = command("cache", "ls", cache=tmp_path).stdout
    assert "\x1b" not in said
    assert "/models/\\x1b[31mred\\n" in said
    assert "\x1b" not in command("cache", "info", Cache(tmp_path).entries()[0].key, cache=tmp_path).stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--filter", "colour=red"], "Invalid value for --filter: filter 'colour=red': give a condition on size"),
        (["--sort", "colour"], "Invalid value for --sort: order 'colour': give one of accessed"),
        (["--limit", "-1"], "--limit"),
        (["--format", "xml"], "--format"),
        (["--colour"], "--colour"),
    ],
)
def test_wrong_usage(cache: Path, options: list[str], complaint: str) -> None:
    assert complaint in command("cache", "ls", *options, cache=cache, code=2).stderr


def test_info_shows_all_of_an_entry(cache: Path) -> None:
    _, old, new, _ = Cache(cache).entries()
    said = dict(line.split(":", 1) for line in command("cache", "info", old.key[:8], cache=cache).stdout.splitlines())
    shown = {name: value.strip() for name, value in said.items()}
    assert shown["key"] == old.key
    assert (shown["model"], shown["revision"], shown["commit"]) == ("org/model", "main", COMMITS[0])
    assert shown["path"] == str(old.path)
    assert shown["nbytes"] == "1500 (1.5 kB)"
    assert shown["  mapping"] == "m1"
    assert shown["  storage.ocdbt"] == "true"
    assert shown["superseded"] == f"by {new.key}: newer commit"
    assert (shown["used by"], shown["problems"], shown["files"]) == ("-", "-", "1")
    assert shown["  pid"] == str(os.getpid())
    assert {"created", "last used", "conversion seconds", "size on disk"} <= shown.keys()


def test_info_says_who_uses_it_and_what_is_lost(cache: Path) -> None:
    entry = Cache(cache).entries()[0]
    with entry.in_use():
        used = json.loads(command("cache", "info", entry.key, "--json", cache=cache).stdout)[0]["used_by"]
    assert used.startswith(f"process {os.getpid()} on ")
    (entry.path / "chunk").unlink()
    (entry.path / "other").touch()
    (described,) = json.loads(command("cache", "info", entry.key, "--json", cache=cache).stdout)
    assert described["problems"] == ["chunk: is gone"]
    (entry.folder / "manifest.json").write_text("{")
    assert "problem: " in command("cache", "info", entry.key, cache=cache).stdout


def test_info_of_a_model_shows_each_of_its_entries(cache: Path) -> None:
    entries = Cache(cache).entries("org/model")
    assert [
        each["key"] for each in json.loads(command("cache", "info", "org/model", "--json", cache=cache).stdout)
    ] == [entry.key for entry in entries]
    paths = command("cache", "info", "org/model", "-q", cache=cache).stdout.split()
    assert paths == [str(entry.path) for entry in entries]
    said = command("cache", "info", "org/model", "-v", cache=cache).stdout
    assert "files:\n  chunk.size: 1500\n" in said
    assert "\n\nkey:" in said


def test_dir_prints_the_roots(tmp_path: Path, cache: Path) -> None:
    assert command("cache", "dir", cache=cache).stdout == f"{cache}\n"
    assert command("cache", "dir", "--cache-dir", tmp_path, cache=cache).stdout == f"{tmp_path}\n"
    several = Path(f"{tmp_path}:{cache}")
    assert command("cache", "dir", cache=several).stdout == f"{tmp_path}\n{cache}\n"
    assert json.loads(command("cache", "dir", "--json", cache=several).stdout) == {
        "root": str(cache),
        "shared": [str(tmp_path)],
    }


@pytest.mark.parametrize("width", [1, 2, 10, 11, 30])
def test_a_name_that_is_too_long_loses_its_middle(width: int) -> None:
    name = "meta-llama/Llama-3.2"
    shown = text.middle(name, width)
    assert len(shown) == min(width, len(name))
    start, _, end = shown.partition("…")
    assert name.startswith(start)
    assert name.endswith(end)
