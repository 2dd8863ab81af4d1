"""`lazyload cache rm` and `prune`: what they remove, what they say, and their exit codes."""

import json
from pathlib import Path

import pytest
from support.command import command
from support.entries import COMMITS, publish

from lazyload.cache.cache import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    root = tmp_path / "cache"
    publish(root, "org/model", nbytes=1000, used=100 * 86400)
    publish(root, "org/model", nbytes=2000, used=10 * 86400, commit=COMMITS[1])
    publish(root, "org/model", nbytes=3000, used=60, dtype="float32")
    publish(root, "Qwen/Qwen3-8B", nbytes=4000, used=3600)
    return root


def left(cache: Path) -> list[int]:
    return sorted(entry.nbytes for entry in Cache(cache).entries())


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["org/model"], [4000]),
        (["org/model", "Qwen/Qwen3-8B"], []),
        (["--filter", "accessed>30d"], [2000, 3000, 4000]),
        (["-f", "accessed>5d", "-f", "size>1500"], [1000, 3000, 4000]),
        (["org/model", "--filter", "dtype=float32"], [1000, 2000, 4000]),
        (["--filter", "superseded=yes"], [2000, 3000, 4000]),
        (["--filter", "size>1TB"], [1000, 2000, 3000, 4000]),
    ],
)
def test_rm_removes_what_is_named_and_fulfils_the_filters(cache: Path, words: list[str], sizes: list[int]) -> None:
    command("cache", "rm", *words, "--dry-run", cache=cache)
    assert left(cache) == [1000, 2000, 3000, 4000]
    said = command("cache", "rm", *words, "-y", cache=cache).stdout.splitlines()[-1]
    assert left(cache) == sizes
    assert said.startswith("freed " if sizes != [1000, 2000, 3000, 4000] else "nothing to remove")


def test_rm_by_the_start_of_a_key(cache: Path) -> None:
    entry = Cache(cache).entries()[0]
    assert entry.key in command("cache", "rm", entry.key[:6], "--yes", cache=cache).stdout
    assert len(left(cache)) == 3


@pytest.mark.parametrize("typed", ["n\n", "", "\n"])
def test_a_question_that_is_not_answered_with_yes_removes_nothing(cache: Path, typed: str) -> None:
    for words in (["rm", "org/model"], ["prune", "--all"]):
        ended = command("cache", *words, cache=cache, code=1, typed=typed)
        assert "Remove " in ended.stderr
        assert "Traceback" not in ended.stderr
        assert len(left(cache)) == 4


def test_yes_is_an_answer(cache: Path) -> None:
    assert "freed " in command("cache", "rm", "Qwen/Qwen3-8B", cache=cache, typed="y\n").stdout
    assert left(cache) == [1000, 2000, 3000]


def test_the_forms_of_what_is_removed(cache: Path) -> None:
    path = str(Cache(cache).entries("Qwen/Qwen3-8B")[0].folder)
    (planned,) = json.loads(command("cache", "rm", "Qwen/Qwen3-8B", "--dry-run", "--json", cache=cache).stdout)
    assert planned == {"path": path, "nbytes": planned["nbytes"], "reason": "asked for", "removed": False}
    assert planned["nbytes"] > 4000
    assert command("cache", "rm", "Qwen/Qwen3-8B", "--dry-run", "-q", cache=cache).stdout == f"{path}\n"
    assert path in command("cache", "rm", "Qwen/Qwen3-8B", "--dry-run", "-v", cache=cache).stdout
    shown = command("cache", "rm", "Qwen/Qwen3-8B", "--dry-run", cache=cache).stdout
    assert path not in shown
    assert path.removeprefix(f"{cache}/") in shown
    assert "would free" in shown
    (removed,) = json.loads(command("cache", "rm", "Qwen/Qwen3-8B", "--json", "-y", cache=cache).stdout)
    assert removed == planned | {"removed": True}


