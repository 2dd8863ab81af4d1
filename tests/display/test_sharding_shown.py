"""What is shown of a mesh is what the devices hold, and the reasons are those of the rules."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from support import checkpoints, decoders

import lazyload
from lazyload import families
from lazyload.display import text
from lazyload.display.shards import Shards
from lazyload.errors import ArgumentError, ShardingError
from lazyload.models.arrays import arrays_of as module_arrays
from lazyload.models.decoder import Decoder
from lazyload.sharding import grid_of, partitions, spec_of
from lazyload.shown import shards

MESHES = {
    "fsdp": ((8,), ("fsdp",), None),
    "fsdp-tp": ((4, 2), ("fsdp", "tp"), None),
    "tp-fsdp": ((2, 4), ("tp", "fsdp"), None),
    "experts": ((2, 2, 2), ("fsdp", "ep", "tp"), None),
    "uneven": ((1, 8), ("fsdp", "tp"), None),
    "copies": ((8,), ("x",), {}),
    "rules": ((4, 2), ("fsdp", "tp"), {"vocab": None, "embed": ("fsdp", "tp"), "head_dim": "tp"}),
    "two-for-one": ((2, 2, 2), ("a", "b", "c"), {"embed": ("c", "a"), "mlp": "b", "expert_mlp": "b"}),
}


def mesh_of(name: str) -> tuple[Mesh, Any]:
    sizes, axes, rules = MESHES[name]
    return jax.make_mesh(sizes, axes), rules


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3_moe", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def arrays_of(model: nnx.Module) -> dict[str, jax.Array]:
    flat = flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {".".join(map(str, path)): array for path, array in flat.items()}


def held(model: nnx.Module) -> dict[int, int]:
    """The bytes that each device holds, as JAX tells it."""
    found: Counter[int] = Counter()
    for array in arrays_of(model).values():
        for shard in array.addressable_shards:
            found[shard.device.id] += shard.data.nbytes
    return dict(found)


def same_pieces(found: Shards, arrays: dict[str, jax.Array]) -> None:
    """Compares the devices of each piece with JAX's."""
    for path, array in arrays.items():
        parts = found.arrays[path].partition
        ours = found.grid.holders(parts)
        sizes = [dimension.size // dimension.parts(found.grid.axes) for dimension in parts]
        theirs: dict[tuple[int, ...], set[int]] = {}
        for device, index in array.sharding.devices_indices_map(array.shape).items():
            piece = tuple((part.start or 0) // size for part, size in zip(index, sizes, strict=True))
            theirs.setdefault(piece, set()).add(device.id)
        assert {piece: set(devices) for piece, devices in ours.items()} == theirs, path


@pytest.mark.parametrize("name", MESHES)
def test_it_is_what_devices_hold(name: str, folder: Path, cache: Path) -> None:
    mesh, rules = mesh_of(name)
    if rules is not None and "mlp" in rules:
        rules = {axis: over for axis, over in rules.items() if axis != "mlp"}
    model = lazyload.from_pretrained(folder, mesh=mesh, rules=rules, cache_dir=cache)
    plan = lazyload.plan(folder, mesh=mesh, rules=rules, cache_dir=cache)
    expected = held(model)
    assert len(set(expected.values())) == 1
    for found in (shards(model), shards(model, mesh, rules), shards(plan), shards(plan, mesh, rules)):
        assert found.device_bytes == expected
        assert found.nbytes == plan.nbytes
        same_pieces(found, arrays_of(model))
    assert plan.bytes_per_device == expected[0]
    said = f"{text.size(expected[0])} on each of 8 devices, {text.size(plan.nbytes)} in all"
    for picture in (lazyload.show_sharding(model), lazyload.show_sharding(plan)):
        assert said in picture.text
        assert said in picture.html.text
    whole = [array.nbytes for array in arrays_of(model).values() if array.sharding.is_fully_replicated]
    assert shards(model).replicated_bytes == sum(whole)


@pytest.mark.parametrize("name", MESHES)
def test_plans_are_abstract_models(name: str, folder: Path, cache: Path) -> None:
    mesh, rules = mesh_of(name)
    rules = None if rules is None else {axis: over for axis, over in rules.items() if axis != "mlp"}
    model = lazyload.from_pretrained(folder, mesh=mesh, rules=rules, cache_dir=cache)
    abstract = lazyload.plan(folder, mesh=mesh, rules=rules, cache_dir=cache).abstract()
    real = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    described = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), real
    )
    assert jax.tree.structure(abstract) == jax.tree.structure(described)
    assert jax.tree.leaves(abstract) == jax.tree.leaves(described)


