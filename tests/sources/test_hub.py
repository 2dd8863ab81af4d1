"""Models of the hub, from a hub on loopback: what is asked for, what is not, and what every refusal says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.hub import TOKEN, Handler, Hub

import lazyload
from lazyload import errors
from lazyload.arguments import ModelArguments
from lazyload.request import open_request

MODEL = "org/qwen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def model(hub: Hub, folder: Path) -> None:
    """The hub has a model."""
    hub.add(MODEL, folder)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def copied(folder: Path, tmp_path: Path, *without: str) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(*without)))


def test_a_public_model_needs_no_token_and_only_what_is_needed_is_fetched(
    hub: Hub, folder: Path, tmp_path: Path, cache: Path
) -> None:
    served = copied(folder, tmp_path)
    for other in ("tokenizer.json", "pytorch_model.bin", "original.safetensors", "README.md"):
        (served / other).write_bytes(b"not needed")
    hub.add(MODEL, served)
    assert lazyload.convert(MODEL, cache_dir=cache).converted
    fetched = {request.split()[1].rsplit("/", 1)[1] for request in hub.asked("/resolve/")}
    weights = {path.name for path in folder.glob("*.safetensors*")}
    # A single file would count more than an index.
    assert fetched == {"config.json", "model.safetensors", "model.safetensors.index.json"} | weights
    assert lazyload.last_report().bytes_read > 0


def test_the_conversion_is_that_of_the_same_folder(hub: Hub, folder: Path, cache: Path) -> None:
    there = lazyload.convert(MODEL, cache_dir=cache).manifest
    here = lazyload.convert(folder, cache_dir=cache).manifest
    assert there.arrays == here.arrays
    assert there.source == {"id": MODEL, "revision": None, "commit": hub.commit(MODEL)}
    assert there.model == MODEL


@pytest.mark.parametrize("ranges", [True, False])
def test_a_plan_asks_for_headers_only(hub: Hub, cache: Path, tmp_path: Path, ranges: bool) -> None:
    hub.ranges = ranges
    plan = lazyload.plan(MODEL, cache_dir=cache)
    assert not plan.hit
    assert len(plan.parameters) > 10
    assert all("bytes=0-" in request for request in hub.asked(r"GET .*\.safetensors( |$)"))
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert not cache.exists()


def test_a_hit_asks_for_no_weights(hub: Hub, cache: Path) -> None:
    lazyload.convert(MODEL, cache_dir=cache)
    hub.requests.clear()
    assert not lazyload.convert(MODEL, cache_dir=cache).converted
    assert len(hub.requests) == 1
    assert not hub.asked("safetensors")


def test_a_hit_of_a_commit_asks_for_nothing(hub: Hub, tmp_path: Path, cache: Path) -> None:
    commit = hub.commit(MODEL)
    lazyload.convert(MODEL, revision=commit, cache_dir=cache)
    hub.requests.clear()
    shutil.rmtree(tmp_path / "hub")
    assert not lazyload.convert(MODEL, revision=commit, cache_dir=cache).converted
    assert hub.requests == []
    assert lazyload.convert(MODEL, revision=commit, cache_dir=cache, dtype="float32").converted


def test_a_branch_that_moved_is_a_miss(hub: Hub, folder: Path, tmp_path: Path, cache: Path) -> None:
    lazyload.convert(MODEL, cache_dir=cache)
    hub.add(MODEL, copied(folder, tmp_path))
    os.utime(tmp_path / "copy" / "config.json", ns=(1, 1))
    plan = lazyload.plan(MODEL, cache_dir=cache)
    assert not plan.hit
    assert any("source.commit" in reason for reason in plan.reasons)


def test_a_branch_and_its_commit_are_one_entry(hub: Hub, cache: Path) -> None:
    keys = {lazyload.plan(MODEL, revision=name, cache_dir=cache).key for name in (None, "main", hub.commit(MODEL))}
    assert len(keys) == 1


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "down"])
def test_hits_work_offline(hub: Hub, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    lazyload.convert(MODEL, cache_dir=cache)
    shutil.rmtree(tmp_path / "hub")
    hub.requests.clear()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "down":
        hub.down = True
    offline = how == "local_files_only"
    assert not lazyload.convert(MODEL, cache_dir=cache, local_files_only=offline).converted
    assert how == "down" or hub.requests == []
    if how != "down":
        with pytest.raises(errors.SourceNotFoundError, match=MODEL):
            lazyload.convert(MODEL, cache_dir=cache, local_files_only=offline, dtype="float32")


def test_what_the_hub_s_own_cache_holds_converts_offline(hub: Hub, cache: Path) -> None:
    lazyload.convert(MODEL, cache_dir=cache)
    hub.requests.clear()
    assert lazyload.convert(MODEL, cache_dir=cache, dtype="float32", local_files_only=True).converted
    assert hub.requests == []


def test_what_is_remembered_of_a_branch_is_not_read_from_where_it_moved(
    hub: Hub, folder: Path, tmp_path: Path, cache: Path
) -> None:
    lazyload.convert(MODEL, cache_dir=cache)
    shutil.rmtree(tmp_path / "hub")
    hub.requests.clear()
    hub.down = True
    with open_request(ModelArguments(model=MODEL, dtype="float32", cache_dir=cache)) as request:
        hub.down = False
        hub.add(MODEL, copied(folder, tmp_path))
        os.utime(tmp_path / "copy" / "config.json", ns=(1, 1))
        with pytest.raises(errors.SourceNotFoundError, match="has no revision"):
            request.conversion()


def test_offline_and_not_cached(hub: Hub, cache: Path) -> None:
    with pytest.raises(errors.SourceNotFoundError, match=r"org/qwen.*must not be asked"):
        lazyload.from_pretrained(MODEL, cache_dir=cache, local_files_only=True)
    assert hub.requests == []
    assert not cache.exists()


def test_unknown_models_and_revisions(hub: Hub, cache: Path) -> None:
    with pytest.raises(errors.SourceNotFoundError, match=r"org/nothing is neither a folder here nor a model"):
        lazyload.convert("org/nothing", cache_dir=cache)
    with pytest.raises(errors.SourceNotFoundError, match=r"org/qwen has no revision 'v9'"):
        lazyload.convert(MODEL, revision="v9", cache_dir=cache)
    for name in ("org qwen", "-x/-y", "a..b/c"):
        with pytest.raises(errors.SourceNotFoundError, match="neither a folder nor a model id"):
            lazyload.convert(name, cache_dir=cache)
    assert not cache.exists()


def test_a_private_model(hub: Hub, cache: Path) -> None:
    hub.private.add(MODEL)
    with pytest.raises(errors.SourceNotFoundError, match=r"token="):
        lazyload.convert(MODEL, cache_dir=cache)
    assert lazyload.convert(MODEL, cache_dir=cache, token=TOKEN).converted
    assert not lazyload.convert(MODEL, cache_dir=cache).converted, "a hit needs no token"


def test_a_gated_model(hub: Hub, cache: Path) -> None:
    hub.gated.add(MODEL)
    with pytest.raises(errors.AccessDeniedError, match=r"org/qwen is gated: accept its conditions at http.*/org/qwen"):
        lazyload.convert(MODEL, cache_dir=cache, token="hf_wrong")
    assert lazyload.convert(MODEL, cache_dir=cache, token=TOKEN).converted
    assert not lazyload.convert(MODEL, cache_dir=cache).converted, "a hit needs no token"


def test_a_model_without_config_or_with_pickles_only(hub: Hub, folder: Path, tmp_path: Path, cache: Path) -> None:
    served = copied(folder, tmp_path, "*.safetensors*")
    hub.add(MODEL, served)
    with pytest.raises(errors.SourceNotFoundError, match=r"org/qwen has no weights"):
        lazyload.convert(MODEL, cache_dir=cache)
    (served / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(errors.UnsupportedFormatError, match=r"pytorch_model\.bin.*save_pretrained"):
        lazyload.convert(MODEL, cache_dir=cache)
    (served / "config.json").unlink()
    with pytest.raises(errors.SourceNotFoundError, match=r"org/qwen has no config\.json"):
        lazyload.convert(MODEL, cache_dir=cache)
    assert not cache.exists()


def test_a_shard_that_the_hub_does_not_have(hub: Hub, folder: Path, tmp_path: Path, cache: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1].name
    hub.add(MODEL, copied(folder, tmp_path, shard))
    with pytest.raises(errors.SourceNotFoundError, match=shard):
        lazyload.convert(MODEL, cache_dir=cache)


def test_the_hub_is_imported_for_the_hub_only(folder: Path) -> None:
    code = "import sys, lazyload; lazyload.plan(sys.argv[1]); print([m for m in sys.modules if m in sys.argv[2:]])"
    command = [sys.executable, "-c", code, str(folder), "huggingface_hub", "fsspec", "jax", "flax", "orbax.checkpoint"]
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_server_without_ranges_is_not_read_to_its_end(hub: Hub, folder: Path, tmp_path: Path, cache: Path) -> None:
    served = copied(folder, tmp_path, "*.safetensors*")
    tensors = {name: array for shard in folder.glob("*.safetensors") for name, array in load_file(shard).items()}
    tensors["z"] = np.zeros(64 << 20, np.uint8)
    save_file(tensors, served / "model.safetensors")
    hub.add(MODEL, served)
    hub.ranges = False
    with pytest.raises(errors.TensorMismatchError, match="z: in the checkpoint"):
        lazyload.plan(MODEL, cache_dir=cache)
    assert hub.sent < 16 << 20


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("lazyload.sources.patience.time.sleep", slept.append)
    return slept


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("what", [r"GET .*config\.json", r"GET .*\.safetensors bytes", r"HEAD .*-00001-of"])
def test_a_busy_hub_is_asked_again(hub: Hub, cache: Path, waits: list[float], what: str, status: int) -> None:
    hub.busy += [(what, status, {}), (what, status, {"Retry-After": "3"})]
    assert lazyload.convert(MODEL, cache_dir=cache, progress=False).converted
    assert hub.busy == []


def test_a_busy_hub_is_not_asked_for_ever(hub: Hub, cache: Path, waits: list[float]) -> None:
    hub.busy += [(r"model\.safetensors ", 503, {})] * 20
    with pytest.raises(errors.SourceNotFoundError, match="answers with 503; try again later"):
        lazyload.convert(MODEL, cache_dir=cache)
    assert waits == [0.5, 1.0, 2.0]


def test_a_long_wait_is_told_and_not_slept(hub: Hub, cache: Path, waits: list[float]) -> None:
    hub.busy += [(r"model\.safetensors ", 429, {"Retry-After": "3600"})]
    with pytest.raises(errors.SourceNotFoundError, match="asks to wait 3600 s"):
        lazyload.convert(MODEL, cache_dir=cache)
    assert waits == []


def test_what_arrives_is_what_the_hub_speaks_of(hub: Hub, folder: Path, cache: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0].name
    hub.spoilt.add(shard)
    with pytest.raises(errors.CorruptSourceError, match=f"{shard} is not the file that the hub speaks of"):
        lazyload.convert(MODEL, cache_dir=cache)
    assert not list(cache.rglob("manifest.json"))


@pytest.mark.parametrize("progress", [None, True, False])
def test_the_hub_s_bars_are_never_shown_and_its_setting_stays(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], progress: bool | None
) -> None:
    monkeypatch.setenv("TQDM_POSITION", "-1")  # `huggingface_hub` shows bars, terminal or not
    lazyload.convert(MODEL, cache_dir=cache, progress=progress)
    assert hub.asked(r"GET .*\.safetensors$")
    assert not are_progress_bars_disabled()
    shown = capfd.readouterr().err
    assert "safetensors" not in shown
    assert bool(shown) == (progress is True)
    hf_hub_download(MODEL, "config.json", force_download=True)
    assert "config.json" in capfd.readouterr().err


def test_what_arrives_is_counted_once(hub: Hub, folder: Path, cache: Path) -> None:
    """Also where a connection breaks off, so that a file is asked for again."""
    seen: list[lazyload.Progress] = []

    def broken_off(handler: Handler) -> bool:
        hub.faults.clear()
        content = file.read_bytes()
        handler.send(200, content[: len(content) // 2], {"Content-Length": str(len(content))})
        handler.close_connection = True
        return True

    file = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    hub.faults.append((rf"GET .*{file.name}$", broken_off))
    lazyload.convert(MODEL, cache_dir=cache, progress=seen.append)
    fetched = [progress for progress in seen if progress.stage == "fetch"]
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert {(progress.model, progress.total) for progress in fetched} == {(MODEL, total)}
    assert [progress.done for progress in fetched] == sorted({progress.done for progress in fetched})
    assert (fetched[0].done, fetched[-1].done) == (0, total)
    assert not hub.faults


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError, KeyboardInterrupt])
def test_what_a_progress_function_raises_is_not_taken_for_the_hub_s(
    hub: Hub, cache: Path, error: type[BaseException]
) -> None:
    def report(progress: lazyload.Progress) -> None:
        if progress.stage == "fetch" and progress.done:
            raise error("enough")

    with pytest.raises(error, match=r"^enough$"):
        lazyload.convert(MODEL, cache_dir=cache, progress=report)
    asked = hub.asked(r"GET .*\.safetensors$")
    assert len(asked) == len(set(asked)), "asked again, as if the hub had failed"
    assert not list(cache.rglob("manifest.json"))
    assert lazyload.convert(MODEL, cache_dir=cache).converted


def test_a_download_cannot_wait_for_what_waits_for_it(hub: Hub, cache: Path) -> None:
    def report(progress: lazyload.Progress) -> None:
        if progress.stage == "fetch":
            lazyload.convert(MODEL, cache_dir=cache, lock_timeout=5)

    with pytest.raises(errors.CacheError, match="is being converted by the call whose progress this is"):
        lazyload.convert(MODEL, cache_dir=cache, progress=report)
