"""Adapters in PEFT's format, merged into a model while it is converted."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import checkpoints, stored
from support.hub import Hub

import lazyload
from lazyload.adapting.changes import Rescaled
from lazyload.errors import (
    ArgumentError,
    LazyLoadError,
    SourceNotFoundError,
    TensorMismatchError,
    UnsupportedFormatError,
)
from lazyload.formats.peft import Adapter, read_adapter
from lazyload.layouts.source import Box, TensorInfo

PREFIX = "base_model.model."
LAYERS = "model.layers"
TOKENS = ".token_adapter.trainable_tokens_delta"


def base_of(tmp_path: Path, name: str = "llama3") -> Path:
    return checkpoints.make(name, tmp_path)


def pair(tensors: dict[str, np.ndarray], weight: str, rank: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng([seed, len(weight)])
    rows, columns = tensors[weight].shape
    module = weight.removesuffix(".weight")
    return {
        f"{PREFIX}{module}.lora_A.weight": random.normal(size=(rank, columns)).astype(np.float32) * 0.2,
        f"{PREFIX}{module}.lora_B.weight": random.normal(size=(rows, rank)).astype(np.float32) * 0.2,
    }


def write(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "adapter_model.safetensors"
    )
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def merged(base: Path, adapter: Path, tmp_path: Path, **options: Any) -> dict[str, np.ndarray]:
    """The tensors of the merged model, as the base model's files would have them."""
    model = lazyload.from_pretrained(base, adapter=adapter, cache_dir=tmp_path / "cache", dtype="float32", **options)
    return stored.tensors(lazyload.save_pretrained(model, tmp_path / "merged", like=base))


