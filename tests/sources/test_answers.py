"""Answers of the hub that are handed on: who has them reads the same, and asks the hub nothing."""

import collections
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from support import checkpoints
from support.hub import Handler, Hub

from lazyload.sources import ModelReference, Source, open_source, passing
from lazyload.sources.answers import Answers
from lazyload.sources.files import NotAsReadError
from lazyload.sources.stretches import Wanted


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
    with contextlib.closing(opened()) as first:
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


@pytest.mark.parametrize("name", ["llama3_tied", "qwen2_gptq", "deepseek_v3_fp8", "kimi_k2_int4"])
def test_two_that_read_half_of_each_tensor_fetch_each_byte_once(
    name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoints.make(name, tmp_path)
    hub.add("some/model", folder)
    hub.elsewhere = True
    monkeypatch.setattr(passing, "_SHARED_GAP_BYTES", 0)
    monkeypatch.setattr(passing, "_SHARED_PART", 1 << 40)
    with contextlib.closing(opened()) as source:
        expected = everything(source)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(contextlib.closing(opened())) for _ in range(2))
        with caplog.at_level(logging.DEBUG, "lazyload"):
            halves = [one_half(source, number) for number, source in enumerate([first, second])]
        assert "more than once" not in caplog.text
        nbytes = [
            source.nbytes_to_fetch(half, keep=False, rows=rows_of_half(source, number))
            for number, (source, half) in enumerate(zip([first, second], halves, strict=True))
        ]
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert sum(nbytes) < 1.1 * size, "scales are fetched by both"
        first.compare_versions([second.versions()])
        assert first.compared == {"etag": len([*folder.glob("*.safetensors")])}
        for tensor, array in expected.items():
            axis = first.tensors[tensor].outermost
            found = np.concatenate([half[tensor] for half in halves], axis) if array.ndim else halves[1][tensor]
            np.testing.assert_array_equal(found, array, err_msg=tensor)


def test_what_is_compared_is_wanted_once_more(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("some/model", checkpoints.make("llama3", tmp_path))
    pair = embed, head = "model.embed_tokens.weight", "lm_head.weight"
    wanted: collections.Counter[tuple[str, int]] = collections.Counter()
    with contextlib.closing(opened()) as source:

        @contextlib.contextmanager
        def arriving(of_files: Wanted, *_: object, **options: object) -> Iterator[Mapping[str, int]]:
            wanted.update((file, at) for file, found in of_files.items() for each in found for at in range(*each))
            yield {}

        monkeypatch.setattr(source._files, "arriving", arriving)
        source.take_over({"compared": [[*pair, True]], "checked": []})
        # Some rows are read twice; others are neighbours, and compared as one.
        with (
            pytest.raises(NotAsReadError, match="look equal in 32 places, and are not"),
            source.arriving([embed], keep=False, rows={embed: [(0, 3), (0, 3), (3, 4)]}),
        ):
            pass
        assert source.unequal == [pair]
        row = source.tensors[embed].shape[1] * source.tensors[embed].dtype.itemsize
        places = {name: (source._stored[name].file, source._stored[name].start) for name in pair}
    times = {embed: [3, 3, 3, 2], head: [1, 1, 1, 1]}
    expected = {
        (file, start + number * row): times[name][number]
        for name, (file, start) in places.items()
        for number in range(4)
    }
    assert {at: wanted[at] for at in expected} == expected
    assert wanted.total() == row * sum(expected.values())


def test_parts_of_different_versions_are_found_out(hub: Hub, tmp_path: Path) -> None:
    folder = checkpoints.make("llama3_tied", tmp_path)
    hub.add("some/model", folder)
    hub.elsewhere = True

    def sent_as(etag: str) -> Callable[[Handler], bool]:
        def send(handler: Handler) -> bool:
            handler.send_file(folder / "model.safetensors", "", headers={"ETag": etag})
            return True

        return send

    seen = {}
    for etag in ("a", "b", ""):
        with contextlib.closing(opened()) as source:
            assert source.tensors
            hub.faults = [("elsewhere", sent_as(etag))]
            one_half(source, 0)
            hub.faults = []
            seen[etag] = source.versions()
            source.compare_versions([seen["a"]] if etag != "b" else [])
            assert source.compared == ({"etag": 1} if etag else {"size": 1})
            if etag == "b":
                with pytest.raises(
                    NotAsReadError, match=r"from localhost:\d+ are parts of different versions \(a, b\)"
                ):
                    source.compare_versions([seen["a"]])


def opened() -> Source:
    return open_source(ModelReference("some/model"))


def rows_of_half(source: Source, number: int) -> dict[str, list[tuple[int, int]]]:
    """The first or the second half of the rows of each tensor."""
    return {
        name: [(info.rows // 2 * number, info.rows // 2 if number == 0 else info.rows)]
        for name, info in source.tensors.items()
    }


def one_half(source: Source, number: int) -> dict[str, np.ndarray]:
    """The same, while they pass."""
    halves, found = rows_of_half(source, number), {}
    with source.arriving(list(halves), keep=False, rows=halves):
        for name, (rows,) in halves.items():
            box = [slice(0, size) for size in source.tensors[name].shape]
            if box:
                box[source.tensors[name].outermost] = slice(*rows)
            found[name] = source.read(name, tuple(box)).copy()
    return found


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
