"""What is relied on of huggingface_hub beyond what it documents holds for the version installed here."""

from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import get_session
from support.hub import Hub

from lazyload.sources.hub_internals import HTTP_ERRORS, commit_of_file, is_known_missing

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


def test_the_bases_of_the_http_library_s_errors() -> None:
    with pytest.raises(HTTP_ERRORS):
        get_session().get("http://127.0.0.1:9/", timeout=5)