@pytest.mark.parametrize("layout", [lazyload.MaxText(), lazyload.MaxText(scan_layers=False)])
def test_plans_of_other_layouts_are_abstract_trees(layout: lazyload.MaxText, folder: Path, cache: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    real = lazyload.from_pretrained(folder, mesh=mesh, layout=layout, cache_dir=cache)
    abstract = lazyload.plan(folder, mesh=mesh, layout=layout, cache_dir=cache).abstract()
    described = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), real
    )
    assert jax.tree.structure(abstract) == jax.tree.structure(described)
    assert jax.tree.leaves(abstract) == jax.tree.leaves(described)
    assert shards(real).device_bytes == shards(lazyload.plan(folder, mesh=mesh, layout=layout)).device_bytes
    with pytest.raises(ShardingError, match="does not say its logical axes"):
        lazyload.show_sharding(real, mesh)


def test_a_plan_is_enough_to_compile_for(tmp_path: Path) -> None:
    folder = checkpoints.make("llama3_tied", tmp_path)
    values = json.loads((folder / "config.json").read_text())
    graphdef = nnx.graphdef(Decoder(families.find(values).read(values), rngs=None))

    def logits(parameters: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, parameters)(tokens)[0]

    def plan(mesh: Mesh | AbstractMesh | None) -> Any:
        return lazyload.plan(folder, mesh=mesh, dtype="float32", cache_dir=tmp_path / "cache").abstract()

    tokens = jax.ShapeDtypeStruct((8, 3), jnp.int32)
    for nowhere in (None, AbstractMesh((16, 2), ("fsdp", "tp"))):
        assert jax.eval_shape(logits, plan(nowhere), tokens).shape == (8, 3, 512)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(logits).lower(plan(mesh), tokens).compile()
    model = lazyload.from_pretrained(folder, mesh=mesh, dtype="float32", cache_dir=tmp_path / "cache")
    numbers = np.arange(24, dtype=np.int32).reshape(8, 3)
    found = compiled(nnx.to_pure_dict(nnx.state(model, nnx.Param)), numbers)
    np.testing.assert_allclose(found, nnx.jit(Decoder.__call__)(model, numbers)[0], atol=1e-5)


def test_a_mesh_of_a_plan_needs_no_devices(folder: Path, cache: Path) -> None:
    plan = lazyload.plan(folder, mesh=AbstractMesh((16, 4), ("fsdp", "tp")), cache_dir=cache)
    assert plan.shardings is not None
    assert plan.shardings["embed.embedding"].spec == PartitionSpec("tp", "fsdp")
    assert plan.bytes_per_device is not None
    assert plan.nbytes / 64 < plan.bytes_per_device < plan.nbytes / 8
    without = lazyload.plan(folder, cache_dir=cache)
    assert (without.shardings, without.bytes_per_device, without.mesh) == (None, None, None)
    assert jax.tree.leaves(without.abstract())[0].sharding is None
    assert "mesh" not in repr(without)


ARRAYS = {
    "embed": ((512, 64), ("vocab", "embed")),
    "q": ((64, 4, 16), ("embed", "head", "head_dim")),
    "k": ((64, 1, 16), ("embed", "kv_head", "head_dim")),
    "experts": ((8, 64, 48), ("expert", "embed", "expert_mlp")),
    "norm": ((64,), ("embed",)),
    "square": ((64, 64), ("embed", "embed")),
}


