"""Answers of the hub that are handed on: who has them reads the same, and asks the hub nothing."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from support import checkpoints
from support.hub import Hub

from lazyload.sources import ModelReference, Source, open_source
from lazyload.sources.answers import Answers


def everything(source: Source) -> dict[str, np.ndarray]:
    """All tensors, while they pass."""
    with source.arriving(list(source.tensors), keep=False):
        return {
            name: source.read(name, tuple(slice(0, size) for size in info.shape)).copy()
            for name, info in source.tensors.items()
        }


@pytest.mark.parametrize("name", ["llama3_tied", "qwen2_gptq", "deepseek_v3_fp8", "kimi_k2_int4"])
def test_who_is_told_asks_the_hub_nothing(name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("some/model", checkpoints.make(name, tmp_path))
    hub.elsewhere = True
    with contextlib.closing(open_source(ModelReference("some/model"))) as first:
        assert first.tensors
        answers = json.loads(json.dumps(first.answers()))
        expected = everything(first)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another host"))
    hub.requests.clear()
    with contextlib.closing(open_source(ModelReference("some/model"), answers=answers["files"])) as second:
        second.take_over(answers)
        assert second.config == first.config
        assert second.identity == first.identity
        assert second.origin == first.origin
        assert second.is_for_all
        found = everything(second)
    assert hub.requests
    assert all(request.startswith("GET /elsewhere/") for request in hub.requests), hub.requests
    assert found.keys() == expected.keys()
    for tensor, array in expected.items():
        np.testing.assert_array_equal(found[tensor], array, err_msg=tensor)


def test_answers_are_the_same_on_the_other_side() -> None:
    answers = Answers("c" * 40, "main", {"config.json": b"{}", "index": None}, {"a": (b"\x02" + bytes(7) + b"{}", 9)})
    answers.note_range("a", 100, b"range")
    answers.note_range("a", 200, bytes(1 << 20))
    answers.absent.add("b")
    again = Answers.from_json(json.loads(json.dumps(answers.as_json())))
    assert again == answers
    assert again.known("a", 8, 2) == b"{}"
    assert again.known("a", 100, 5) == b"range"
    assert again.known("a", 200, 1 << 20) is None
