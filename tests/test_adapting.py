"""Adapters in PEFT's format, merged into a model while it is converted."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import checkpoints, stored
from support.hub import Hub

import lazyload
from lazyload.errors import (
    ArgumentError,
    LazyLoadError,
    SourceNotFoundError,
    TensorMismatchError,
    UnsupportedFormatError,
)

PREFIX = "base_model.model."
LAYERS = "model.layers"


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
        ({"use_dora": True}, UnsupportedFormatError, "use_dora=True, which is not implemented"),
        ({"bias": "all"}, UnsupportedFormatError, "bias='all'"),
        ({"init_lora_weights": "pissa"}, UnsupportedFormatError, "init_lora_weights='pissa'"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, UnsupportedFormatError, "target_parameters"),
        ({"a_field_of_tomorrow": 3}, UnsupportedFormatError, "a_field_of_tomorrow=3"),
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


# PEFT 0.21 asks transformers 5.24 by a name that this deprecates.
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Setting `save_embedding:UserWarning"
)
def test_what_peft_makes_and_merges(tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers", minversion="5.24")
    base = base_of(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        init_lora_weights=False,
        target_modules=["q_proj", "down_proj", "embed_tokens"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 3},
        modules_to_save=["lm_head"],
    )
    tuned = peft.get_peft_model(theirs, config)
    with torch.no_grad():
        tuned.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = {name: value.numpy() for name, value in tuned.merge_and_unload().state_dict().items()}
    with jax.default_matmul_precision("highest"):
        found = merged(base, tmp_path / "adapter", tmp_path)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