@pytest.mark.parametrize(
    ("axes", "rules", "path", "reasons"),
    [
        ({"fsdp": 4, "tp": 2}, None, "embed", ["", ""]),
        ({"fsdp": 4, "tp": 2}, None, "q", ["", "", "no rule for head_dim"]),
        ({"fsdp": 4, "tp": 2}, None, "k", ["", "kv_head 1 not divided by tp=2", "no rule for head_dim"]),
        ({"fsdp": 4}, None, "embed", ["no mesh axis for vocab", ""]),
        ({"fsdp": 4, "tp": 16}, None, "q", ["", "head 4 not divided by tp=16", "no rule for head_dim"]),
        ({"fsdp": 4, "tp": 2}, None, "norm", ["one dimension"]),
        ({"fsdp": 4, "tp": 2}, {"embed": "fsdp"}, "norm", [""]),
        ({"fsdp": 4, "tp": 2}, {"vocab": None}, "embed", ["the rules keep vocab whole", ""]),
        ({"fsdp": 4, "tp": 2}, None, "square", ["", "fsdp already split another dimension than embed"]),
        ({"fsdp": 1, "tp": 2}, None, "embed", ["", "fsdp=1 splits nothing"]),
        (
            {"a": 2, "b": 3},
            {"vocab": ("a", "b")},
            "embed",
            ["vocab 512 not divided by a=2 and b=3", "no mesh axis for embed"],
        ),
    ],
)
def test_the_reasons(axes: dict[str, int], rules: Any, path: str, reasons: list[str]) -> None:
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    placed = partitions(mesh, rules, ARRAYS)[path]
    assert [dimension.reason for dimension in placed] == reasons
    assert all((dimension.parts(axes) > 1) == (not dimension.reason) for dimension in placed)
    assert spec_of(placed) == NamedSharding(mesh, spec_of(placed)).spec
    assert grid_of(mesh).devices == tuple(range(mesh.size))


def test_reasons_are_shown(folder: Path, cache: Path) -> None:
    plan = lazyload.plan(folder, mesh=AbstractMesh((3, 16), ("fsdp", "tp")), cache_dir=cache)
    picture = lazyload.show_sharding(plan)
    for reason in ("one dimension", "no rule for head_dim", "no mesh axis for expert", "not divided by tp=16"):
        assert reason in picture.text
        assert f"whole: {reason}" in picture.html.text
    assert "embed 64 not divided by fsdp=3: " in picture.text
    assert "device 0, and what it holds" in picture.html.text


def test_what_was_moved_by_hand_is_shown_as_it_lies(folder: Path, cache: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    model = lazyload.from_pretrained(folder, mesh=mesh, cache_dir=cache)
    table = model.embed.embedding[...]
    nnx.update(model, {"embed": {"embedding": jax.device_put(table, NamedSharding(mesh, PartitionSpec()))}})
    model.layers[0].attn.q_proj = nnx.LoRA(64, 2, 64, base_module=model.layers[0].attn.q_proj, rngs=nnx.Rngs(0))
    found = shards(model)
    assert found.device_bytes == held(model)
    assert found.device_bytes[0] > found.device_bytes[1]
    picture = lazyload.show_sharding(model)
    assert "placed so, not by the default rules: embed.embedding" in picture.text
    assert "on no mesh: layers.0.attn.q_proj.lora_a" in picture.text
    assert " to " in repr(model).splitlines()[3]


def test_models_without_a_mesh() -> None:
    model = Decoder(decoders.config(), rngs=None)
    with pytest.raises(ShardingError, match="lie nowhere yet; give mesh="):
        lazyload.show_sharding(model)
    wanted = shards(model, AbstractMesh((4, 2), ("fsdp", "tp")))
    assert wanted.device_bytes == dict.fromkeys(range(8), next(iter(wanted.device_bytes.values())))
    zeros = {path: jnp.zeros(array.shape, jnp.bfloat16) for path, array in module_arrays(model).items()}
    on_one = lazyload.fill(model, zeros)
    assert shards(on_one).device_bytes == {0: wanted.nbytes}
    assert "on one device" in lazyload.show_sharding(on_one).text
    assert "on each of 8" in lazyload.show_sharding(on_one, jax.make_mesh((4, 2), ("fsdp", "tp"))).text


def test_meshes_that_are_none(folder: Path, cache: Path) -> None:
    for bad in (8, "fsdp=4", ((4, 2), ("fsdp", "tp"))):
        with pytest.raises(ShardingError, match="is no mesh with devices"):
            lazyload.plan(folder, mesh=bad, cache_dir=cache)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="give mesh=, too"):
        lazyload.plan(folder, rules={"embed": "fsdp"}, cache_dir=cache)
    with pytest.raises(ShardingError, match="the mesh has the axes fsdp"):
        lazyload.plan(folder, mesh=AbstractMesh((2,), ("fsdp",)), rules={"embed": "tp"}, cache_dir=cache)
    with pytest.raises(ShardingError, match="lie nowhere yet"):
        lazyload.show_sharding(lazyload.plan(folder, cache_dir=cache))
