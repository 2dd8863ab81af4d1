"""`lazyload.save_pretrained`: what is written, from what, and what is refused before anything is."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from support import checkpoints, stored

import lazyload
from lazyload.errors import ArgumentError, InputError, SaveError, TensorMismatchError
from lazyload.saving.files import new_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def source(root: Path) -> Path:
    return checkpoints.make("llama3", root)


@pytest.fixture
def model(source: Path, root: Path) -> lazyload.Decoder:
    return lazyload.from_pretrained(source, cache_dir=root / "cache")


def test_what_stands_beside_the_weights_goes_with_them(model: lazyload.Decoder, source: Path, tmp_path: Path) -> None:
    like = tmp_path / "like"
    like.mkdir()
    for file in source.iterdir():
        (like / file.name).symlink_to(file)
    beside = {"tokenizer.json": "{}", "tokenizer.model": "x", "generation_config.json": "{}", "LICENSE": "free"}
    for name, content in {**beside, "README.md": "# A card", "training_args.bin": "x"}.items():
        (like / name).write_text(content)
    saved = lazyload.save_pretrained(model, tmp_path / "deep" / "saved", like=like)
    assert saved == tmp_path / "deep" / "saved"
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", *beside}
    assert (saved / "tokenizer.model").read_text() == "x"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, saved))
    assert after == before
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["saved"]


def test_files_are_as_large_as_is_asked_for(model: lazyload.Decoder, source: Path, tmp_path: Path) -> None:
    saved = lazyload.save_pretrained(model, tmp_path / "saved", like=source, max_shard_size="100KB")
    files = sorted(saved.glob("*.safetensors"))
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert [path.name for path in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    tensors = stored.tensors(saved)
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(values.size for values in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    largest = max(values.nbytes for values in tensors.values())
    assert all(path.stat().st_size < max(100_000, largest) + 8192 for path in files)


def test_layers_that_are_stacked_are_written_one_by_one(
    model: lazyload.Decoder, source: Path, root: Path, tmp_path: Path
) -> None:
    stacked = lazyload.from_pretrained(source, cache_dir=root / "cache", scan_layers=True)
    saved = [lazyload.save_pretrained(each, tmp_path / str(n), like=source) for n, each in enumerate((model, stacked))]
    apart, together = map(stored.tensors, saved)
    assert {name: values.tobytes() for name, values in together.items()} == {
        name: values.tobytes() for name, values in apart.items()
    }


def test_what_was_trained_is_what_is_saved(source: Path, root: Path, tmp_path: Path) -> None:
    model = lazyload.from_pretrained(source, cache_dir=root / "cache", dtype="float32")
    state = nnx.state(model, nnx.Param)
    changed = jax.tree.map(lambda array: array * 0.5, state)
    forms: dict[str, Any] = {"state": changed, "tree": nnx.to_pure_dict(changed)}
    # NumPy's, and none of them contiguous.
    forms["numpy"] = jax.tree.map(lambda array: np.asfortranarray(np.asarray(array)), forms["tree"])
    for name, form in forms.items():
        saved = lazyload.save_pretrained(form, tmp_path / name, like=source)
        for tensor, values in stored.tensors(source).items():
            np.testing.assert_array_equal(stored.tensors(saved)[tensor], values.astype(np.float32) * 0.5)
        assert json.loads((saved / "config.json").read_text())["torch_dtype"] == "float32"
    narrow = lazyload.save_pretrained(changed, tmp_path / "narrow", like=source, dtype="bfloat16")
    assert {values.dtype for values in stored.tensors(narrow).values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((narrow / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma2", "deepseek_v3", "deepseek_v4_7"])
def test_the_trees_of_maxtext(name: str, scan: bool, root: Path, tmp_path: Path) -> None:
    source, layout = checkpoints.make(name, root), lazyload.MaxText(scan_layers=scan)
    tree = lazyload.from_pretrained(source, layout=layout, dtype="auto", cache_dir=root / "cache")
    saved = stored.tensors(lazyload.save_pretrained(tree, tmp_path / "saved", like=source, layout=layout))
    before = stored.tensors(source)
    has_arithmetic = name in ("llama3", "gemma2")
    for key, values in saved.items():
        assert values.dtype == before[key].dtype, key
        wide = before[key].astype(np.float32)
        # Two roundings, each of half a unit in the last of 8 places.
        np.testing.assert_allclose(values.astype(np.float32), wide, rtol=2**-8 if has_arithmetic else 0, atol=0)
    assert saved.keys() == before.keys() - ({"lm_head.weight"} if name == "gemma2" else set())


@pytest.mark.parametrize("size", [None, 0, 1.5, True, "much"])
def test_sizes_that_are_none(size: Any, model: lazyload.Decoder, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        lazyload.save_pretrained(model, tmp_path / "saved", like=source, max_shard_size=size)
    assert not list(tmp_path.glob("saved*"))


def test_a_head_of_its_own_is_said(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("llama3_tied", tmp_path)
    tensors = stored.tensors(source)
    own = {**tensors, "lm_head.weight": -tensors["model.embed_tokens.weight"]}
    save_file(own, source / "model.safetensors", metadata={"format": "pt"})
    model = lazyload.from_pretrained(source, cache_dir=tmp_path / "cache")
    saved = lazyload.save_pretrained(model, tmp_path / "saved", like=source)
    assert json.loads((saved / "config.json").read_text())["tie_word_embeddings"] is False
    assert stored.tensors(saved)["lm_head.weight"].tobytes() == own["lm_head.weight"].tobytes()


@pytest.mark.parametrize("name", ["llama3", "gemma3_text", "qwen3_5_moe"])
def test_transformers_reads_it(name: str, root: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", minversion="5.24")
    source = checkpoints.make(name, root)
    model = lazyload.from_pretrained(source, cache_dir=root / "cache", dtype="float32")
    saved = lazyload.save_pretrained(model, tmp_path / "saved", like=source, max_shard_size=150_000)
    tokens, expected = checkpoints.reference(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager")
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5)


def test_a_folder_with_something_in_it_stays(model: lazyload.Decoder, source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    lazyload.save_pretrained(model, tmp_path / "empty", like=source)
    content = {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    with pytest.raises(SaveError, match="is not empty, and nothing there is overwritten"):
        lazyload.save_pretrained(model, tmp_path / "empty", like=source)
    assert {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == content
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SaveError, match="is a file, or lies below one"):
            lazyload.save_pretrained(model, folder, like=source)
    with pytest.raises(SaveError, match="cannot be written"):
        lazyload.save_pretrained(model, tmp_path / ("long" * 100), like=source)
    odd: list[Any] = ["gs://bucket/model", "a\0b", b"bytes", "", None]
    for folder in odd:
        with pytest.raises(ArgumentError, match="a folder of a file system here"):
            lazyload.save_pretrained(model, folder, like=source)


def test_nothing_is_left_of_what_fails(
    model: lazyload.Decoder, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lazyload.saving.held import HeldArrays

    read = HeldArrays.read

    def failing(self: HeldArrays, name: str, index: Any) -> Any:
        if name.endswith("down_proj.kernel"):
            raise RuntimeError("a device is gone")
        return read(self, name, index)

    monkeypatch.setattr(HeldArrays, "read", failing)
    with pytest.raises(RuntimeError, match="a device is gone"):
        lazyload.save_pretrained(model, tmp_path / "saved", like=source)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_goes_with_the_next_save_there(
    model: lazyload.Decoder, source: Path, tmp_path: Path
) -> None:
    program = """
