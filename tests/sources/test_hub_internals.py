"""What is relied on of huggingface_hub beyond what it documents holds for the version installed here."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import get_session
from support.hub import Hub

from lazyload.sources.hub_internals import HTTP_ERRORS, commit_of_file, is_known_missing, sha256_of_download

MODEL = "org/model"


@pytest.fixture(autouse=True)
def model(hub: Hub, tmp_path: Path) -> None:
    """The hub has a model of one file."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    hub.add(MODEL, tmp_path / "model")


def test_a_downloaded_file_lies_in_a_folder_named_by_its_commit(hub: Hub, tmp_path: Path) -> None:
    path = Path(hf_hub_download(MODEL, "config.json"))
    commit = hub.commit(MODEL)
    assert path == tmp_path / "hub" / "models--org--model" / "snapshots" / commit / "config.json"
    assert commit_of_file(path) == commit


def test_what_a_commit_has_not_is_remembered(hub: Hub) -> None:
    commit = hub.commit(MODEL)
    assert not is_known_missing(MODEL, "model.safetensors", commit)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(MODEL, "model.safetensors", revision=commit)
    assert is_known_missing(MODEL, "model.safetensors", commit)
    hf_hub_download(MODEL, "config.json", revision=commit)
    assert not is_known_missing(MODEL, "config.json", commit)


@pytest.mark.parametrize("shared", [False, True])
def test_a_downloaded_file_of_weights_names_its_sha256(hub: Hub, tmp_path: Path, shared: bool) -> None:
    content = b"weights"
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    path = Path(hf_hub_download(MODEL, "model.safetensors"))
    if shared:
        # As huggingface_hub 2.4 stores what comes from Xet: for all repositories at once, by another hash.
        blob, store = path.resolve(), tmp_path / "hub" / "blobs" / "ab" / ("ab" * 32)
        store.parent.mkdir(parents=True)
        blob.rename(store)
        blob.symlink_to(store)
    assert path.read_bytes() == content
    assert sha256_of_download(path) == hashlib.sha256(content).hexdigest()


def test_a_file_without_a_link_names_nothing(tmp_path: Path) -> None:
    assert sha256_of_download(tmp_path / "model" / "config.json") is None


def test_the_bases_of_the_http_library_s_errors() -> None:
    with pytest.raises(HTTP_ERRORS):
        get_session().get("http://127.0.0.1:9/", timeout=5)
