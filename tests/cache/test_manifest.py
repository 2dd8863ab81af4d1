"""Manifests: what is written is read again, and nothing that is not one is taken for one."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lazyload.cache.manifest import Manifest, UnreadableManifestError, checksum_of, read_manifest

MANIFEST = Manifest(
    key="0" * 32,
    fields={"dtype": "bfloat16", "storage": {"ocdbt": True}},
    model="org/model",
    data="data-1",
    item="items",
    nbytes=8,
    arrays={"a": {"shape": [2]}},
    files={"a/0.0": {"size": 8}, "_METADATA": {"size": 2, "sha256": "0" * 64}},
    source={"path": "/models/it"},
    config={"model_type": "llama", "rope_theta": 1e6},
    created="2026-11-23T20:26:42+00:00",
    seconds=0.5,
    versions={"python": "3.11.7"},
    writer={"host": "here", "pid": 1},
)


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a manifest with a checksum that is right, whatever the rest is."""
    content = {name: value for name, value in content.items() if name != "checksum"}
    path.write_text(json.dumps(content | {"checksum": checksum_of(content)}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.json"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item": ""},
        {"nbytes": 0, "seconds": 0},
        {"nbytes": (1 << 63) - 1, "created": "1971-01-01T00:00:00Z"},
        {"created": "9998-12-31T23:00:00-12:00"},
    ],
)
def test_what_is_written_is_read_again(path: Path, changes: dict[str, Any]) -> None:
    manifest = dataclasses.replace(MANIFEST, **changes)
    path.write_text(manifest.to_json())
    assert read_manifest(path) == manifest


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "key": [None, 7],
        "fields": [None, [], "x"],
        "model": [None, 7],
        "data": [None, 7, "", "elsewhere", "data-1/..", "../data-1", "data-1/a"],
        "item": [None, 7, "..", ".", "a/b", "/a", "a/"],
        "nbytes": [None, True, "8", 1.5, -1, 1 << 63, 10**400],
        "arrays": [None, [], {"a": 7}, {"a": {}, "b": []}],
        "files": [None, [], {"a": 8}, {"a": {"size": "8"}}, {"../a": {"size": 8}}, {"/a": {"size": 8}}],
        "source": [None, []],
        "config": [None, []],
        "created": [None, 7, "yesterday", "2026-11-23", "2026-11-23T20:26:42", "0001-01-01T00:00:00+00:00",
                    "1970-01-01T00:00:00+00:00", "9999-01-01T00:00:00+00:00"],
        "seconds": [None, True, "1", -1, -0.1, 2.0**63, 10**400],
        "versions": [None, []],
        "writer": [None, "me"],
    }.items(),
)  # fmt: skip
def test_a_malformed_field_is_named(path: Path, field: str, values: list[Any]) -> None:
    for value in values:
        write(path, {**json.loads(MANIFEST.to_json()), field: value})
        with pytest.raises(UnreadableManifestError, match=rf"{re.escape(str(path))}: missing or malformed: {field} \("):
            read_manifest(path)


def test_all_malformed_fields_are_named(path: Path) -> None:
    write(path, {"format": 2, "key": "x" * 1000, "nbytes": "x" * 1000})
    with pytest.raises(UnreadableManifestError, match=r"nbytes .*versions .*writer") as caught:
        read_manifest(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("version", [None, 0, 3, "2"])
def test_another_format_is_not_read(path: Path, version: Any) -> None:
    write(path, {**json.loads(MANIFEST.to_json()), "format": version})
    with pytest.raises(UnreadableManifestError, match="format"):
        read_manifest(path)


def test_any_change_is_noticed(path: Path) -> None:
    content = json.loads(MANIFEST.to_json())
    path.write_text(json.dumps(content | {"config": content["config"] | {"rope_theta": 1e5}}))
    with pytest.raises(UnreadableManifestError, match="its checksum is not that of its content"):
        read_manifest(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1" * 5000])
def test_numbers_that_are_none_are_refused_wherever_they_stand(path: Path, number: str) -> None:
    path.write_text(MANIFEST.to_json().replace("1000000.0", number))
    assert number in path.read_text()
    with pytest.raises(UnreadableManifestError):
        read_manifest(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnreadableManifestError, match=re.escape(str(path))):
        read_manifest(path)


def test_no_manifest_and_one_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(UnreadableManifestError, match="No such file"):
        read_manifest(path)
    path.mkdir()
    with pytest.raises(UnreadableManifestError, match="is a folder"):
        read_manifest(path)
