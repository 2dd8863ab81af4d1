"""Databases that are written here, as TensorStore reads them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyload.checkpoint import ocdbt
from lazyload.checkpoint.ocdbt import Reference, data_file, database_files

CONTENT = bytes(range(256)) * 8


def database(folder: Path) -> ts.KvStore:
    return ts.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}).result()


def written(folder: Path, values: dict[bytes, bytes | tuple[int, int, int]]) -> dict[bytes, bytes]:
    """Writes a database; a value that is referred to is the number of its file, its offset and its size."""
    files = [data_file(number) for number in (1, 2, 3)]
    (folder / "d").mkdir()
    for number, file in enumerate(files):
        (folder / file).write_bytes(CONTENT[number:])
    references = {key: v if isinstance(v, bytes) else Reference(files[v[0]], *v[1:]) for key, v in values.items()}
    for file, content in database_files(references, data_file(0)).items():
        (folder / file).write_bytes(content)
    return {
        key: value if isinstance(value, bytes) else CONTENT[value[0] :][value[1] : value[1] + value[2]]
        for key, value in values.items()
    }


KEYS = st.binary(min_size=1, max_size=12) | st.from_regex(
    r"layers\.[0-9]{1,3}\.(q|k)/c/[0-9]/[0-9]", fullmatch=True
).map(str.encode)
VALUES = st.binary(max_size=300) | st.tuples(st.integers(0, 2), st.integers(0, 1000), st.integers(0, 1000))


@given(values=st.dictionaries(KEYS, VALUES, min_size=1, max_size=60), node_bytes=st.sampled_from([1, 100, 1 << 20]))
@settings(deadline=None, max_examples=60)
def test_tensorstore_reads_every_key(values: dict[bytes, bytes | tuple[int, int, int]], node_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(ocdbt, "_NODE_BYTES", node_bytes)
        expected = written(Path(folder), values)
        store = database(Path(folder))
        assert sorted(store.list().result()) == sorted(expected)
        futures = {key: store.read(key) for key in expected}
        assert {key: future.result().value for key, future in futures.items()} == expected


def test_a_tree_of_several_levels_is_written_on_by_tensorstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocdbt, "_NODE_BYTES", 500)
    expected = written(tmp_path, {f"array.{number}/c/0".encode(): (1, number % 900, 64) for number in range(400)})
    dumped = ts.ocdbt.dump(ts.KvStore.open({"driver": "file", "path": f"{tmp_path}/"}).result()).result()
    newest = dumped["versions"][-1]
    assert newest["root_height"] >= 2
    assert newest["root"]["statistics"]["num_keys"] == 400
    assert newest["root"]["statistics"]["num_indirect_value_bytes"] == 400 * 64
    database(tmp_path).write(b"array.7/c/0", b"new").result()
    store = database(tmp_path)
    assert store.read(b"array.7/c/0").result().value == b"new"
    assert len(store.list().result()) == 400
    assert store.read(b"array.8/c/0").result().value == expected[b"array.8/c/0"]


@pytest.mark.parametrize("name", ["manifest.ocdbt", "tree"])
def test_a_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    written(tmp_path, {b"a": b"value", b"b": (0, 0, 10)})
    others = set((tmp_path / "d").iterdir())
    tree = next(file for file in others if file.stat().st_size < 500)
    file = tmp_path / name if name != "tree" else tree
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"(?i)checksum|DATA_LOSS|corrupt"):
        database(tmp_path).read(b"a").result()