def test_each_module_has_its_rank_and_scaling(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    tensors = stored.tensors(base)
    names = [
        f"{LAYERS}.0.self_attn.q_proj.weight",
        f"{LAYERS}.1.self_attn.q_proj.weight",
        f"{LAYERS}.1.mlp.up_proj.weight",
    ]
    ranks, alphas = (4, 2, 6), (8, 3, 8)
    parts = [pair(tensors, name, rank, seed) for seed, (name, rank) in enumerate(zip(names, ranks, strict=True))]
    own = {f"{PREFIX}model.norm.weight": np.full(tensors["model.norm.weight"].shape, 1.5, np.float32)}
    adapter = write(
        tmp_path / "adapter",
        {**parts[0], **parts[1], **parts[2], **own},
        rank_pattern={"1.self_attn.q_proj": 2, "up_proj": 6},
        alpha_pattern={r"layers\.1\.self_attn\.q_proj": 3},
        use_rslora=True,
        modules_to_save=["norm"],
    )
    found = merged(base, adapter, tmp_path)
    for name, rank, alpha, part in zip(names, ranks, alphas, parts, strict=True):
        a, b = part.values()
        expected = tensors[name].astype(np.float32) + alpha / np.sqrt(rank) * (b @ a)
        np.testing.assert_allclose(found.pop(name), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.pop("model.norm.weight"), 1.5)
    for name, values in found.items():
        np.testing.assert_array_equal(values, tensors[name].astype(np.float32))


def test_it_is_rounded_once(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    name = f"{LAYERS}.0.mlp.down_proj.weight"
    part = pair(stored.tensors(base), name, 4)
    adapter = write(tmp_path / "adapter", part)
    model = lazyload.from_pretrained(base, adapter=adapter, cache_dir=tmp_path / "cache")
    a, b = part.values()
    expected = (stored.tensors(base)[name].astype(np.float32) + 2.0 * (b @ a)).astype(ml_dtypes.bfloat16)
    found = np.asarray(model.layers[0].mlp.down_proj.kernel[...]).T
    assert np.mean(found.view(np.uint16) == expected.view(np.uint16)) > 0.999


def test_the_content_of_the_adapter_is_part_of_the_key(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    tensors = stored.tensors(base)
    name = f"{LAYERS}.0.self_attn.q_proj.weight"
    adapter = write(tmp_path / "adapter", pair(tensors, name, 4))
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    first, copy = lazyload.plan(base, adapter=adapter, **options).key, tmp_path / "copy"
    adapter.rename(copy)
    assert lazyload.plan(base, adapter=copy, **options).key == first
    assert lazyload.plan(base, **options).key != first
    write(copy, pair(tensors, name, 4), lora_alpha=9)
    assert lazyload.plan(base, adapter=copy, **options).key != first
    write(copy, pair(tensors, name, 4, seed=1))
    assert lazyload.plan(base, adapter=copy, **options).key != first


def test_a_revision_of_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(tmp_path)
    weight = f"{LAYERS}.0.self_attn.q_proj.weight"
    matrices = pair(stored.tensors(base), weight, 4)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, alpha in ((first, 2), (second, 4)):
        write(folder, matrices, lora_alpha=alpha)
        write(folder / "best", matrices, lora_alpha=10 * alpha)
    base_commit = hub.add("org/base", base)
    newest = hub.add("org/adapter", second)
    hub.revisions["org/adapter", "v1"] = first
    old = hub.commit("org/adapter", "v1")
    hub.revisions["org/adapter", old] = first
    change = np.matmul(*reversed(list(matrices.values()))) / 4

    def changed(adapter: str, **options: Any) -> float:
        """The alpha that is merged."""
        model = lazyload.from_pretrained("org/base", adapter=adapter, dtype="float32", cache_dir=cache, **options)
        merged = np.asarray(model.layers[0].attn.q_proj.kernel[...]).reshape(change.shape[::-1]).T
        return float(((merged - stored.tensors(base)[weight].astype(np.float32)) / change).mean().round(3))

    cache = tmp_path / "cache"
    assert changed("org/adapter") == 4
    manifest = lazyload.last_report().path.parent / "manifest.json"
    said = json.loads(manifest.read_text())
    assert said["fields"]["adapter"] == {"kind": "hub", "id": "org/adapter", "commit": newest}
    assert said["source"]["adapter"] == {"id": "org/adapter", "revision": None, "commit": newest}
    assert changed("org/adapter@v1") == 2
    assert changed(f"hf://org/adapter@{old}/best") == 20
    assert changed(f"org/adapter@{newest}") == 4
    assert lazyload.last_report().hit, "a commit is what the branch was at"
    by_commit = lazyload.convert(
        "org/base", revision=base_commit, adapter=f"org/adapter@{newest}", dtype="bfloat16", cache_dir=cache
    )
    origin = by_commit.manifest.source
    assert (origin["revision"], origin["adapter"]["revision"]) == (base_commit, newest), "it was asked for by commit"
    damaged = lazyload.last_report()
    max(damaged.path.rglob("*"), key=lambda path: path.stat().st_size).write_bytes(b"")
    assert [repaired.outcome for repaired in lazyload.repair(damaged.key, cache_dir=cache)] == ["converted"]
    with pytest.raises(SourceNotFoundError, match="nowhere"):
        lazyload.plan("org/base", adapter="org/adapter@nowhere", cache_dir=cache)
    # Without the hub, and without what it has left here, the cache knows what its revisions were.
    shutil.rmtree(tmp_path / "hub")
    for options in ({"local_files_only": True}, {}):
        hub.folders.clear()
        hub.revisions.clear()
        assert changed("org/adapter@v1", **options) == 2
        assert changed("hf://org/adapter@main", **options) == 4
        assert lazyload.last_report().hit
    with pytest.raises(SourceNotFoundError):
        lazyload.plan("org/base", adapter="org/adapter@v2", cache_dir=cache, local_files_only=True)


def test_a_place_that_is_none() -> None:
    for adapter in ("hf://", "hf://a@", "hf://org/name@", "org/name@", ""):
        with pytest.raises(ArgumentError, match="adapter="):
            lazyload.plan("org/base", adapter=adapter)


def test_an_output_projection_of_its_own_unties(tmp_path: Path) -> None:
    base = base_of(tmp_path, "llama3_tied")
    head = np.ones(stored.tensors(base)["model.embed_tokens.weight"].shape, np.float32)
    adapter = write(tmp_path / "adapter", {f"{PREFIX}lm_head.weight": head}, modules_to_save=["lm_head"])
    model = lazyload.from_pretrained(base, adapter=adapter, cache_dir=tmp_path / "cache", dtype="float32")
    assert not model.config.tied
    np.testing.assert_array_equal(model.lm_head.kernel[...], 1)


def test_half_of_a_tied_pair_unties(tmp_path: Path) -> None:
    """As PEFT has it, which wraps embedding and output projection one by one."""
    base = base_of(tmp_path, "llama3_tied")
    embedding = stored.tensors(base)["model.embed_tokens.weight"].astype(np.float32)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "dtype": "float32"}
    own = {f"{PREFIX}model.embed_tokens.weight": np.ones_like(embedding)}
    a, b = (np.full(shape, 0.5, np.float32) for shape in ((4, embedding.shape[1]), (len(embedding), 4)))
    thin = {f"{PREFIX}lm_head.lora_A.weight": a, f"{PREFIX}lm_head.lora_B.weight": b}
    of_embedding = {
        f"{PREFIX}model.embed_tokens.lora_embedding_A": b.T,
        f"{PREFIX}model.embed_tokens.lora_embedding_B": a.T,
    }
    for number, (tensors, config, embed, head) in enumerate(
        (
            (own, {}, 1, embedding),
            (own, {"ensure_weight_tying": True}, 1, None),
            (thin, {}, embedding, embedding + 2.0),
            # PEFT saves what it has wrapped, too.
            (thin | {f"{PREFIX}lm_head.base_layer.weight": embedding}, {}, embedding, embedding + 2.0),
            (of_embedding, {}, embedding + 2.0, embedding),
            (of_embedding | thin, {}, embedding + 2.0, embedding + 2.0),
        )
    ):
        adapter = write(tmp_path / str(number), tensors, **config)
        model = lazyload.from_pretrained(base, adapter=adapter, **options)
        np.testing.assert_allclose(model.embed.embedding[...], np.broadcast_to(embed, embedding.shape), atol=1e-6)
        assert model.config.tied == (head is None or np.array_equal(head, embed))
        if not model.config.tied:
            np.testing.assert_allclose(np.asarray(model.lm_head.kernel[...]).T, head, atol=1e-6)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen2_awq"])
def test_names_and_packing_of_the_base_do_not_matter(name: str, tmp_path: Path) -> None:
    """transformers has a multimodal model's text model at another prefix than the hub, and nothing packed."""
    base = base_of(tmp_path, name)
    plain = lazyload.from_pretrained(base, dtype="float32", cache_dir=tmp_path / "cache")
    kernel = np.asarray(plain.layers[1].mlp.up_proj.kernel[...] if hasattr(plain.layers[1].mlp, "up_proj") else 0)
    a = np.full((4, kernel.shape[0]), 0.5, np.float32)
    b = np.full((kernel.shape[1], 4), 0.25, np.float32)
    prefix = "model.language_model.layers" if name == "gemma3" else LAYERS
    module = f"{PREFIX}{prefix}.1.mlp.up_proj"
    adapter = write(tmp_path / "adapter", {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b})
    model = lazyload.from_pretrained(base, adapter=adapter, dtype="float32", cache_dir=tmp_path / "cache")
    np.testing.assert_allclose(model.layers[1].mlp.up_proj.kernel[...], kernel + 1.0, rtol=1e-6, atol=1e-6)


def test_an_embedding(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    embedding = stored.tensors(base)["model.embed_tokens.weight"].astype(np.float32)
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((4, len(embedding)), (embedding.shape[1], 4)))
    module = f"{PREFIX}model.embed_tokens.lora_embedding_"
    adapter = write(tmp_path / "adapter", {f"{module}A": a, f"{module}B": b})
    found = merged(base, adapter, tmp_path)["model.embed_tokens.weight"]
    np.testing.assert_allclose(found, embedding + 2.0 * (b @ a).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"a_field_of_tomorrow": 3}, UnsupportedFormatError, "a_field_of_tomorrow=3, which is not implemented"),
        ({"use_dora": True}, TensorMismatchError, "has no lora_magnitude_vector, and .* has use_dora=True"),
        ({"lora_bias": True}, TensorMismatchError, "has no lora_B.bias, and .* has lora_bias=True"),
        ({"use_dora": True, "lora_bias": True}, UnsupportedFormatError, "use_dora=True with lora_bias"),
        ({"target_parameters": "experts"}, UnsupportedFormatError, "target_parameters='experts'; it is a list"),
        ({"target_parameters": ["q_proj.bias"]}, UnsupportedFormatError, r"adapters of .*q_proj\.bias are not read"),
        ({"lora_bias": True, "target_parameters": ["x"]}, UnsupportedFormatError, "lora_bias=True with target_param"),
        ({"trainable_token_indices": {"x": [-1]}}, UnsupportedFormatError, "trainable_token_indices"),
        ({"trainable_token_indices": {"x": {"y": [1]}}}, UnsupportedFormatError, "it is a list of tokens' numbers, or"),
        ({"trainable_token_indices": [True]}, UnsupportedFormatError, "trainable_token_indices"),
        ({"peft_type": "IA3"}, UnsupportedFormatError, "peft_type is 'IA3'"),
        ({"r": 8}, TensorMismatchError, "but the rank of .* is 8"),
        ({"r": 0}, UnsupportedFormatError, "r=0"),
        ({"r": 4.5}, UnsupportedFormatError, "r=4.5; it is a whole number"),
        ({"rank_pattern": {"q_proj": "x"}}, UnsupportedFormatError, "'x' in rank_pattern for 'q_proj'"),
        ({"rank_pattern": ["a"]}, UnsupportedFormatError, "it is an object"),
        ({"alpha_pattern": {"q_proj": None}}, UnsupportedFormatError, "None in alpha_pattern"),
        ({"alpha_pattern": {"(": 2}}, UnsupportedFormatError, "a regular expression"),
    ],
)
def test_configs_that_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[LazyLoadError], message: str
) -> None:
    base = base_of(tmp_path)
    part = pair(stored.tensors(base), f"{LAYERS}.0.self_attn.q_proj.weight", 4)
    adapter = write(tmp_path / "adapter", part, **changes)
    with pytest.raises(error, match=message):
        lazyload.plan(base, adapter=adapter, cache_dir=tmp_path / "cache")


