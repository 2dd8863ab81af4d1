"""lazyload in somebody else's code: a model's config, its parameters as a plain pytree, modules that exist filled."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.decoders import run
from support.hub import Hub

import lazyload
from lazyload import errors

TOKENS = jnp.arange(8, dtype=jnp.int32).reshape(2, 4)


def mesh_of(*sizes: int) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(
        np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes), ("fsdp", "tp")[: len(sizes)]
    )


def values(model: nnx.Module) -> dict[str, Any]:
    tree = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): value for path, value in flatten_dict(tree).items()}


def require_equal(one: nnx.Module, other: nnx.Module) -> None:
    ours, theirs = values(one), values(other)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(theirs[path]), err_msg=path)


class TestConfig:
    def test_it_is_that_of_the_loaded_model(self, qwen: Path, warm: Path) -> None:
        config = lazyload.config(qwen)
        assert config == lazyload.from_pretrained(qwen, cache_dir=warm).config
        assert lazyload.config(qwen, layers=range(1, 3)) == config.part(range(1, 3))
        assert lazyload.config(qwen, config={"rms_norm_eps": 0.5}).norm.eps == 0.5

    def test_it_reads_nothing_but_config_json(self, qwen: Path, tmp_path: Path) -> None:
        shutil.copy(qwen / "config.json", tmp_path)
        assert lazyload.config(tmp_path, cache_dir=tmp_path / "cache") == lazyload.config(qwen)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_of_the_hub_it_asks_for_one_file_and_for_none_of_a_commit_that_is_cached(
        self, qwen: Path, tmp_path: Path, hub: Hub
    ) -> None:
        commit = hub.add("org/model", qwen)
        expected = lazyload.config(qwen)
        assert lazyload.config("org/model", cache_dir=tmp_path) == expected
        assert {request.split()[1].rsplit("/", 1)[1] for request in hub.requests} == {"config.json"}
        lazyload.convert("org/model", cache_dir=tmp_path)
        hub.requests.clear()
        shutil.rmtree(tmp_path / "hub")
        assert lazyload.config("org/model", revision=commit, cache_dir=tmp_path) == expected
        assert lazyload.config("org/model", local_files_only=True, cache_dir=tmp_path) == expected
        assert hub.requests == []
        hub.down = True
        assert lazyload.config("org/model", cache_dir=tmp_path) == expected
        with pytest.raises(errors.SourceNotFoundError):
            lazyload.config("org/other", local_files_only=True, cache_dir=tmp_path)

    def test_of_an_architecture_of_one_s_own_it_is_what_its_family_reads(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "unigrams", "vocab_size": 7}))
        family = lazyload.Family(
            "unigrams", ("unigrams",), lambda values: values["vocab_size"], lambda _: lazyload.Layout({})
        )
        assert lazyload.config(tmp_path, family=family) == 7
        with pytest.raises(errors.UnknownArchitectureError, match="unigrams"):
            lazyload.config(tmp_path)
        assert lazyload.config(tmp_path, family=family, config={"vocab_size": 9}) == 9

    def test_it_imports_no_jax(self, qwen: Path) -> None:
        heavy = {"jax", "flax", "tensorstore"}
        code = f"import lazyload, sys; lazyload.config({str(qwen)!r}); print({heavy} & {{*sys.modules}})"
        environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "set()"

    def test_mistakes_are_told(self, qwen: Path) -> None:
        with pytest.raises(errors.ArgumentError, match="give dtype="):
            lazyload.config(qwen, torch_dtype="bfloat16")
        with pytest.raises(errors.ArgumentError, match="the model has 4 layers"):
            lazyload.config(qwen, layers=range(2, 9))
        with pytest.raises(errors.ArgumentError, match=r"no lazyload\.Family"):
            lazyload.config(qwen, family="qwen3")


class TestPytree:
    """`nnx.to_pure_dict(nnx.state(model, nnx.Param))`, as the docstring of `from_pretrained` has it."""

    def test_it_is_a_nested_dictionary_of_the_arrays_as_they_lie(self, qwen: Path, warm: Path) -> None:
        model = lazyload.from_pretrained(qwen, cache_dir=warm, mesh=mesh_of(4, 2))
        parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        kernel = parameters["layers"][0]["attn"]["q_proj"]["kernel"]
        assert kernel is model.layers[0].attn.q_proj.kernel[...]
        assert kernel.sharding.spec == PartitionSpec("fsdp", "tp")
        leaves = jax.tree.leaves(parameters)
        assert len(leaves) == len(lazyload.plan(qwen, cache_dir=warm).parameters)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)

    def test_it_trains_without_flax(self, qwen: Path, warm: Path) -> None:
        model = lazyload.from_pretrained(qwen, cache_dir=warm, mesh=mesh_of(8), dtype="float32")
        graph = nnx.graphdef(model)
        parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        optimizer = optax.sgd(0.1)

        def loss(parameters: Any) -> jax.Array:
            logits, _ = nnx.merge(graph, parameters)(TOKENS)
            return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean()

        @jax.jit
        def step(parameters: Any, state: Any) -> tuple[jax.Array, Any, Any]:
            value, gradients = jax.value_and_grad(loss)(parameters)
            updates, state = optimizer.update(gradients, state)
            return value, optax.apply_updates(parameters, updates), state

        before, trained, state = step(parameters, optimizer.init(parameters))
        after, _, _ = step(trained, state)
        assert after < before
        nnx.update(model, trained)
        logits, _ = run(model, TOKENS)
        np.testing.assert_allclose(logits, run(nnx.merge(graph, trained), TOKENS)[0], rtol=1e-5, atol=1e-5)
        assert model.layers[0].attn.q_proj.kernel[...] is trained["layers"][0]["attn"]["q_proj"]["kernel"]

    def test_it_fills_a_module_that_has_no_values(self, qwen: Path, warm: Path) -> None:
        model = lazyload.from_pretrained(qwen, cache_dir=warm)
        tree = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        arrays = {".".join(map(str, path)): array for path, array in flatten_dict(tree).items()}
        require_equal(lazyload.fill(lazyload.Decoder(lazyload.config(qwen), rngs=None), arrays), model)


class TestInto:
    def test_a_decoder_without_values_is_filled_and_returned(self, qwen: Path, warm: Path) -> None:
        empty = lazyload.Decoder(lazyload.config(qwen), rngs=None)
        model = lazyload.from_pretrained(qwen, cache_dir=warm, into=empty)
        assert model is empty
        expected = lazyload.from_pretrained(qwen, cache_dir=warm)
        require_equal(model, expected)
        assert {value.sharding for value in values(model).values()} == {
            value.sharding for value in values(expected).values()
        }

    def test_a_miss_fills_it_too(self, qwen: Path, tmp_path: Path) -> None:
        empty = lazyload.Decoder(lazyload.config(qwen), rngs=None)
        lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=empty)
        assert not lazyload.last_report().hit
        require_equal(empty, lazyload.from_pretrained(qwen, cache_dir=tmp_path))

    def test_arrays_go_where_the_module_lies_unless_the_call_says_otherwise(self, qwen: Path, warm: Path) -> None:
        model = lazyload.from_pretrained(qwen, cache_dir=warm, mesh=mesh_of(2, 2), rules={"embed": None})
        before = {path: value.sharding for path, value in values(model).items()}
        kernel = model.layers[0].mlp.gate_proj.kernel
        nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
        assert lazyload.from_pretrained(qwen, cache_dir=warm, into=model) is model
        assert model.layers[0].mlp.gate_proj.kernel is kernel, "optimizers and closures hold on to it"
        assert {path: value.sharding for path, value in values(model).items()} == before
        assert kernel[...].sharding.spec == PartitionSpec(None, "tp")
        require_equal(model, lazyload.from_pretrained(qwen, cache_dir=warm))
        lazyload.from_pretrained(qwen, cache_dir=warm, into=model, mesh=mesh_of(8))
        assert kernel[...].sharding == NamedSharding(mesh_of(8), PartitionSpec("fsdp"))

    def test_abstract_parameters_say_where_they_are_to_lie(self, qwen: Path, warm: Path) -> None:
        empty = lazyload.Decoder(lazyload.config(qwen), rngs=None)
        place = NamedSharding(mesh_of(2, 4), PartitionSpec(None, ("fsdp", "tp")))
        kernel = empty.lm_head.kernel
        nnx.update(empty, {"lm_head": {"kernel": jax.ShapeDtypeStruct(kernel.shape, jnp.bfloat16, sharding=place)}})
        lazyload.from_pretrained(qwen, cache_dir=warm, into=empty)
        assert kernel[...].sharding == place
        assert empty.embed.embedding[...].sharding.mesh.devices.size == 8

    def test_parameters_that_are_to_lie_in_the_host_s_memory_do(self, qwen: Path, warm: Path) -> None:
        empty = lazyload.Decoder(lazyload.config(qwen), rngs=None)
        place = NamedSharding(mesh_of(8), PartitionSpec("fsdp"), memory_kind="pinned_host")
        shape = empty.embed.embedding.shape
        nnx.update(empty, {"embed": {"embedding": jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)}})
        lazyload.from_pretrained(qwen, cache_dir=warm, into=empty)
        assert empty.embed.embedding[...].sharding == place
        require_equal(empty, lazyload.from_pretrained(qwen, cache_dir=warm))

    def test_a_mesh_without_devices_is_that_which_is_set(self, qwen: Path, warm: Path) -> None:
        mesh = mesh_of(4, 2)
        place = NamedSharding(mesh.abstract_mesh, PartitionSpec("tp"))
        empty = lazyload.Decoder(lazyload.config(qwen), rngs=None)
        shape = empty.lm_head.kernel.shape
        nnx.update(empty, {"lm_head": {"kernel": jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)}})
        with pytest.raises(errors.ShardingError, match=r"give mesh=, or set such a mesh with jax\.set_mesh"):
            lazyload.from_pretrained(qwen, cache_dir=warm, into=empty)
        with jax.set_mesh(mesh):
            lazyload.from_pretrained(qwen, cache_dir=warm, into=empty)
        assert empty.lm_head.kernel[...].sharding == NamedSharding(mesh, PartitionSpec("tp"))

    def test_the_dtype_is_that_of_the_call(self, qwen: Path, warm: Path, tmp_path: Path) -> None:
        model = lazyload.Decoder(lazyload.config(qwen), dtype=jnp.float32, rngs=nnx.Rngs(0))
        lazyload.from_pretrained(qwen, cache_dir=warm, into=model)
        assert {value.dtype for value in values(model).values()} == {jnp.dtype(jnp.bfloat16)}
        lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=model, dtype="float32")
        assert {value.dtype for value in values(model).values()} == {jnp.dtype(jnp.float32)}

    def test_another_config_is_an_error_before_anything_is_converted(self, qwen: Path, tmp_path: Path) -> None:
        config = lazyload.config(qwen)
        other = dataclasses.replace(config, embed_scale=2.0, layers=config.layers[:3])
        with pytest.raises(errors.ArgumentError, match=r"its embed_scale is 2\.0, not 1\.0; it has 3 layers, not 4"):
            lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=lazyload.Decoder(other, rngs=None))
        layer = dataclasses.replace(config.layers[1], residual_scale=0.5)
        other = dataclasses.replace(config, layers=(config.layers[0], layer, *config.layers[2:]))
        with pytest.raises(errors.ArgumentError, match="its layer 1 has another residual_scale"):
            lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=lazyload.Decoder(other, rngs=None))
        assert list(tmp_path.iterdir()) == []

    def test_a_part_of_the_layers(self, qwen: Path, tmp_path: Path) -> None:
        part = lazyload.Decoder(lazyload.config(qwen, layers=range(1, 3)), rngs=None)
        with pytest.raises(errors.ArgumentError, match="it has 2 layers, not 4"):
            lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=part)
        lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=part, layers=range(1, 3))
        require_equal(part, lazyload.from_pretrained(qwen, cache_dir=tmp_path, layers=range(1, 3)))

    def test_a_failed_load_leaves_the_module_as_it_was(self, qwen: Path, tmp_path: Path) -> None:
        model = lazyload.from_pretrained(qwen, cache_dir=tmp_path)
        before = values(model)
        entry = lazyload.Cache(tmp_path).entries()[0]
        for file in entry.path.glob("d/*"):
            size = file.stat().st_size
            file.write_bytes(b"\xff" * size)
        with pytest.raises(errors.CacheError):
            lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=model, verify=True)
        assert all(value is before[path] for path, value in values(model).items())

    def test_a_head_of_its_own_needs_a_decoder_that_has_one(self, tmp_path: Path) -> None:
        folder = checkpoints.make("llama3_tied", tmp_path / "models")
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        embedding = tensors["model.embed_tokens.weight"]
        save_file(tensors | {"lm_head.weight": embedding[::-1].copy()}, file)
        config = lazyload.config(folder)
        assert config.tied
        cache = tmp_path / "cache"
        untied = lazyload.Decoder(dataclasses.replace(config, tied=False), rngs=None)
        lazyload.from_pretrained(folder, cache_dir=cache, into=untied)
        require_equal(untied, lazyload.from_pretrained(folder, cache_dir=cache))
        tied = lazyload.Decoder(config, rngs=None)
        with pytest.raises(errors.ArgumentError, match="its tied is True, not False"):
            lazyload.from_pretrained(folder, cache_dir=cache, into=tied)

    def test_adapters_stay_as_they_are(self, qwen: Path, warm: Path) -> None:
        model = lazyload.Decoder(lazyload.config(qwen), rngs=None)
        adapter = nnx.LoRAParam(jnp.ones((4, 2)))
        model.lm_head.kernel_lora_a = adapter
        lazyload.from_pretrained(qwen, cache_dir=warm, into=model)
        assert model.lm_head.kernel_lora_a is adapter
        np.testing.assert_array_equal(adapter[...], 1)
        expected = lazyload.from_pretrained(qwen, cache_dir=warm)
        np.testing.assert_array_equal(model.lm_head.kernel[...], expected.lm_head.kernel[...])


class Bigrams(nnx.Module):
    """A module of somebody else's, which knows nothing of lazyload."""

    def __init__(self, vocab: int, width: int, rngs: nnx.Rngs):
        self.table = nnx.Embed(vocab, width, rngs=rngs)
        self.head = nnx.Linear(width, vocab, use_bias=False, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros(()))


