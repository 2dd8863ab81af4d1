"""Every golden checkpoint that is not packed, loaded and saved, is the same checkpoint again, bit for bit."""

import json
from pathlib import Path

import jax
import pytest
from support import checkpoints, stored

import lazyload

SPECS = {name: json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text()) for name in checkpoints.NAMES}
PACKED = [name for name, spec in SPECS.items() if "quantization_config" in json.dumps(spec["config"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", [name for name in checkpoints.NAMES if name not in PACKED])
def test_what_is_saved_is_what_was_loaded(name: str, folder: Path, tmp_path: Path) -> None:
    source, saved = checkpoints.make(name, folder), tmp_path / "saved"
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    model = lazyload.from_pretrained(source, mesh=mesh, dtype="auto", cache_dir=folder / "cache")
    lazyload.save_pretrained(model, saved, like=source, max_shard_size="200kB")
    before, after = stored.tensors(source), stored.tensors(saved)
    second = {key for key in before if model.config.tied and len(before) > 1 and key.endswith("lm_head.weight")}
    assert after.keys() == before.keys() - second
    for key, values in after.items():
        # What was loaded in another dtype than it is stored in has been rounded by that.
        assert values.tobytes() == before[key].astype(values.dtype).tobytes(), key
    entries = [lazyload.convert(each, dtype="auto", cache_dir=folder / "cache") for each in (source, saved)]
    assert entries[0].manifest.arrays == entries[1].manifest.arrays
    assert lazyload.config(saved) == lazyload.config(source)


@pytest.mark.parametrize("name", ["deepseek_v3_fp8", "gpt_oss_mxfp4", "qwen2_awq"])
def test_packed_weights_are_saved_unpacked(name: str, folder: Path, tmp_path: Path) -> None:
    source, saved = checkpoints.make(name, folder), tmp_path / "saved"
    model = lazyload.from_pretrained(source, dtype="float32", cache_dir=folder / "cache")
    lazyload.save_pretrained(model, saved, like=source)
    assert name in PACKED
    entries = [lazyload.convert(each, dtype="float32", cache_dir=folder / "cache") for each in (source, saved)]
    assert entries[0].manifest.arrays == entries[1].manifest.arrays
    assert "quantization_config" not in (saved / "config.json").read_text()