IN_ORDER = {"r": 4, "lora_alpha": 8, "peft_type": "LORA", "target_modules": ["q_proj"]}
"""Fields that each test's own adapter has values for."""

WITHOUT_EFFECT = {
    **{"exclude_modules": ["x"], "lora_dropout": 0.1, "fan_in_fan_out": True, "use_rslora": True, "bias": "all"},
    **{"modules_to_save": ["norm"], "layers_to_transform": [0], "layers_pattern": "layers", "task_type": "CAUSAL_LM"},
    **{"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 2}, "megatron_core": "megatron.core"},
    **{"eva_config": {"rho": 2.0}, "corda_config": {"corda_method": "ipm"}, "lora_ga_config": {"scale": "stable"}},
    **{"loftq_config": {"loftq_bits": 4}, "runtime_config": {}, "qalora_group_size": 8, "ensure_weight_tying": True},
    **{"auto_mapping": {}, "base_model_name_or_path": "x", "revision": "v1", "inference_mode": False},
    **{"peft_version": "0.17.0", "init_lora_weights": "eva", "target_parameters": ["mlp.experts.down_proj"]},
    **{"trainable_token_indices": [1]},
}
"""What may be said of an adapter of which nothing else is said."""

REFUSED = {
    **{"megatron_config": {"x": 1}, "velora_config": {"num_groups": 8}, "kasa_config": {"beta": 1e-4}},
    **{"alora_invocation_tokens": [5], "use_qalora": True, "monteclora_config": {"num_samples": 8}},
    **{"layer_replication": [[0, 2]], "use_bdlora": {"nblocks": 2}, "arrow_config": {"top_k": 3}},
}
CONTRADICTED = {"use_dora": True, "lora_bias": True}
"""What the adapter's tensors must agree with."""


def test_every_field_is_read_or_refused_by_its_name() -> None:
    tensors = {f"{PREFIX}{LAYERS}.0.self_attn.q_proj.lora_{half}.weight": (4, 4) for half in "AB"}
    described = {name: TensorInfo(shape, np.dtype(np.float32)) for name, shape in tensors.items()}

    def read(**fields: Any) -> Adapter:
        return read_adapter({**IN_ORDER, **fields}, described, "it")

    for field, value in WITHOUT_EFFECT.items():
        (pair,) = read(**{field: value}).added.values()
        assert pair.scaling == (4 if field == "use_rslora" else 2)
    for field, value in REFUSED.items():
        with pytest.raises(UnsupportedFormatError, match=f"has {field}=.* merge the adapter with peft"):
            read(**{field: value})
    for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "of_tomorrow"):
        with pytest.raises(UnsupportedFormatError, match=f"init_lora_weights='{start}'"):
            read(init_lora_weights=start)
    peft = pytest.importorskip("peft")
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig) if field.init}
    assert fields <= IN_ORDER.keys() | WITHOUT_EFFECT.keys() | REFUSED.keys() | CONTRADICTED.keys()
    for kind in set(peft.PeftType) - {peft.PeftType.LORA}:
        with pytest.raises(UnsupportedFormatError, match=f"peft_type is '{kind.value}'"):
            read(peft_type=kind.value)


