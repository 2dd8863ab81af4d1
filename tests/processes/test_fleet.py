"""Fleets: processes load one model together, bit for bit as one process does, or all of them are told why not."""

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import buckets, tiny
from support.cloud_storage import CloudStorage, Fault, Stored
from support.fleet import Answer, Fleet, fleet
from support.hub import TOKEN, Handler, Hub
from support.large import LLAMA, write

import lazyload
from lazyload.cache.manifest import checksum_of
from lazyload.sources import ModelReference
from lazyload.team.joint import is_of_peers
from lazyload.together import _differences_of_reference

pytestmark = pytest.mark.xdist_group("fleet")

SOON = 5.0
"""Seconds after which all have raised what one of them has raised."""

PATIENCE = 2.0

LARGE = {
    **LLAMA,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "num_hidden_layers": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model with other weights."""
    return str(other_weights(tmp_path_factory.mktemp("other")))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of many chunks, where these are small."""
    return str(write(tmp_path_factory.mktemp("large"), LARGE))


@pytest.fixture(scope="module")
def twins(large: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with a head that is stored although it is the embedding."""
    folder = Path(shutil.copytree(large, tmp_path_factory.mktemp("twins"), dirs_exist_ok=True))
    change_head(folder)
    (folder / "config.json").write_text(json.dumps({**LARGE, "tie_word_embeddings": True}))
    return str(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two processes of four devices, which find the store of the tests."""
    with fleet(2, 4, tmp_path_factory.mktemp("two"), buckets.running().environment()) as running:
        yield running


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Four processes of two devices, which find it, too."""
    with fleet(4, 2, tmp_path_factory.mktemp("four"), buckets.running().environment()) as running:
        yield running


def other_weights(folder: Path) -> Path:
    tiny.make(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return folder


def change_head(folder: Path, at: int | None = None) -> None:
    """Gives a model the embedding as its head, but for one byte."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].copy()
    if at is not None:
        head.reshape(-1).view(np.uint8)[at] ^= 1
    save_file({**tensors, "lm_head.weight": head}, file)


def in_one_process(model: str, **options: Any) -> Mapping[str, np.ndarray]:
    arrays = lazyload.from_pretrained(model, layout=lazyload.MaxText(), **options)
    return {jax.tree_util.keystr(path): np.asarray(array) for path, array in jax.tree.leaves_with_path(arrays)}


def convert(model: str, cache: Path) -> None:
    lazyload.convert(model, cache_dir=cache, layout=lazyload.MaxText())


def require_equal(answers: list[Answer], expected: Mapping[str, np.ndarray]) -> None:
    """Makes sure that processes have, of every array, shards which are bit for bit those of one process."""
    covered = dict.fromkeys(expected, 0)
    for answer in answers:
        assert "error" not in answer, answer
        assert answer["shards"].keys() == expected.keys()
        for path, shards in answer["shards"].items():
            for place, digest in shards:
                part = expected[path][tuple(slice(*limits) for limits in place)]
                assert hashlib.sha256(part.tobytes()).hexdigest() == digest, path
                covered[path] += part.size
    assert all(covered[path] >= array.size for path, array in expected.items())


def command(model: str, cache: Path | str, **options: Any) -> dict[str, Any]:
    return {"model": model, "options": {"cache_dir": str(cache), "patience": 20, **options}}


def require_raised(answers: list[Answer], first: int, *words: str) -> None:
    """Makes sure that all have raised an error that says where it comes from, soon after one of them has."""
    assert all("error" in answer for answer in answers), answers
    times = [answer["at"] for answer in answers]
    assert max(times) - min(times) < SOON, times
    for index, answer in enumerate(answers):
        if index != first:
            for word in words:
                assert word in answer["message"], answer


@pytest.mark.parametrize("shape", [[8], [4, 2], [2, 4]], ids=str)
@pytest.mark.parametrize("storage", [{}, {"ocdbt": False}, {"compression": "zstd"}], ids=str)
def test_two_processes_load_what_one_loads(
    two: Fleet, model: str, tmp_path: Path, shape: list[int], storage: Mapping[str, Any]
) -> None:
    load = {**command(model, tmp_path, storage=storage), "mesh": shape}
    expected = in_one_process(model)
    missed, hit = two.run(load), two.run(load)
    require_equal(missed, expected)
    require_equal(hit, expected)
    assert [answer["hit"] for answer in missed] == [False, True], "one of them converts"
    assert [answer["hit"] for answer in hit] == [True, True]
    assert len([path for path in tmp_path.rglob("data-*") if path.is_dir()]) == 1
    assert not list((tmp_path / ".teams").iterdir())


def test_where_the_cache_is_not_shared_each_converts(two: Fleet, model: str, tmp_path: Path) -> None:
    answers = two.run(command(model, tmp_path / "a"), p1=command(model, tmp_path / "b"))
    require_equal(answers, in_one_process(model))
    assert [answer["hit"] for answer in answers] == [False, False]
    answers = two.run(command(model, tmp_path / "a"), p1=command(model, tmp_path / "c"))
    assert [answer["hit"] for answer in answers] == [True, False]


def test_copies_of_a_folder_are_the_same_model(two: Fleet, model: str, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    answers = two.run(command(model, tmp_path / "cache"), p1=command(str(copy), tmp_path / "cache"))
    require_equal(answers, in_one_process(model))


@pytest.mark.parametrize(
    ("differing", "word"),
    [
        ({"options": {"dtype": "float32"}}, "dtype: float32 instead of bfloat16"),
        ({"options": {"storage": {"ocdbt": False}}}, "storage.ocdbt: false instead of true"),
        ({"options": {"config": {"rope_theta": 5000.0}}}, "config.rope_theta: 5000.0 instead of"),
        ({"options": {"rules": {"embed": None}}}, "shardings:"),
        ({"mesh": [4, 2]}, "mesh.tp: 2 instead of null"),
        ({"format": 99}, "format: 99 instead of"),
        ({"environment": {"JAX_PLATFORMS": "proxy"}}, "storage."),
        ({"model": "some/model"}, "model: some/model instead of a folder or URL"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calls_that_differ_are_refused_by_all(
    two: Fleet, model: str, tmp_path: Path, differing: Mapping[str, Any], word: str
) -> None:
    load = command(model, tmp_path)
    own = {**differing, "options": {**load["options"], **differing.get("options", {})}}
    answers = two.run(load, p1=own)
    require_raised(answers, -1, "process 1 on", word)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("own", "word"),
    [({"compute_dtype": "float32"}, "compute_dtype: float32 instead of null"), ({"remat": "block"}, "remat: block")],
    ids=["compute_dtype", "remat"],
)
def test_modules_that_differ_are_refused_by_all(
    two: Fleet, model: str, tmp_path: Path, own: Mapping[str, Any], word: str
) -> None:
    load = command(model, tmp_path, layout="nnx")
    answers = two.run(load, p1={"options": {**load["options"], **own}})
    require_raised(answers, -1, "process 1 on", word)


def test_a_process_without_a_device_builds_the_same_module(two: Fleet, model: str, tmp_path: Path) -> None:
    load = {**command(model, tmp_path, layout="nnx", remat="block"), "processes": [1]}
    outside, member = two.run(load)
    assert (outside["remat"], member["remat"]) == ("block", "block")
    assert outside["shards"].keys() == member["shards"].keys()


@pytest.mark.parametrize("index", [0, 1])
def test_an_entry_that_is_lost_once_all_have_agreed_is_an_error_in_all(
    two: Fleet, model: str, tmp_path: Path, index: int
) -> None:
    convert(model, tmp_path)
    answers = two.run(command(model, tmp_path), **{f"p{index}": {"fault": ["lose", str(tmp_path)]}})
    require_raised(answers, index, "call again in all processes")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("UNAVAILABLE: connection refused", True),
        ("DEADLINE_EXCEEDED: barrier timed out", True),
        ("FAILED_PRECONDITION: Buffer Definition Event: Gloo all-gather failed: Connection closed by peer", True),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited", True),
        ("RESOURCE_EXHAUSTED: Out of memory while NCCL allocates", False),
        ("INVALID_ARGUMENT: compilation was ABORTED", False),
    ],
)
def test_errors_of_a_process_alone_name_no_other(message: str, expected: bool) -> None:
    assert is_of_peers(RuntimeError(message)) == expected


def test_places_in_a_repository_are_compared() -> None:
    commit = "c" * 40
    said = {"model": "a/b", "revision": None, "hub": {"identity": {"commit": commit, "subfolder": "x"}}}
    assert _differences_of_reference(ModelReference("a/b", subfolder="x"), said) == []
    assert _differences_of_reference(ModelReference("a/b", subfolder="y"), said) == ["subfolder: y instead of x"]
    assert _differences_of_reference(ModelReference("a/b", subfolder="x", variant="fp16"), said)


@pytest.mark.parametrize("converted", [False, True], ids=["never seen", "seen before"])
def test_other_weights_are_refused_by_all(two: Fleet, model: str, other: str, tmp_path: Path, converted: bool) -> None:
    if converted:
        for weights in (model, other):
            convert(weights, tmp_path)
    answers = two.run(command(model, tmp_path), p1=command(other, tmp_path))
    require_raised(answers, -1, "process 1 on", "source.files.model.safetensors.sha256:")


def test_an_entry_of_other_content_is_refused_by_all(two: Fleet, model: str, tmp_path: Path) -> None:
    for cache in (tmp_path / "a", tmp_path / "b"):
        convert(model, cache)
    manifest = next((tmp_path / "b").rglob("manifest.json"))
    content = json.loads(manifest.read_text())
    next(iter(content["arrays"].values()))["checksum"] = "another"
    del content["checksum"]
    content["checksum"] = checksum_of(content)
    manifest.write_text(json.dumps(content))
    answers = two.run(command(model, tmp_path / "a"), p1=command(model, tmp_path / "b"))
    require_raised(answers, -1, "process 1 on", "checksum: another instead of")


def test_a_branch_that_moves_is_resolved_by_one(two: Fleet, model: str, other: str, hub: Hub, tmp_path: Path) -> None:
    hub.add("some/model", Path(model))
    alone = {**command("some/model", tmp_path / "b", token="hf_second"), "processes": [1]}
    assert two.run(alone, p0=None)[1]["count"]
    hub.add("some/model", Path(other))
    tokens: list[str] = []

    def note(request: Handler) -> bool:
        tokens.append(request.headers["Authorization"])
        return False

    # Each process asks for the weights of its share.
    hub.faults.append((r"^(?!.*safetensors )", note))
    load = command("some/model", tmp_path / "a", token="hf_first")
    seen_first = command("some/model", tmp_path / "b", token="hf_second", local_files_only=True)
    require_raised(two.run(load, p1=seen_first), 1, "process 1 on", "asked")
    answers = two.run(load, p1=command("some/model", tmp_path / "a", token="hf_second"))
    require_equal(answers, in_one_process(other))
    assert {*tokens} == {"Bearer hf_first"}, "only the first process asks the hub"


def test_an_adapter_is_resolved_by_one(two: Fleet, model: str, hub: Hub, tmp_path: Path) -> None:
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    matrices = {f"{module}.lora_A.weight": np.eye(4, 16), f"{module}.lora_B.weight": np.ones((16, 4))}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(
        {name: array.astype(np.float32) for name, array in matrices.items()}, adapter / "adapter_model.safetensors"
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    hub.add("org/adapter", adapter)
    hub.private.add("org/adapter")
    load = command(model, tmp_path / "cache", adapter="org/adapter", token=TOKEN)
    own = {"options": {**load["options"], "token": "hf_second"}}
    expected = in_one_process(model, adapter=str(adapter), cache_dir=tmp_path / "one")
    require_equal(two.run(load, p1=own), expected)
    hub.told.clear()
    require_equal(two.run(load, p1=own), expected)
    assert {token.split()[-1] for token in hub.told} == {TOKEN}, "only the first process asks the hub"
    own["options"]["adapter"] = "org/adapter@v2"
    require_raised(two.run(load, p1=own), -1, "process 1 on", "adapter.revision: v2 instead of None")
    for options in (load["options"], own["options"]):
        options |= {"merge": False, "layout": "nnx"}
    require_raised(two.run(load, p1=own), -1, "process 1 on", "adapter.revision: v2 instead of None")
    assert {token.split()[-1] for token in hub.told} == {TOKEN}, "nor for one that is kept apart"


@pytest.mark.parametrize("own", [{"token": "hf_second"}, {"local_files_only": True}], ids=["token", "local_files_only"])
def test_a_share_of_what_a_process_cannot_read_is_left_to_the_first(
    two: Fleet, model: str, hub: Hub, tmp_path: Path, own: Mapping[str, Any]
) -> None:
    hub.add("some/model", Path(model))
    hub.private.add("some/model")
    load = command("some/model", tmp_path, token=TOKEN)
    answers = two.run(load, p1={"options": {**load["options"], **own}})
    require_equal(answers, in_one_process(model))
    assert [answer["hit"] for answer in answers] == [False, True]
    assert len([path for path in tmp_path.rglob("data-*") if path.is_dir()]) == 1


@pytest.mark.parametrize("index", [0, 1])
def test_weights_that_one_has_downloaded_may_be_converted_by_all_and_again(
    two: Fleet, model: str, hub: Hub, tmp_path: Path, index: int
) -> None:
    hub.add(f"some/model{index}", Path(model))
    alone = {**command(f"some/model{index}", tmp_path / "alone"), "processes": [index]}
    assert two.run(alone, **{f"p{1 - index}": None})[index]["count"]
    load, expected = command(f"some/model{index}", tmp_path / "all"), in_one_process(model)
    require_equal(two.run(load), expected)
    again = two.run(command(f"some/model{index}", tmp_path / "all", force_convert=True))
    require_equal(again, expected)
    assert [answer["hit"] for answer in again] == [False, True], "one of them publishes"


def test_different_revisions_are_refused_by_all(two: Fleet, model: str, hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("some/model", Path(model))
    load = command("some/model", tmp_path)
    require_equal(two.run(load, p1=command("some/model", tmp_path, revision=commit)), in_one_process(model))
    answers = two.run(load, p1=command("some/model", tmp_path, revision="v2"))
    require_raised(answers, -1, "process 1 on", "revision: v2 instead of None")


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_raises_all_raise(two: Fleet, model: str, tmp_path: Path, failing: int) -> None:
    convert(model, tmp_path)
    load = {**command(model, tmp_path), "fault": ["slow", 1.0]}
    answers = two.run(load, **{f"p{failing}": {"fault": ["raise", "restore"]}})
    assert answers[failing]["error"] == "ConnectionError"
    require_raised(answers, failing, f"process {failing} on", "ConnectionError: the network is gone")
    assert answers[1 - failing]["error"] == "PeerError"


def test_a_conversion_that_fails_fails_in_all(two: Fleet, model: str, tmp_path: Path) -> None:
    answers = two.run({**command(model, tmp_path)}, p0={"fault": ["raise", "convert"]})
    require_raised(answers, 0, "process 0 on", "the network is gone")
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("place", "storage", "content"),
    [
        ("disk", {}, "known"),
        ("disk", {"compression": "zstd"}, "unknown"),
        ("bucket", {"ocdbt": False}, "unknown"),
        ("bucket", {}, "of copies"),
        ("bucket", {"compression": "zstd"}, "known"),
    ],
    ids=str,
)
def test_each_converts_a_share(
    four: Fleet, large: str, tmp_path: Path, cloud: CloudStorage, place: str, storage: Mapping[str, Any], content: str
) -> None:
    if content == "known":
        lazyload.convert(large, cache_dir=tmp_path)
    else:
        large = str(shutil.copytree(large, tmp_path / "never seen"))
    cache = f"{tmp_path}" if place == "disk" else "gs://bucket/cache"
    load = command(large, cache, storage={"chunk_bytes": 1 << 16, **storage})
    copies = {
        f"p{index}": {"model": str(shutil.copytree(large, tmp_path / f"copy {index}"))}
        for index in range(1, 4 * (content == "of copies"))
    }
    answers = four.run({**load, "object_bytes": 1 << 18}, **copies)
    size = sum(file.stat().st_size for file in Path(large).glob("*.safetensors"))
    for answer in answers:
        assert 0 < answer["bytes_read"] < 1.05 * size / 4, [other["bytes_read"] / size for other in answers]
    require_equal(answers, in_one_process(large, cache_dir=tmp_path / "one"))
    assert not any(found.problems for found in lazyload.verify(large, cache_dir=cache))
    assert [answer["hit"] for answer in answers] == [False, True, True, True], "the others have helped"
    cloud.is_read_only = True
    assert all(answer["hit"] for answer in four.run(load)), "also where nothing can be written"


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_the_hub_sends_each_byte_once_and_is_asked_by_one(
    four: Fleet, large: str, twins: str, hub: Hub, tmp_path: Path, cloud: CloudStorage, place: str
) -> None:
    large = large if place == "disk" else twins
    hub.add("some/model", Path(large))
    hub.elsewhere = True
    cache = f"{tmp_path}" if place == "disk" else "gs://bucket/cache"
    load = {**command("some/model", cache, storage={"chunk_bytes": 1 << 16}), "object_bytes": 1 << 18}
    others = {f"p{index}": {"options": {**load["options"], "token": f"hf_{index}"}} for index in range(1, 4)}
    answers = four.run(load, **others)
    require_equal(answers, in_one_process(large, cache_dir=tmp_path / "one"))
    size = sum(file.stat().st_size for file in Path(large).glob("*.safetensors"))
    samples = [(2 << 20) * (large == twins), 0, 0, 0]
    assert size < hub.sent < 1.05 * size + samples[0]
    for answer, more in zip(answers, samples, strict=True):
        assert 0 < answer["bytes_read"] < 1.05 * size / 4 + more, [other["bytes_read"] / size for other in answers]
    assert not hub.told, "a token is sent where the hub is asked"
    (entry,) = lazyload.Cache(cache).entries()
    assert entry.manifest.source["compared"] == {"etag": 1}, "no process has read all of the file"


def test_rows_that_only_look_equal_are_found_out_by_who_reads_them(
    four: Fleet, twins: str, hub: Hub, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(twins, tmp_path / "model"))
    change_head(folder, at=4_100_000)
    hub.add("some/twins", folder)
    answers = four.run(command("some/twins", tmp_path / "cache", storage={"chunk_bytes": 1 << 16}))
    require_equal(answers, in_one_process(str(folder), cache_dir=tmp_path / "one"))
    assert [answer["hit"] for answer in answers] == [False, True, True, True]
    (size,) = (file.stat().st_size for file in folder.glob("*.safetensors"))
    assert answers[0]["bytes_read"] < 1.6 * size, "its share, and all of it once it knows"


def test_parts_of_different_versions_are_converted_by_one(two: Fleet, model: str, hub: Hub, tmp_path: Path) -> None:
    hub.add("some/versions", Path(model))
    hub.elsewhere = True
    seen = []

    def sent_as_another(handler: Handler) -> bool:
        seen.append(handler.path)
        handler.send_file(Path(model, "model.safetensors"), "", headers={"ETag": f"version {len(seen)}"})
        return True

    hub.faults.append(("elsewhere", sent_as_another))
    answers = two.run(command("some/versions", tmp_path))
    require_equal(answers, in_one_process(model))
    (entry,) = lazyload.Cache(tmp_path).entries()
    assert "compared" not in entry.manifest.source, "what one process reads as a whole it compares with its SHA-256"


def test_a_disk_of_each_process_in_front_of_a_bucket(
    four: Fleet, model: str, tmp_path: Path, cloud: CloudStorage
) -> None:
    fronts = [tmp_path / f"front {index}" for index in range(4)]
    own = {
        f"p{index}": {"environment": {"LAZYLOAD_CACHE": f"{front}:gs://bucket/cache"}}
        for index, front in enumerate(fronts)
    }
    load = {"model": model, "options": {"patience": 20}}
    missed = four.run(load, **own)
    require_equal(missed, in_one_process(model, cache_dir=tmp_path / "one"))
    assert [answer["hit"] for answer in missed] == [False, True, True, True], "into the bucket, together"
    require_equal(four.run(load, **own), in_one_process(model, cache_dir=tmp_path / "one"))
    assert [len(lazyload.Cache(front).entries()) for front in fronts] == [1] * 4, "copied to each disk"
    cloud.forget_counts()
    assert all(answer["hit"] for answer in four.run(load, **own))
    assert not cloud.bytes_out, "nothing of it is read from the bucket any more"
    cloud.is_read_only = True
    other = {**load, "options": {**load["options"], "dtype": "float32"}}
    require_equal(four.run(other, **own), in_one_process(model, cache_dir=tmp_path / "one", dtype="float32"))
    assert [len(lazyload.Cache(front).entries()) for front in fronts] == [2] * 4, "the last one that can be written to"


def test_a_bucket_sends_each_byte_once(four: Fleet, large: str, tmp_path: Path, cloud: CloudStorage) -> None:
    for file in Path(large).iterdir():
        cloud.objects[f"model/{file.name}"] = Stored(file.read_bytes(), 1, 0.0)
    cloud.forget_counts()
    answers = four.run(command("gs://bucket/model", tmp_path, storage={"chunk_bytes": 1 << 16}))
    require_equal(answers, in_one_process(large, cache_dir=tmp_path / "one"))
    size = sum(file.stat().st_size for file in Path(large).glob("*.safetensors"))
    assert size < cloud.bytes_out < 1.05 * size


@pytest.mark.parametrize("kind", [500, "reset"])
@pytest.mark.parametrize("storage", [{}, {"compression": "zstd"}], ids=str)
@pytest.mark.parametrize("while_they", ["convert", "read"])
def test_a_bucket_that_dies_is_an_error_of_all_that_names_it(
    two: Fleet,
    model: str,
    tmp_path: Path,
    cloud: CloudStorage,
    monkeypatch: pytest.MonkeyPatch,
    while_they: str,
    storage: Mapping[str, Any],
    kind: Any,
) -> None:
    cache = "gs://bucket/cache"
    load = {**command(model, cache, storage=storage), "is_impatient": True}
    if while_they == "read":
        lazyload.convert(model, cache_dir=cache, layout=lazyload.MaxText(), storage=storage)
    fault = cloud.fault

    def dying(method: str, name: str) -> Any:
        if method == ("POST" if while_they == "convert" else "GET") and re.search("/data-[0-9a-f]+/", name):
            cloud.faults = [Fault(kind, ".*", times=1_000_000)]
        return fault(method, name)

    with monkeypatch.context() as patch:
        patch.setattr(cloud, "fault", dying)
        answers = two.run(load)
    for answer in answers:
        assert answer["error"] == "CacheError", answer
        assert "gs://bucket" in answer["message"]
        assert not re.search("force_convert|max_retries", answer["message"]), answer
        assert answer["seconds"] < 30
    if while_they == "convert":
        assert not [name for name in cloud.objects if name.endswith("manifest.json")]
    cloud.faults = []
    require_equal(two.run(load), in_one_process(model, cache_dir=tmp_path))


@pytest.mark.parametrize("shape", [[8], [2, 4], [1, 8]], ids=str)
@pytest.mark.parametrize("is_set", [False, True], ids=["", "set_mesh"])
def test_a_fleet_reads_each_byte_once(four: Fleet, large: str, tmp_path: Path, shape: list[int], is_set: bool) -> None:
    convert(large, tmp_path)
    load = {**command(large, tmp_path), "mesh": shape, "set_mesh": is_set}
    size = lazyload.plan(large).nbytes
    four.run(load)  # So that everything is imported.
    answers = four.run(load)
    require_equal(answers, in_one_process(large))
    assert sum(answer["read"] for answer in answers) < 1.2 * size + 4 * 200_000
    assert sum(answer["bytes_from_cache"] for answer in answers) < 1.2 * size  # Small arrays are not worth it.
    for answer in answers:
        kept = {(path, str(place)): place for path, shards in answer["shards"].items() for place, _ in shards}
        assert answer["bytes_kept"] == sum(2 * np.prod(np.diff(place)) for place in kept.values())


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_while_a_conversion_is_shared_is_an_error_of_all(
    two: Fleet, model: str, tmp_path: Path, full: int
) -> None:
    answers = two.run(command(model, tmp_path), **{f"p{full}": {"most_bytes": 1000}})
    require_raised(answers, full, f"process {full} on", "the disk is full")
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob("data-*"))


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_one_is_an_error_of_all(two: Fleet, model: str, tmp_path: Path, full: int) -> None:
    own = {"most_bytes": 1000, **command(model, tmp_path / "b")}
    answers = two.run(command(model, tmp_path / "a"), **{f"p{full}": own})
    require_raised(answers, full, f"process {full} on", "the disk is full")
    assert [answer["error"] for answer in answers] == ["CacheError", "CacheError"], "one error, to whoever catches it"


def test_a_damaged_file_of_one_is_an_error_of_all(two: Fleet, model: str, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "config.json").write_text("{")
    answers = two.run(command(model, tmp_path / "cache"), p1=command(str(copy), tmp_path / "cache"))
    require_raised(answers, 1, "process 1 on", "config.json")
    assert [answer["error"] for answer in answers] == ["CorruptSourceError", "CorruptSourceError"]


def test_a_process_that_converts_instead_is_named(two: Fleet, model: str, tmp_path: Path) -> None:
    load = command(model, tmp_path, patience=PATIENCE)
    answers = two.run(load, p1={"call": "convert", "options": {"cache_dir": str(tmp_path)}})
    assert answers[0]["error"] == "PeerError"
    assert "process 1 has not made this call within 2 s" in answers[0]["message"]
    assert f"the last call of it on {os.uname().nodename} is lazyload.convert of {model}" in answers[0]["message"]
    assert answers[0]["seconds"] < PATIENCE + SOON
    late = two.run(load, p0=None)[1]
    assert late["error"] == "PeerError"
    assert late["seconds"] < SOON, "it hears that the others have given up"


def test_another_number_of_calls_is_named(two: Fleet, model: str, tmp_path: Path) -> None:
    load = command(model, tmp_path, patience=PATIENCE)
    two.run(load)
    once_more = two.run(load, p1=None)[0]
    assert once_more["error"] == "PeerError"
    assert "process 1 has not made this call within 2 s" in once_more["message"]
    assert "of processes 0-1, which has ended" in once_more["message"]
    assert two.run(load, p0=None)[1]["error"] == "PeerError"
    require_equal(two.run(load), in_one_process(model))


def test_a_process_is_waited_for_while_it_converts(two: Fleet, model: str, other: str, tmp_path: Path) -> None:
    load = command(model, tmp_path, patience=PATIENCE)
    two.send(
        [load, {"call": "convert", "model": other, "options": {"cache_dir": str(tmp_path)}, "fault": ["slow", 0.2]}]
    )
    two.send([None, load])
    assert two.answer(1)["seconds"] > PATIENCE
    require_equal([two.answer(0), two.answer(1)], in_one_process(model))


def test_a_stopped_process_is_noticed_and_hears_of_it(two: Fleet, model: str, tmp_path: Path) -> None:
    convert(model, tmp_path)
    load = command(model, tmp_path, patience=PATIENCE)
    two.send([load, {**load, "fault": ["stop", "restore"]}])
    waiting = two.answer(0)
    assert waiting["error"] == "PeerError"
    assert "process 1 on" in waiting["message"]
    assert "has shown no sign of life for 2 s: it has been killed or stopped" in waiting["message"]
    assert waiting["seconds"] < PATIENCE + SOON
    two.processes[1].send_signal(signal.SIGCONT)
    assert two.answer(1)["error"] == "PeerError"


@pytest.mark.parametrize("shape", [[8], [4, 2]], ids=str)
def test_four_processes_load_what_one_loads(four: Fleet, model: str, tmp_path: Path, shape: list[int]) -> None:
    load = {**command(model, tmp_path), "mesh": shape}
    require_equal(four.run(load), in_one_process(model))
    require_equal(four.run(load), in_one_process(model))


def test_processes_without_a_device_of_the_mesh_get_arrays_without_shards(
    four: Fleet, model: str, tmp_path: Path
) -> None:
    for processes in ([1, 2], [2]):
        load = {**command(model, tmp_path), "processes": processes}
        answers = four.run(load)
        require_equal([answers[index] for index in processes], in_one_process(model))
        for index in {*range(4)} - {*processes}:
            assert answers[index]["count"] == len(answers[processes[0]]["shards"])
            assert not any(answers[index]["shards"].values())


def test_four_processes_of_four_devices(model: str, tmp_path: Path) -> None:
    expected = in_one_process(model)
    with fleet(4, 4, tmp_path) as running:
        for shape in ([16], [4, 4]):
            require_equal(running.run({**command(model, tmp_path / "cache"), "mesh": shape}), expected)


def test_one_that_fails_while_devices_exchange_what_has_been_read(large: str, tmp_path: Path) -> None:
    convert(large, tmp_path / "cache")
    load = {**command(large, tmp_path / "cache", patience=PATIENCE), "mesh": [1, 4]}
    with fleet(2, 2, tmp_path) as running:
        assert not any("error" in answer for answer in running.run(load))
        # JAX would wait for ever.
        answers = running.run(load, p1={"fault": ["raise", "exchange"]})
        require_raised(answers, 1, "process 1 on", "ConnectionError: the network is gone")
        again = running.run(load)
        require_raised(again, -1, "start all processes again")
        assert max(answer["seconds"] for answer in again) < PATIENCE
        # What still waits in JAX would have Python abort once the other one has ended.
        assert running.leave(first=1) == [0, 0]


def test_killed_processes_are_noticed_by_all(four: Fleet, model: str, tmp_path: Path) -> None:
    load = {**command(model, tmp_path, patience=PATIENCE), "processes": [1, 2, 3]}
    answers = four.run(load, p0=None, p1={"fault": ["kill", "convert"]})
    assert answers[1] == {"died": -signal.SIGKILL}
    require_raised(answers[2:], -1, "process 1 on", "it has been killed or stopped")
    assert max(answer["seconds"] for answer in answers[2:]) < PATIENCE + SOON
    assert not list(tmp_path.rglob("manifest.json"))

    load["processes"] = [0, 2, 3]
    require_equal([answer for answer in four.run(load, p1=None) if answer], in_one_process(model))
    load = {**load, **command(model, tmp_path / "again", patience=PATIENCE)}
    answers = four.run(load, p1=None, p3={"fault": ["kill", "convert"]})
    assert answers[3] == {"died": -signal.SIGKILL}
    require_raised([answers[0], answers[2]], -1, "process 3 on", "it has been killed or stopped")
    assert not list((tmp_path / "again").rglob("manifest.json"))

    # It runs JAX's own service, without which JAX ends every process.
    load["processes"] = [0, 2]
    answers = four.run(load, timeout=PATIENCE + SOON, p1=None, p3=None, p0={"fault": ["kill", "restore"]})
    assert answers[0] == {"died": -signal.SIGKILL}
    assert answers[2].keys() & {"error", "died"}