import sys, time
from pathlib import Path
from lazyload.saving.files import new_folder

with new_folder(Path(sys.argv[1]), 1) as folder:
    (folder / "config.json").write_text("{}")
    print("writing", flush=True)
    time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def writing(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    def hidden(name: str) -> list[Path]:
        return [path for path in tmp_path.iterdir() if path.name.startswith(f".{name}.")]

    with writing("saved") as first, writing("saved.2") as other:
        try:
            other.kill()
            other.wait()
            lazyload.save_pretrained(model, tmp_path / "saved", like=source)
            # One is at work still, and the other one has written something else.
            (left,) = hidden("saved.2")
            assert set(hidden("saved")) > {left}
            shutil.rmtree(tmp_path / "saved")
            first.kill()
            first.wait()
            unmarked = tmp_path / f".saved.{'0' * 32}"
            unmarked.mkdir()
            lazyload.save_pretrained(model, tmp_path / "saved", like=source)
            # Whose mark is missing may be about to leave it, for a day.
            assert set(hidden("saved")) == {left, unmarked}
            os.utime(unmarked, (0, 0))
            lazyload.save_pretrained(model, tmp_path / "saved.2", like=source)
            assert hidden("saved") == [unmarked]
            shutil.rmtree(tmp_path / "saved")
            lazyload.save_pretrained(model, tmp_path / "saved", like=source)
            assert hidden("saved") == []
        finally:
            first.kill()
            other.kill()


def test_only_what_a_save_has_left_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def there(digit: str, *names: str) -> Path:
        folder = tmp_path / f".saved.{digit * 32}"
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
        os.utime(folder, (0, 0))
        return folder

    file, link = (tmp_path / f".saved.{digit * 32}" for digit in "34")
    file.write_text("")
    os.utime(file, (0, 0))
    ours = [there("5"), there("6", f".{'0' * 32}.mark")]
    (tmp_path / "empty").mkdir()
    os.utime(tmp_path / "empty", (0, 0))
    link.symlink_to("empty")
    theirs = [there("0", "notes.txt"), there("1", "owner", "notes.txt"), there("2", "some.mark"), file, link]
    with caplog.at_level("INFO", "lazyload"), new_folder(tmp_path / "saved", 1):
        pass
    assert all(os.path.lexists(path) for path in theirs)
    assert not any(path.exists() for path in ours)
    assert sorted(record.getMessage().partition(":")[0] for record in caplog.records) == sorted(map(str, ours))


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """As somebody who may not do everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_removed_hinders_no_save() -> None:
    """A folder of another user, and a place in which one may write and not look."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / f".saved.{'0' * 32}").mkdir(0)
        for mode, saved in ((0o777, "saved"), (0o333, "other")):
            place.chmod(mode)
            with as_a_user(), new_folder(place / saved, 1) as folder:
                (folder / "config.json").write_text("{}")
        place.chmod(0o755)
        assert {path.name for path in place.iterdir()} == {f".saved.{'0' * 32}", "saved", "other"}


def test_a_model_that_is_partly_quantised(model: lazyload.Decoder, source: Path, tmp_path: Path) -> None:
    kernel = model.layers[0].mlp.up_proj.kernel
    model.layers[0].mlp.up_proj.kernel = nnx.Param(jnp.zeros(kernel.shape, jnp.int8))
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.up_proj\.kernel is int8: quantised"):
        lazyload.save_pretrained(model, tmp_path / "saved", like=source)
    model.layers[0].mlp.up_proj.kernel = nnx.Param(kernel[...])
    model.layers[0].mlp.up_proj.kernel_lora_a = nnx.LoRAParam(jnp.zeros((kernel.shape[0], 2)))
    with pytest.raises(InputError, match="one of LoRA's parameters"):
        lazyload.save_pretrained(model, tmp_path / "saved", like=source)


def test_another_model_than_like(model: lazyload.Decoder, root: Path, tmp_path: Path) -> None:
    other = checkpoints.make("qwen3", root)
    with pytest.raises(TensorMismatchError, match="are not those that are to be saved"):
        lazyload.save_pretrained(model, tmp_path / "saved", like=other)
    abstract = lazyload.Decoder(model.config, rngs=None)
    with pytest.raises(InputError, match="has a shape and no values"):
        lazyload.save_pretrained(abstract, tmp_path / "saved", like=other)
    with pytest.raises(ArgumentError, match="max_shard_size"):
        lazyload.save_pretrained(model, tmp_path / "saved", like=root / "llama3", max_shard_size=0)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is reset through /proc")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import jax
import lazyload
from support.large import write_large_llama
from support.memory import peak_megabytes

root = Path(sys.argv[1])
source = write_large_llama(root / "source", 0.5)
model = lazyload.from_pretrained(source, cache_dir=root / "cache", progress=False)
entry = lazyload.last_report().path
for write, what, to in ((lazyload.save_pretrained, model, "saved"), (lazyload.export, entry, "exported")):
    Path("/proc/self/clear_refs").write_text("5")
    rest = peak_megabytes()
    write(what, root / to, like=source)
    print(peak_megabytes() - rest)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    saved, exported = map(float, ran.stdout.split())
    assert saved < 256, "of a model of 500 MB"
    # With the import of TensorStore, and what it keeps of chunks: 230 to 340 MB, and 400 on a busy machine.
    assert exported < 500, "of a model of 500 MB, which would come on top"