def test_rows_are_as_long_however_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever box a chunk or another process reads first: the same bits."""
    random = np.random.default_rng(0)
    whole, magnitude = random.normal(size=(11, 6)).astype(np.float32), random.uniform(1, 2, size=11).astype(np.float32)
    whole[3] = 0
    monkeypatch.setattr("lazyload.adapting.changes._TILE_SIZE", 4 * 6)

    def changed(index: Box, *, of_embedding: bool) -> np.ndarray:
        values, lengths = (whole.T, magnitude) if of_embedding else (whole, magnitude)
        return Rescaled(lambda box: values[box], values.shape, lengths, of_embedding=of_embedding)(index)

    everything = slice(0, 11), slice(0, 6)
    expected = changed(everything, of_embedding=False)
    lengths = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(lengths, np.where(np.arange(11) == 3, 0, magnitude), rtol=1e-6)
    for box in ((slice(2, 9), slice(1, 5)), (slice(10, 11), slice(0, 6)), (slice(4, 4), slice(0, 6))):
        np.testing.assert_array_equal(changed(box, of_embedding=False), expected[box])
        turned = changed((box[1], box[0]), of_embedding=True)
        np.testing.assert_allclose(turned, expected[box].T, rtol=1e-6)


def test_matrices_of_experts_may_be_the_other_way_round(tmp_path: Path) -> None:
    """As PEFT 0.18 has them: it takes the first of two dimensions for the inputs, whatever they are."""
    base = base_of(tmp_path, "qwen3_moe")
    tensors, random = stored.tensors(base), np.random.default_rng(0)
    rows, columns = 64, tensors[f"{LAYERS}.1.mlp.experts.0.down_proj.weight"].shape[1]
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((8 * 2, rows), (columns, 2 * 8)))
    module = f"{PREFIX}{LAYERS}.1.mlp.experts.lora_"
    adapter = write(
        tmp_path / "adapter", {f"{module}A.weight": a, f"{module}B.weight": b}, r=2, target_parameters=["down_proj"]
    )
    found = merged(base, adapter, tmp_path)
    for expert in range(8):
        weight = f"{LAYERS}.1.mlp.experts.{expert}.down_proj.weight"
        change = 4.0 * (b[:, expert::8] @ a[2 * expert : 2 * expert + 2]).T
        np.testing.assert_allclose(found[weight], tensors[weight].astype(np.float32) + change, rtol=1e-5, atol=1e-5)


def test_square_matrices_of_experts_may_be_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = base_of(tmp_path, "kimi_k2_int4")
    gates, down = ([(8, inputs), (128, 8)] for inputs in (128, 64))
    for targets, shapes, told in ((GATES_AND_MORE[:1], [gates], 1), (GATES_AND_MORE, [down, gates], 0)):
        modules = [f"{PREFIX}{LAYERS}.1.mlp.experts{'.base_layer' * depth}" for depth in range(len(targets))]
        tensors = {
            f"{module}.lora_{half}.weight": np.zeros(shape, np.float32)
            for module, pair in zip(modules, shapes, strict=True)
            for half, shape in zip("AB", pair, strict=True)
        }
        adapter = write(tmp_path / str(told), tensors, r=1, target_parameters=targets)
        lazyload.plan(base, adapter=adapter, cache_dir=tmp_path / "cache")
        assert caplog.text.count("fit both ways round") == told
        caplog.clear()


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    tensors = stored.tensors(base)
    part = pair(tensors, f"{LAYERS}.0.self_attn.q_proj.weight", 4)
    module = f"{PREFIX}{LAYERS}.0.self_attn.q_proj"
    row = np.zeros((1, 64), np.float32)
    for number, (further, config, message) in enumerate(
        (
            ({f"{module}.lora_B.bias": row[0]}, {"lora_bias": True}, "q_proj.bias: the base model has no such tensor"),
            ({f"{module}.lora_magnitude_vector": row[0, 1:]}, {"use_dora": True}, r"has shape \[63\], not \[64\]"),
            ({f"{module}.lora_magnitude_vector": row[0]}, {}, "has a lora_magnitude_vector, and .*use_dora=False"),
            ({f"{module}.lora_A": row}, {}, r"\.lora_A\.weight: is the same lora_A as .*\.lora_A\n"),
            (
                {f"{PREFIX}{name}": row for name in SAVED_TWICE},
                {},
                r"modules_to_save\.weight: is the same lm_head\.weight as .*base_layer",
            ),
            ({f"{PREFIX}model.embed_tokens{TOKENS}": row}, {"trainable_token_indices": [1, 2]}, "indices 2"),
            ({f"{PREFIX}model.embed_tokens{TOKENS}": row}, {"trainable_token_indices": [512]}, "for other tokens"),
            (
                {
                    f"{PREFIX}model.embed_tokens{TOKENS}": row,
                    f"{PREFIX}model.embed_tokens.lora_embedding_A": np.zeros((4, 512), np.float32),
                    f"{PREFIX}model.embed_tokens.lora_embedding_B": np.zeros((64, 4), np.float32),
                },
                {"trainable_token_indices": [1]},
                "embed_tokens.weight has matrices, too",
            ),
            (
                {name.replace("self_attn.q_proj", "mlp.experts"): array for name, array in part.items()},
                {"target_parameters": ["experts.down_proj"]},
                "has no experts with layers.0.down_proj",
            ),
            (
                {name.replace("self_attn.q_proj", "mlp.experts"): array for name, array in part.items()},
                {"target_parameters": GATES_AND_MORE},
                "no target_parameters of .* say which parameter it belongs to",
            ),
            (
                {name.replace("q_proj.lora", "q_proj.base_layer.lora"): array for name, array in part.items()},
                {},
                "no target_parameters of .* say which parameter it belongs to",
            ),
        )
    ):
        adapter = write(tmp_path / str(number), part | further, **config)
        with pytest.raises(TensorMismatchError, match=message):
            lazyload.plan(base, adapter=adapter, cache_dir=tmp_path / "cache")


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    thin = np.zeros((4, 3), np.float32)
    of_another = {
        f"{PREFIX}{LAYERS}.0.self_attn.q_proj.lora_A.weight": thin,
        f"{PREFIX}{LAYERS}.0.self_attn.q_proj.lora_B.weight": thin.T,
        f"{PREFIX}{LAYERS}.99.self_attn.q_proj.lora_A.weight": thin,
        f"{PREFIX}{LAYERS}.99.self_attn.q_proj.lora_B.weight": thin.T,
    }
    with pytest.raises(TensorMismatchError) as caught:
        lazyload.convert(base, adapter=write(tmp_path / "adapter", of_another), cache_dir=tmp_path / "cache")
    assert any(
        "99.self_attn.q_proj.weight: the base model has no such tensor" in each for each in caught.value.problems
    )
    assert any("the adapter is for shape [3, 3]" in each for each in caught.value.problems)
    with pytest.raises(TensorMismatchError, match="its partner"):
        lazyload.convert(
            base,
            adapter=write(tmp_path / "half", dict(list(of_another.items())[:1])),
            cache_dir=tmp_path / "cache",
        )
    with pytest.raises(SourceNotFoundError, match="adapter_config"):
        lazyload.convert(base, adapter=base, cache_dir=tmp_path / "cache")


SAVED_TWICE = ["lm_head.base_layer.weight", "lm_head.modules_to_save.weight"]
GATES_AND_MORE = ["experts.gate_up_proj", "experts.down_proj"]
OF_PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": (
        "llama3",
        {
            "use_rslora": True,
            "target_modules": ["q_proj", "down_proj", "embed_tokens"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"down_proj": 3},
            "modules_to_save": ["lm_head"],
        },
    ),
    "dora": (
        "llama3",
        {"use_dora": True, "target_modules": ["q_proj", "down_proj", "embed_tokens"], "rank_pattern": {"down_proj": 2}},
    ),
    "tokens": ("llama3_tied", {"target_modules": ["v_proj"], "trainable_token_indices": [7, 3]}),
    "bias": ("qwen2", {"bias": "all", "use_dora": True, "target_modules": ["q_proj", "o_proj"]}),
    "lora_bias": ("qwen2", {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
    "an expert a tensor": (
        "qwen3_moe",
        {"target_parameters": [*GATES_AND_MORE, "mlp.gate.weight"], "rank_pattern": {"experts.down_proj": 2}},
    ),
    "a router": ("phimoe", {"target_parameters": ["experts.gate_up_proj", "mlp.router.weight"]}),
    "interleaved": ("gpt_oss", {"bias": "all", "target_parameters": ["gate_up_proj", "down_proj"]}),
    "inputs first": ("llama4_text", {"target_parameters": GATES_AND_MORE[1:], "target_modules": ["q_proj"]}),
    "a shared expert": ("granitemoehybrid", {"target_parameters": GATES_AND_MORE, "target_modules": ["input_linear"]}),
    "stored inputs first": ("qwen3_vl_moe", {"target_parameters": GATES_AND_MORE}),
}


# PEFT 0.21 asks transformers 5.24 by a name that this deprecates.
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning",
    "ignore:Setting `save_embedding:UserWarning",
    # It takes a bias for a matrix, and says so of patterns for parameters that it uses.
    "ignore:Adapter 'default'",
    "ignore:The following rank_pattern keys did not match:RuntimeWarning",
)
@pytest.mark.parametrize("case", OF_PEFT)
def test_what_peft_makes_and_merges(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers", minversion="5.24")
    monkeypatch.setattr("lazyload.adapting.changes._TILE_SIZE", 200)
    name, options = OF_PEFT[case]
    in_pieces = {"storage": lazyload.Storage(chunk_bytes=4096)} if options.get("use_dora") else {}
    base = base_of(tmp_path, name)
    kind = "AutoModelForImageTextToText" if name == "qwen3_vl_moe" else "AutoModelForCausalLM"
    theirs = getattr(transformers, kind).from_pretrained(base, dtype=torch.float32)
    chosen: dict[str, Any] = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "target_modules": []}
    tuned = peft.get_peft_model(theirs, peft.LoraConfig(**{**chosen, **options}))
    with torch.no_grad():
        for path, parameter in tuned.named_parameters():
            if parameter.requires_grad and "lora_A" not in path:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    tuned.save_pretrained(tmp_path / "adapter")
    joined = tuned.merge_and_unload()
    joined.save_pretrained(tmp_path / "theirs")
    expected = stored.tensors(tmp_path / "theirs")
    with jax.default_matmul_precision("highest"):
        model = lazyload.from_pretrained(
            base,
            adapter=tmp_path / "adapter",
            cache_dir=tmp_path / "cache",
            dtype="float32",
            scan_layers=case == "dora",
            **in_pieces,
        )
        found = stored.tensors(lazyload.save_pretrained(model, tmp_path / "merged", like=base))
        assert found.keys() == expected.keys()
        for tensor, values in found.items():
            # transformers 5 saves these with outputs first.
            own = (
                expected[tensor].swapaxes(1, 2)
                if case == "stored inputs first" and values.ndim == 3
                else expected[tensor]
            )
            np.testing.assert_allclose(values, own.astype(np.float32), rtol=1e-5, atol=1e-6, err_msg=tensor)
        if case == "dora":
            tokens = np.arange(20).reshape(2, 10) * 3 % 61
            with torch.no_grad():
                theirs_logits = joined(torch.tensor(tokens)).logits.numpy()
            logits, _ = model(jnp.asarray(tokens))
            np.testing.assert_allclose(logits, theirs_logits, rtol=0, atol=1e-4)
