"""`from_pretrained`, `convert` and `plan` as a user meets them: hits, misses, keys, storage, what plain Orbax sees."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from safetensors.numpy import load_file
from support.decoders import run

import lazyload
from lazyload import errors


def leaves(module: nnx.Module) -> dict[str, jax.Array]:
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): variable[...] for path, variable in flat}


def test_the_first_call_converts_and_the_second_reads_no_source_weights(qwen: Path, tmp_path: Path) -> None:
    first = lazyload.from_pretrained(qwen, cache_dir=tmp_path, mesh=jax.make_mesh((8,), ("fsdp",)))
    report = lazyload.last_report()
    assert not report.hit
    assert report.bytes_read >= report.bytes_written == report.bytes_restored > 0
    assert {"open", "convert", "restore"} <= set(report.seconds)
    second = lazyload.from_pretrained(qwen, cache_dir=tmp_path, mesh=jax.make_mesh((4, 2), ("fsdp", "tp")))
    report = lazyload.last_report()
    assert report.hit
    assert report.bytes_read == report.bytes_written == 0
    assert report.bytes_from_cache >= report.bytes_kept == report.bytes_restored
    assert report.peak_bytes > report.bytes_kept
    assert "convert" not in report.seconds
    for (path, one), other in zip(leaves(first).items(), leaves(second).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)


def test_values_are_the_source_s(qwen: Path, warm: Path) -> None:
    parameters = leaves(lazyload.from_pretrained(qwen, cache_dir=warm))
    files = {name: array for file in qwen.glob("*.safetensors") for name, array in load_file(file).items()}
    kernel = files["model.layers.2.self_attn.q_proj.weight"].reshape(4, 16, 64).transpose(2, 0, 1)
    np.testing.assert_array_equal(parameters["layers.2.attn.q_proj.kernel"], kernel)
    up = files["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(parameters["layers.1.mlp.up_proj.kernel"], up.T)
    assert len(parameters) == len(files)
    assert {array.dtype for array in parameters.values()} == {jnp.dtype(jnp.bfloat16)}


def test_parameters_are_sharded_by_the_rules(qwen: Path, warm: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    default = leaves(lazyload.from_pretrained(qwen, cache_dir=warm, mesh=mesh))
    assert default["layers.0.mlp.gate_proj.kernel"].sharding.spec == PartitionSpec("fsdp", "tp")
    rules = {"embed": None, "mlp": ("fsdp", "tp")}
    ruled = leaves(lazyload.from_pretrained(qwen, cache_dir=warm, mesh=mesh, rules=rules))
    assert ruled["layers.0.mlp.gate_proj.kernel"].sharding.spec == PartitionSpec(None, ("fsdp", "tp"))
    assert lazyload.last_report().hit


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_mesh_that_is_set_is_used(qwen: Path, warm: Path, kind: AxisType) -> None:
    mesh = jax.make_mesh((2, 2), ("fsdp", "tp"), axis_types=(kind, kind), devices=jax.devices()[:4])
    tokens = jnp.arange(8).reshape(2, 4)
    alone = lazyload.from_pretrained(
        qwen, cache_dir=warm, mesh=jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    )
    expected, _ = run(alone, tokens)
    with jax.set_mesh(mesh):
        model = lazyload.from_pretrained(qwen, cache_dir=warm)
        logits, _ = nnx.jit(lambda model, tokens: model(tokens))(model, tokens)
    assert {array.sharding.mesh.devices.size for array in leaves(model).values()} == {4}
    np.testing.assert_allclose(np.asarray(logits), np.asarray(expected), atol=0.1)


def test_the_key_follows_what_is_stored_and_not_where_it_goes(qwen: Path, tmp_path: Path) -> None:
    calls = [
        {},
        {"dtype": "float32"},
        {"storage": lazyload.Storage(ocdbt=False)},
        {"storage": lazyload.Storage(zarr3=False)},
        {"storage": lazyload.Storage(compression="zstd")},
        {"storage": lazyload.Storage(chunk_bytes=1 << 20)},
        {"layout": lazyload.MaxText(scan_layers=True)},
        {"layout": lazyload.MaxText(scan_layers=False)},
    ]
    keys = [lazyload.plan(qwen, cache_dir=tmp_path, **call).key for call in calls]
    assert len(set(keys)) == len(calls)
    assert lazyload.plan(qwen, cache_dir=tmp_path / "elsewhere", dtype=jnp.bfloat16).key == keys[0]
    assert lazyload.plan(qwen, cache_dir=tmp_path, storage=lazyload.Storage(ocdbt=True, zarr3=True)).key == keys[0]


def test_other_content_in_the_same_folder_is_a_miss(qwen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(qwen, tmp_path / "model")
    cache = tmp_path / "cache"
    assert lazyload.convert(folder, cache_dir=cache).converted
    assert not lazyload.convert(folder, cache_dir=cache).converted
    file = next(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    plan = lazyload.plan(folder, cache_dir=cache)
    assert not plan.hit
    assert any("source" in reason for reason in plan.reasons)
    assert lazyload.convert(folder, cache_dir=cache).converted


@pytest.mark.parametrize("zarr3", [True, False])
@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_what_is_on_disk_is_what_was_asked_and_plain_orbax_reads_it(
    qwen: Path, warm: Path, tmp_path: Path, ocdbt: bool, zarr3: bool, compression: str | None
) -> None:
    storage = lazyload.Storage(ocdbt=ocdbt, zarr3=zarr3, compression=compression)
    converted = lazyload.convert(qwen, cache_dir=tmp_path, storage=storage)
    names = {path.name for path in converted.path.rglob("*")}
    assert ("manifest.ocdbt" in names) == ocdbt
    assert (".zarray" in names) == (not ocdbt and not zarr3)
    assert ("zarr.json" in names) == (not ocdbt and zarr3)
    tree = ocp.PyTreeCheckpointer().restore(converted.path)
    ours = leaves(lazyload.from_pretrained(qwen, cache_dir=tmp_path, storage=storage))
    assert lazyload.last_report().hit
    for path, array in ours.items():
        leaf = tree
        for name in path.split("."):
            leaf = leaf[name]
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(array), err_msg=path)


def test_force_convert_converts_again(qwen: Path, tmp_path: Path) -> None:
    first = lazyload.convert(qwen, cache_dir=tmp_path)
    again = lazyload.convert(qwen, cache_dir=tmp_path, force_convert=True)
    assert again.converted
    assert again.key == first.key
    assert again.path != first.path
    assert not lazyload.convert(qwen, cache_dir=tmp_path).converted


def test_a_plan_reads_no_weights_and_writes_nothing(qwen: Path, tmp_path: Path) -> None:
    plan = lazyload.plan(qwen, cache_dir=tmp_path / "cache")
    assert not plan.hit
    assert not (tmp_path / "cache").exists()
    parameter = plan.parameters["layers.0.attn.k_proj.kernel"]
    assert parameter.shape == (64, 2, 16)
    assert parameter.axes == ("embed", "kv_head", "head_dim")
    assert parameter.sources == ("model.layers.0.self_attn.k_proj.weight",)
    assert plan.nbytes == sum(2 * np.prod(parameter.shape) for parameter in plan.parameters.values())


def test_a_broken_entry_is_a_miss_and_is_converted_again(qwen: Path, tmp_path: Path) -> None:
    path = lazyload.convert(qwen, cache_dir=tmp_path).path
    shutil.rmtree(path)
    assert lazyload.convert(qwen, cache_dir=tmp_path).converted


def test_damaged_data_is_an_error_that_says_what_to_do(qwen: Path, tmp_path: Path) -> None:
    storage = lazyload.Storage(ocdbt=False, compression="zstd")
    path = lazyload.convert(qwen, cache_dir=tmp_path, storage=storage).path
    chunk = next(file for file in (path / "layers.0.mlp.gate_proj.kernel" / "c").rglob("*") if file.is_file())
    chunk.write_bytes(bytes(chunk.stat().st_size))
    with pytest.raises(errors.CacheError, match=r"layers\.0\.mlp\.gate_proj\.kernel.*force_convert=True"):
        lazyload.from_pretrained(qwen, cache_dir=tmp_path, storage=storage)


def test_data_that_has_lost_some_is_converted_again(
    qwen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = lazyload.Storage(ocdbt=False, zarr3=False)
    path = lazyload.convert(qwen, cache_dir=tmp_path, storage=storage).path
    chunk = next(file for file in sorted((path / "layers.0.mlp.gate_proj.kernel").rglob("*")) if file.name[0].isdigit())
    chunk.write_bytes(chunk.read_bytes()[:-10])
    lazyload.from_pretrained(qwen, cache_dir=tmp_path, storage=storage)
    assert not lazyload.last_report().hit
    assert "layers.0.mlp.gate_proj.kernel/0.0: has" in caplog.text
    assert "damaged" in lazyload.last_report().reasons[0]


def test_a_layout_of_one_s_own_without_a_builder_gives_the_tree(qwen: Path, tmp_path: Path) -> None:
    spec = lazyload.plan(qwen, cache_dir=tmp_path)
    layout = lazyload.Layout(
        {
            "tables.embedding": "embed : vocab embed",
            "tables.head": "lm_head : embed vocab",
            "tables.norm": "final_norm : embed",
            "blocks.norms.attn": "attn_norm : layer embed",
            "blocks.norms.mlp": "mlp_norm : layer embed",
            "blocks.q": "attn.q : layer head embed head_dim",
            "blocks.kv": "attn.k | attn.v : layer (kv_head head_dim | kv_head head_dim) embed",
            "blocks.o": "attn.o : layer (head head_dim) embed",
            "blocks.q_norm": "attn.q_norm : layer head_dim",
            "blocks.k_norm": "attn.k_norm : layer head_dim",
            "blocks.mlp.{gate_up:gate,up}": "mlp.in : layer embed mlp",
            "blocks.mlp.down": "mlp.out : layer mlp embed",
        },
        name="stacked",
    )
    tree = lazyload.from_pretrained(qwen, cache_dir=tmp_path, layout=layout, mesh=jax.make_mesh((8,), ("fsdp",)))
    assert tree["blocks"]["kv"].shape == (4, 64, 64)
    assert sum(array.nbytes for array in jax.tree.leaves(tree)) == spec.nbytes


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"dtype": "float8"}, errors.UnsupportedFormatError, "float8"),
        ({"dtype": "int8"}, errors.UnsupportedFormatError, "int8"),
        ({"layout": "flax"}, errors.LayoutError, "'flax'"),
        ({"rules": {"embed": "nowhere"}}, errors.ShardingError, "nowhere"),
        ({"rules": {"width": "fsdp"}}, errors.ShardingError, "width"),
        ({"cache_dir": "/proc/nothing/cache"}, errors.CacheError, "/proc/nothing"),
        ({"patience": 0}, errors.ArgumentError, "patience=0: give a number of seconds"),
    ],
)
def test_bad_arguments_are_errors_before_any_work(
    qwen: Path, tmp_path: Path, change: dict[str, object], error: type[errors.LazyLoadError], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        lazyload.from_pretrained(qwen, **({"cache_dir": tmp_path / "cache"} | change))
    assert not list(tmp_path.rglob("manifest.json"))


def test_an_explicit_flag_that_pathways_cannot_read_is_an_error(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USE_PATHWAYS", "1")
    with pytest.raises(errors.StorageError, match="Pathways"):
        lazyload.convert(qwen, cache_dir=tmp_path / "cache", storage=lazyload.Storage(ocdbt=True))
    assert not (tmp_path / "cache").exists()
    converted = lazyload.convert(qwen, cache_dir=tmp_path / "cache")
    assert (converted.path / "layers.0.mlp.gate_proj.kernel" / ".zarray").exists()


def edited(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_bad_checkpoints_are_errors_that_leave_the_cache_as_it_was(qwen: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def fails(error: type[errors.LazyLoadError], *complaints: str) -> None:
        with pytest.raises(error) as caught:
            lazyload.from_pretrained(folder, cache_dir=cache)
        assert all(complaint in str(caught.value) for complaint in complaints)
        assert not list(cache.rglob("manifest.json"))
        assert not list(cache.rglob("data-*"))

    def fresh(name: str) -> Path:
        return shutil.copytree(qwen, tmp_path / name)

    folder = fresh("architecture")
    edited(folder, model_type="mamba9")
    fails(errors.UnknownArchitectureError, "mamba9", "qwen3")
    folder = fresh("field")
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    fails(errors.ConfigError, "hidden_size")
    folder = fresh("shape")
    edited(folder, intermediate_size=97)
    fails(errors.TensorMismatchError, "mlp.gate_proj.weight", "97")
    folder = fresh("layers")
    edited(folder, num_hidden_layers=5)
    fails(errors.TensorMismatchError, "model.layers.4.", "missing")
    folder = fresh("fewer")
    edited(folder, num_hidden_layers=3)
    fails(errors.TensorMismatchError, "model.layers.3.", "no use for it")
    folder = fresh("truncated")
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    fails(errors.CorruptSourceError, file.name)
