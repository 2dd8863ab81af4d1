"""What a call says of its model: what is taken for a hub id, and that no token is ever shown."""

from pathlib import Path

import pytest

from lazyload.sources import ModelReference


def test_the_token_is_not_shown() -> None:
    reference = ModelReference("org/model", "v1", token="hf_secret", local_files_only=True)
    assert "hf_secret" not in f"{reference} {reference!r} {[reference]}"
    assert reference.token == "hf_secret"


@pytest.mark.parametrize("model", ["gpt2", "org/model", "org/model.v1", "not-here/model"])
def test_what_is_taken_for_a_hub_id(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelReference(model).is_hub_id
    assert not ModelReference(Path(model)).is_hub_id, "a path is a path"
    (tmp_path / model).mkdir(parents=True)
    assert not ModelReference(model).is_hub_id, "a folder that is there comes first"


@pytest.mark.parametrize("model", ["gs://a/b", "file:///a", "/a/b", "./a", "../a", "~/a", ".", "..", "a/b/c", ".\\a"])
def test_what_is_never_taken_for_a_hub_id(model: str) -> None:
    assert not ModelReference(model).is_hub_id


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert ModelReference("a/../b").folder == tmp_path / "b"
    assert ModelReference("~/a").folder == Path("/home/me/a")
    assert ModelReference("file:///a/b").folder == Path("/a/b")


@pytest.mark.parametrize(("revision", "commit"), [(None, None), ("main", None), ("a" * 40, "a" * 40), ("A" * 40, None)])
def test_a_revision_that_is_a_commit(revision: str | None, commit: str | None) -> None:
    assert ModelReference("org/model", revision).commit == commit