def test_what_is_in_use_stays_unless_forced(cache: Path) -> None:
    entry = Cache(cache).entries("Qwen/Qwen3-8B")[0]
    with entry.in_use():
        ended = command("cache", "rm", "Qwen/Qwen3-8B", "-y", cache=cache, code=1)
        assert "is reading it" in ended.stderr
        assert "--force" in ended.stderr
        command("cache", "prune", "--all", "-y", cache=cache)
        assert left(cache) == [4000]
        command("cache", "rm", "Qwen/Qwen3-8B", "-y", "--force", cache=cache)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["org/modle"], "is 'org/model' meant?"),
        (["Qwen3-8B"], "is 'Qwen/Qwen3-8B' meant?"),
        (["qwen/qwen3-8b"], "is 'Qwen/Qwen3-8B' meant?"),
        (["something/else"], "`lazyload cache ls` shows what there is"),
        (["abc"], "`lazyload cache ls` shows what there is"),
    ],
)
def test_unknown_targets_suggest_the_nearest_and_no_others(cache: Path, words: list[str], complaint: str) -> None:
    for name in ("rm", "verify", "info"):
        said = command("cache", name, *words, cache=cache, code=1).stderr
        assert said.startswith(f"error: {words[0]!r} is neither a model nor the start of a key in {cache}; ")
        assert complaint in said
        assert said.count("org/model") <= 1
    assert len(left(cache)) == 4


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ([], [1000, 2000, 3000, 4000]),
        (["--superseded"], [2000, 3000, 4000]),
        (["--older-than", "2w"], [2000, 3000, 4000]),
        (["--older-than", "1 week"], [3000, 4000]),
        (["--keep-last", "1"], [3000, 4000]),
        (["--keep-last", "2", "--older-than", "1w"], [2000, 3000, 4000]),
        (["--max-size", "1GiB"], [1000, 2000, 3000, 4000]),
        (["--max-size", "1B"], []),
        (["--max-size", "1B", "--keep-last", "1"], [3000, 4000]),
        (["--incomplete"], [1000, 2000, 3000, 4000]),
        (["--all"], []),
    ],
)
def test_prune(cache: Path, options: list[str], sizes: list[int]) -> None:
    planned = json.loads(command("cache", "prune", *options, "--dry-run", "--json", cache=cache).stdout)
    assert left(cache) == [1000, 2000, 3000, 4000]
    assert len(planned) == 4 - len(sizes)
    removed = command("cache", "prune", *options, "-y", "-q", cache=cache).stdout.split()
    assert removed == [each["path"] for each in planned]
    assert left(cache) == sizes


def test_prune_says_why(cache: Path) -> None:
    said = command("cache", "prune", "--superseded", "--older-than", "1w", "--dry-run", cache=cache).stdout
    assert "newer commit" in said
    assert "not used for 10.0 days" in said
    assert "nothing to remove" in command("cache", "prune", cache=cache).stdout


def test_what_somebody_begins_to_use_meanwhile_is_kept_and_makes_the_exit_code_1(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Cache(cache).entries("Qwen/Qwen3-8B")[0]

    def used(question: str, **_: object) -> bool:
        (entry.folder / "last-used").touch()
        return True

    monkeypatch.setattr("click.confirm", used)
    ended = command("cache", "prune", "--older-than", "30m", cache=cache, code=1)
    assert "kept 1 that somebody uses by now" in ended.stderr
    assert left(cache) == [3000, 4000]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["rm"], "give models or keys, or conditions with --filter"),
        (["rm", "--filter", "size"], "give a condition on size"),
        (["rm", "org/model", "--filter", "size>x", "-y"], "'x': give a size"),
        (["prune", "--older-than", "soon"], "--older-than: 'soon': give a duration, such as"),
        (["prune", "--max-size", "1.2.3GB"], "--max-size: '1.2.3GB': give a size, such as"),
        (["prune", "--keep-last", "0"], "--keep-last"),
        (["prune", "--incomplete", "--all"], "leave the other rules out"),
        (["prune", "--incomplete", "--superseded"], "leave the other rules out"),
        (["prune", "everything"], "everything"),
    ],
)
def test_wrong_usage(cache: Path, words: list[str], complaint: str) -> None:
    ended = command("cache", *words, cache=cache, code=2)
    assert complaint in " ".join(ended.stderr.split())
    assert len(left(cache)) == 4