BIGRAMS = lazyload.Layout(
    {"table.embedding": "embed : vocab embed", "head.kernel": "lm_head : embed vocab"},
    skipped=["model.layers.*", "model.norm.*"],
)


class TestIntoAModuleOfOnesOwn:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_it_is_filled_by_the_layout_s_paths(self, qwen: Path, tmp_path: Path, abstract: bool) -> None:
        def make() -> Bigrams:
            return Bigrams(512, 64, nnx.Rngs(0))

        module = nnx.eval_shape(make) if abstract else make()
        filled = lazyload.from_pretrained(qwen, cache_dir=tmp_path, layout=BIGRAMS, into=module)
        assert filled is module
        decoder = lazyload.from_pretrained(qwen, cache_dir=tmp_path)
        np.testing.assert_array_equal(module.table.embedding[...], decoder.embed.embedding[...])
        np.testing.assert_array_equal(module.head.kernel[...], decoder.lm_head.kernel[...])
        devices = 8 if abstract else 1
        assert len(module.table.embedding[...].sharding.device_set) == devices

    def test_every_difference_is_named_before_anything_is_converted(self, qwen: Path, tmp_path: Path) -> None:
        module = Bigrams(512, 65, nnx.Rngs(0))
        module.scale = nnx.Param(jnp.ones(3))
        with pytest.raises(errors.TensorMismatchError) as raised:
            lazyload.from_pretrained(qwen, cache_dir=tmp_path, layout=BIGRAMS, into=module)
        assert set(raised.value.problems) == {
            "scale is missing, shape (3,)",
            "table.embedding has shape (512, 64), the model needs (512, 65)",
            "head.kernel has shape (64, 512), the model needs (65, 512)",
        }
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_filled_is_refused(self, qwen: Path, tmp_path: Path) -> None:
        module = Bigrams(512, 64, nnx.Rngs(0))
        target = lazyload.Target(BIGRAMS, build=lambda config, arrays: None)
        for layout in (lazyload.MaxText(), target):
            with pytest.raises(errors.LayoutError, match="into= fills a module"):
                lazyload.from_pretrained(qwen, cache_dir=tmp_path, layout=layout, into=module)
        with pytest.raises(errors.ArgumentError, match=r"into=type: give a module|into=dict: give a module"):
            lazyload.from_pretrained(qwen, cache_dir=tmp_path, into={"embed": {}})
        with pytest.raises(errors.TensorMismatchError, match="into: the module does not have"):
            lazyload.from_pretrained(qwen, cache_dir=tmp_path, into=module)
        assert list(tmp_path.iterdir()) == []
