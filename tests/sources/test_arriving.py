"""Weights of the hub are converted as they arrive, whether they are kept or not."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from support import large
from support.command import command
from support.hub import Handler, Hub

import lazyload
from lazyload import errors
from lazyload.sources import ModelReference, open_source, passing

MODEL = "org/model"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 20000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}
WEIGHTS = r"GET .*\.safetensors(?= |$)"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embedding and layers, in several files."""
    return large.write(tmp_path_factory.mktemp("models") / "shards", CONFIG, shard_bytes=2e5)


@pytest.fixture(scope="module")
def single(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one file."""
    folder = tmp_path_factory.mktemp("models") / "single"
    folder.mkdir()
    shutil.copy(shards / "config.json", folder)
    save_file(tensors_of(shards), folder / "model.safetensors")
    return folder


@pytest.fixture(params=["single", "shards"])
def model(request: pytest.FixtureRequest, hub: Hub) -> Path:
    """The hub has the model."""
    folder: Path = request.getfixturevalue(request.param)
    hub.add(MODEL, folder)
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes are many blocks."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr(passing, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(passing, "_WINDOW_BYTES", 1 << 19)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}


def weights_in(folder: Path) -> list[Path]:
    """What is as large as weights are."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1 << 14]


def changed(handler: Handler, change: Callable[[bytes], bytes]) -> bool:
    """Sends the file that is asked for with other content than it has; no, where there is none."""
    match = re.fullmatch(r"/(org/model)/resolve/([^/]+)/(.+)", handler.path)
    assert match is not None
    folder = handler.server.folder(match[1], match[2])
    assert folder is not None
    path = folder / match[3]
    if path.is_file():
        handler.send_file(path, handler.server.commit(match[1], match[2]), change(path.read_bytes()))
    return path.is_file()


def convert(cache: Path, **options: Any) -> lazyload.CachedCheckpoint:
    return lazyload.convert(MODEL, cache_dir=cache, **{"progress": False, **options})


keeping = pytest.mark.parametrize("keep_source", [True, False], ids=["kept", "not kept"])


@keeping
def test_the_conversion_is_that_of_a_folder(model: Path, cache: Path, tmp_path: Path, keep_source: bool) -> None:
    there = convert(cache, keep_source=keep_source).manifest
    assert there.arrays == lazyload.convert(model, cache_dir=tmp_path / "other").manifest.arrays
    kept = {path.name for path in (tmp_path / "hub").rglob("*.safetensors")}
    assert kept == ({path.name for path in model.glob("*.safetensors")} if keep_source else set())
    assert bool(weights_in(tmp_path / "hub")) == keep_source
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


@keeping
def test_nothing_is_sent_twice(hub: Hub, model: Path, cache: Path, keep_source: bool) -> None:
    convert(cache, keep_source=keep_source)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    headers = 3 * 131072 * len(list(model.glob("*.safetensors")))
    assert hub.sent <= size + headers


@keeping
def test_what_has_arrived_is_read_while_the_rest_is_held_back(hub: Hub, model: Path, keep_source: bool) -> None:
    """The hub goes on only once the first tensor has been read: with its file's rest, and with all other files."""
    names = sorted(tensors_of(model))
    source, released, sent = open_source(ModelReference(MODEL)), threading.Event(), 0
    first = min(names, key=source.position)
    (file,) = (path.name for path in model.glob("*.safetensors") if first in load_file(path))

    def hold(path: str, nbytes: int) -> None:
        nonlocal sent
        sent += nbytes * path.endswith(file)
        if sent > 6_000_000 or not path.endswith(file):
            released.wait(30)

    hub.meanwhile = hold
    array = tensors_of(model)[first]
    with source.arriving(names, keep=keep_source):
        assert array.nbytes > 4_000_000
        np.testing.assert_array_equal(source.read(first, tuple(slice(0, size) for size in array.shape)), array)
        assert not released.is_set()
        released.set()
    source.close()


@keeping
def test_a_damaged_download_is_not_published(
    hub: Hub, model: Path, cache: Path, tmp_path: Path, keep_source: bool
) -> None:
    """The last byte of each file arrives as another one."""

    def spoil(handler: Handler) -> bool:
        return changed(handler, lambda content: content[:-1] + bytes([content[-1] ^ 1]))

    hub.faults.append((WEIGHTS, spoil))
    with pytest.raises(errors.CorruptSourceError, match="is not the file that the hub speaks of"):
        convert(cache, keep_source=keep_source)
    assert not list(cache.rglob("manifest.json"))
    assert not list(cache.rglob("data-*"))
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    hub.recover()
    assert convert(cache, keep_source=keep_source).converted


@keeping
@pytest.mark.parametrize("how", ["reset", "cut off", 429, 500])
def test_what_passes_is_overcome(
    hub: Hub,
    single: Path,
    cache: Path,
    tmp_path: Path,
    keep_source: bool,
    how: str | int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lazyload.sources.patience._WAITS", (0.01, 0.01, 0.1))
    hub.add(MODEL, single)
    times, failed = 0, set()

    def fail(handler: Handler) -> bool:
        nonlocal times
        times += 1
        request = handler.path, handler.headers["Range"]
        if times % 3 != 2 or times > 30 or request in failed:
            return False
        failed.add(request)
        if how == "reset":
            handler.close_connection = True
        elif how == "cut off":
            handler.send(200, b"too short", {"Content-Length": "100000", "X-Repo-Commit": hub.commit(MODEL)})
            handler.close_connection = True
        else:
            handler.send(int(how), b"busy")
        return True

    hub.faults.append((WEIGHTS, fail))
    arrays = convert(cache, keep_source=keep_source).manifest.arrays
    assert failed
    assert arrays == lazyload.convert(single, cache_dir=tmp_path / "other").manifest.arrays


@keeping
def test_a_full_disk_ends_the_download(
    hub: Hub, shards: Path, cache: Path, keep_source: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(MODEL, shards)
    hub.meanwhile = lambda path, nbytes: time.sleep(0.05)

    def fail(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("lazyload.layouts.lazy.LazyTensor.read_into", fail)
    started = time.monotonic()
    with pytest.raises((errors.CacheError, OSError)):
        convert(cache, keep_source=keep_source)
    assert time.monotonic() - started < 5
    sent = hub.sent
    time.sleep(0.3)
    assert hub.sent - sent < 1 << 20
    assert not list(cache.rglob("data-*"))


@keeping
def test_some_layers_need_few_bytes(hub: Hub, shards: Path, cache: Path, tmp_path: Path, keep_source: bool) -> None:
    hub.add(MODEL, shards)
    there = convert(cache, layers=range(1, 2), keep_source=keep_source).manifest
    assert there.arrays == lazyload.convert(shards, layers=range(1, 2), cache_dir=tmp_path / "other").manifest.arrays
    asked = hub.asked(WEIGHTS + "$" if keep_source else WEIGHTS + " bytes=(?!0-131071)")
    files = {request.split()[1].rsplit("/", 1)[1] for request in asked}
    every = {path.name for path in shards.glob("*.safetensors")}
    assert files < every
    assert len(files) < len(every) - 1


@keeping
def test_hits_need_no_hub_afterwards(hub: Hub, single: Path, cache: Path, keep_source: bool) -> None:
    hub.add(MODEL, single)
    assert convert(cache, keep_source=keep_source).converted
    hub.requests.clear()
    assert not convert(cache, local_files_only=True).converted
    assert not hub.requests


def test_what_is_in_the_hub_s_cache_is_read_there_and_stays(hub: Hub, model: Path, cache: Path, tmp_path: Path) -> None:
    convert(cache)
    there = weights_in(tmp_path / "hub")
    hub.requests.clear()
    assert convert(cache, dtype="float32", keep_source=False).converted
    assert not hub.asked(WEIGHTS + "( bytes=(?!0-131071)|$)")
    assert weights_in(tmp_path / "hub") == there


def small_adapter(folder: Path) -> Path:
    name = "model.layers.0.self_attn.q_proj"
    return write_adapter(
        folder, {f"{name}.lora_A.weight": np.ones((4, 128)), f"{name}.lora_B.weight": np.ones((128, 4))}
    )


def write_adapter(folder: Path, matrices: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir()
    named = {f"base_model.model.{name}": array.astype(np.float32) for name, array in matrices.items()}
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4} | config))
    return folder


@keeping
@pytest.mark.parametrize("row", [None, 12345])
def test_a_tied_model_with_a_head_of_its_own(
    hub: Hub, single: Path, cache: Path, tmp_path: Path, keep_source: bool, row: int | None
) -> None:
    """It is used where it differs, be it in a row that no sample shows; to learn it, nothing is sent twice."""
    served = Path(shutil.copytree(single, tmp_path / "served"))
    arrays = tensors_of(single)
    head = arrays["model.embed_tokens.weight"].copy()
    if row is not None:
        head[row] += 1
    save_file(arrays | {"lm_head.weight": head}, served / "model.safetensors")
    hub.add(MODEL, served)
    plan = lazyload.plan(MODEL, cache_dir=cache, adapter=small_adapter(tmp_path / "adapter"))
    assert plan.nbytes > 0
    samples = 64 * 65536 + 4 * 131072
    assert hub.sent < samples
    hub.sent = 0
    there = convert(cache, keep_source=keep_source).manifest.arrays
    assert ("lm_head.kernel" in there) == (row is not None)
    assert there == lazyload.convert(served, cache_dir=tmp_path / "other").manifest.arrays
    if row is None:
        assert hub.sent < (served / "model.safetensors").stat().st_size + samples
    # Of what is here by now samples would say nothing.
    pair = "model.embed_tokens.weight", "lm_head.weight"
    source = open_source(ModelReference(MODEL))
    source.take_over({"compared": [[*pair, True]], "checked": []})
    assert source.looks_equal(*pair) is True, "as the first process has said"


@pytest.mark.parametrize(("use_dora", "keep_source"), [(False, True), (False, False), (True, False)])
def test_an_embedding_that_an_adapter_unties_is_sent_once(
    hub: Hub,
    single: Path,
    cache: Path,
    tmp_path: Path,
    use_dora: bool,
    keep_source: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for the beginning, which is read before to see that the adapter makes a difference."""
    monkeypatch.setattr("lazyload.formats.stored._BYTES_AT_ONCE", 1 << 16)
    hub.add(MODEL, single)
    matrices = {"lm_head.lora_A.weight": np.ones((4, 128)), "lm_head.lora_B.weight": np.ones((20000, 4))}
    if use_dora:
        # A tile is read twice, while it is in the window.
        monkeypatch.setattr("lazyload.adapting.changes._TILE_SIZE", 1 << 14)
        matrices["lm_head.lora_magnitude_vector"] = np.ones(20000)
    adapter = write_adapter(tmp_path / "adapter", matrices, use_dora=use_dora)
    made = convert(cache, keep_source=keep_source, adapter=adapter, storage=lazyload.Storage(chunk_bytes=1 << 18))
    assert {"embed.embedding", "lm_head.kernel"} <= made.manifest.arrays.keys()
    assert hub.sent < 1.2 * (single / "model.safetensors").stat().st_size


def test_lengths_of_an_embedding_are_not_read_to_see_that_it_is_untied(
    hub: Hub, single: Path, cache: Path, tmp_path: Path
) -> None:
    hub.add(MODEL, single)
    names = ("A", np.ones((4, 20000))), ("B", np.ones((128, 4)))
    matrices = {f"model.embed_tokens.lora_embedding_{half}": array for half, array in names}
    matrices["model.embed_tokens.lora_magnitude_vector"] = np.ones(128)
    plan = lazyload.plan(MODEL, cache_dir=cache, adapter=write_adapter(tmp_path / "adapter", matrices, use_dora=True))
    assert plan.nbytes > 2 * 2 * 20000 * 128
    assert hub.sent < 20000 * 128


PROGRAM = """
import sys
from huggingface_hub import constants
from lazyload.sources import passing
import lazyload
constants.DOWNLOAD_CHUNK_SIZE = passing._BLOCK_BYTES = 1 << 16
try:
    made = lazyload.convert(sys.argv[1], cache_dir=sys.argv[2], keep_source=sys.argv[3] == "True", progress=False)
except KeyboardInterrupt:
    sys.exit(130)
print(made.converted)
"""


@pytest.fixture
def program(tmp_path: Path, cache: Path) -> Iterator[Callable[[bool], subprocess.Popen[str]]]:
    """Converts in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(lazyload.__file__).parents[1]),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    started = []

    def start(keep_source: bool) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROGRAM, MODEL, str(cache), str(keep_source)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@keeping
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_process_that_ends_early_leaves_no_hit(
    hub: Hub,
    shards: Path,
    cache: Path,
    tmp_path: Path,
    program: Callable[[bool], subprocess.Popen[str]],
    keep_source: bool,
    sent: signal.Signals,
) -> None:
    hub.add(MODEL, shards)
    going_on = threading.Event()

    def slow(path: str, nbytes: int) -> None:
        if hub.sent > 1_000_000:
            going_on.set()
        time.sleep(0.05)

    hub.meanwhile = slow
    process = program(keep_source)
    assert going_on.wait(60)
    started = time.monotonic()
    process.send_signal(sent)
    assert process.wait(20) == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert time.monotonic() - started < 10
    hub.recover()
    if sent == signal.SIGINT:
        assert not list(cache.rglob("data-*"))
    assert not list(cache.rglob("manifest.json"))
    if not keep_source:
        assert not weights_in(tmp_path / "hub")
    assert convert(cache, keep_source=keep_source).converted
    lazyload.Cache(cache).prune()
    assert len(list(cache.rglob("data-*"))) == 1


@keeping
def test_of_two_processes_at_once_one_converts(
    hub: Hub, single: Path, program: Callable[[bool], subprocess.Popen[str]], keep_source: bool
) -> None:
    hub.add(MODEL, single)
    with ThreadPoolExecutor(2) as pool:
        processes = [program(keep_source) for _ in range(2)]
        told = list(pool.map(lambda process: process.communicate(timeout=60)[0].strip(), processes))
    assert sorted(told) == ["False", "True"]


def test_the_command_has_the_option(hub: Hub, single: Path, cache: Path, tmp_path: Path) -> None:
    hub.add(MODEL, single)
    command("convert", MODEL, "--no-keep-source", cache=cache)
    assert not weights_in(tmp_path / "hub")


def test_progress_tells_of_the_download_until_all_has_arrived(hub: Hub, model: Path, cache: Path) -> None:
    seen: list[lazyload.Progress] = []
    convert(cache, keep_source=False, progress=seen.append)
    stages = [progress.stage for progress in seen]
    assert stages == sorted(stages, key=["fetch", "convert"].index)
    fetched = [progress for progress in seen if progress.stage == "fetch"]
    assert fetched[-1].done == fetched[-1].total == sum(path.stat().st_size for path in model.glob("*.safetensors"))
    report = lazyload.last_report()
    assert {"fetch", "convert"} <= set(report.seconds)
    assert re.search(r"fetch \d+\.\d\d s, convert", str(report))
