"""What several processes have read of one file: when it is one version, and when it is not."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from lazyload.sources.files import NotAsReadError
from lazyload.sources.versions import Versions, counted


def read(*parts: tuple[str, str | None], compared: bool = False) -> Mapping[str, Any]:
    """What a process has read of a file: hosts, and what they have called its version."""
    versions = Versions()
    for host, etag in parts:
        versions.note("file", host, etag)
    versions.note_compared(["file"] * compared)
    said: Mapping[str, Any] = json.loads(json.dumps(versions.as_json()))
    return said


A, B, WEAK_A, UNNAMED = ("one", '"a"'), ("one", '"b"'), ("one", 'W/"a"'), ("one", None)
ELSEWHERE, SAME_ELSEWHERE = ("other", '"b"'), ("other", '"a"')


@pytest.mark.parametrize(
    ("readers", "kind"),
    [
        ([read(A), read(A)], "etag"),
        ([read(A, WEAK_A), read(WEAK_A)], "etag"),
        ([read(A), read(SAME_ELSEWHERE)], "etag"),
        ([read(A), read(A, compared=True)], "sha256"),
        ([read(A, compared=True), read(B, compared=True)], "sha256"),
        ([read(A, B, compared=True), read(compared=True)], "sha256"),
        ([read(UNNAMED, compared=True)], "sha256"),
        ([read(A), read(ELSEWHERE)], "size"),
        ([read(A, ELSEWHERE)], "size"),
        ([read(A), read(ELSEWHERE, compared=True)], "size"),
        ([read(A), read(UNNAMED)], "size"),
        ([read(UNNAMED), read(UNNAMED, compared=True)], "size"),
    ],
)
def test_what_is_compared(readers: list[Mapping[str, Any]], kind: str) -> None:
    assert counted("it", readers) == {kind: 1}


@pytest.mark.parametrize(
    "readers", [[read(A), read(B)], [read(A, B)], [read(A, compared=True), read(B)], [read(ELSEWHERE, A), read(B)]]
)
def test_a_host_that_names_two_versions_has_had_two(readers: list[Mapping[str, Any]]) -> None:
    with pytest.raises(NotAsReadError, match=r'it: what has arrived of file from one are parts .*"a", "b"'):
        counted("it", readers)


def test_of_nothing_nothing_is_compared() -> None:
    assert counted("it", [read(), read(compared=True)]) == {}
