"""`lazyload.verify`: every entry gets an answer, whatever state it is in."""

import json
from pathlib import Path

import pytest
from support import checkpoints

import lazyload
from lazyload.cache.key import Key
from lazyload.cache.manifest import checksum_of
from lazyload.errors import CacheError

FILES = lazyload.Storage(ocdbt=False, zarr3=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


def test_only_what_is_damaged_has_problems(model: Path, tmp_path: Path) -> None:
    sound = lazyload.convert(model, cache_dir=tmp_path)
    damaged = lazyload.convert(model, cache_dir=tmp_path, storage=FILES)
    chunk = damaged.path / "final_norm.scale" / "0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    problems = {found.key: found.problems for found in lazyload.verify(cache_dir=tmp_path)}
    assert problems[sound.key] == ()
    problem, of_file = problems[damaged.key]
    assert of_file == "final_norm.scale/0: its content is not what was written"
    assert problem.startswith("final_norm.scale: is crc32c:")
    assert f"was written as {damaged.manifest.arrays['final_norm.scale']['checksum']}" in problem


def test_targets_choose_entries(model: Path, tmp_path: Path) -> None:
    keys = [lazyload.convert(model, cache_dir=tmp_path, dtype=dtype).key for dtype in ("bfloat16", "float32")]
    assert [found.key for found in lazyload.verify(keys[1][:8], cache_dir=tmp_path)] == [keys[1]]
    assert {found.key for found in lazyload.verify(str(model), cache_dir=tmp_path)} == set(keys)
    with pytest.raises(CacheError, match="'org/other' is neither a model nor the start of a key"):
        lazyload.verify("org/other", cache_dir=tmp_path)


def rewritten(root: Path, key: str, **changes: object) -> str:
    """Writes an entry's manifest again with other values, and moves it to where its fields belong; gives its key."""
    (manifest,) = root.rglob(f"{key}/manifest.json")
    content = {**json.loads(manifest.read_text()), **changes}
    content["key"] = Key(content["fields"]).digest
    content.pop("checksum")
    content["checksum"] = checksum_of(content)
    manifest.write_text(json.dumps(content))
    manifest.parent.rename(manifest.parent.with_name(content["key"]))
    return content["key"]


@pytest.mark.parametrize(
    "storage",
    [{"ocdbt": True, "zarr3": True, "compression": "none", "chunk_bytes": 4096, "sharded": True}, {"ocdbt": 1}, None],
)
def test_storage_flags_that_this_version_does_not_know_are_a_problem_of_that_entry(
    model: Path, tmp_path: Path, storage: object
) -> None:
    other = lazyload.convert(model, cache_dir=tmp_path, dtype="float32")
    made = lazyload.convert(model, cache_dir=tmp_path)
    key = rewritten(tmp_path, made.key, fields={**made.manifest.fields, "storage": storage})
    problems = {found.key: found.problems for found in lazyload.verify(cache_dir=tmp_path)}
    assert problems[other.key] == ()
    (problem,) = problems[key]
    assert problem.startswith("its manifest does not say how it is stored")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": None},
        {"shape": [64.0]},
        {"shape": [10**400]},
        {"shape": [-64]},
        {"shape": [True]},
        {"shape": [63]},
        {"dtype": "bfloat17"},
        {"dtype": "float16"},
        {"dtype": 7},
        {"chunks": [0]},
        {"chunks": [64, 1]},
        {"nbytes": "128"},
        {"nbytes": 129},
        {"checksum": None},
        {"checksum": 7},
    ],
    ids=str,
)
def test_a_record_that_does_not_hold_is_a_problem_of_that_array_and_no_hit(
    model: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    made = lazyload.convert(model, cache_dir=tmp_path)
    record = {**made.manifest.arrays["final_norm.scale"], **changes}
    arrays = {**made.manifest.arrays, "final_norm.scale": {k: v for k, v in record.items() if v is not None}}
    rewritten(tmp_path, made.key, arrays=arrays)
    ((problem,),) = [found.problems for found in lazyload.verify(cache_dir=tmp_path)]
    assert problem.startswith("final_norm.scale: ")
    if changes.keys() & {"shape", "dtype"}:
        lazyload.from_pretrained(model, cache_dir=tmp_path)
        assert not lazyload.last_report().hit
    else:
        with pytest.raises(CacheError, match=r"final_norm\.scale.*force_convert=True"):
            lazyload.from_pretrained(model, cache_dir=tmp_path)


def test_chunks_that_are_not_those_on_disk_are_a_problem(model: Path, tmp_path: Path) -> None:
    made = lazyload.convert(model, cache_dir=tmp_path)
    record = {**made.manifest.arrays["final_norm.scale"], "chunks": [1]}
    rewritten(tmp_path, made.key, arrays={**made.manifest.arrays, "final_norm.scale": record})
    ((problem,),) = [found.problems for found in lazyload.verify(cache_dir=tmp_path)]
    assert "in chunks of [64], was written as bfloat16[64] in chunks of [1]" in problem
