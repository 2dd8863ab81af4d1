"""The dtype of parameters: what people write for it, and what does not fit into it."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.decoders import run

import lazyload
from lazyload import errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


class _Torch:
    """Looks as `torch.bfloat16` does."""

    is_floating_point = True

    def __init__(self, name: str, itemsize: int = 2):
        self.name, self.itemsize = name, itemsize

    def __repr__(self) -> str:
        return f"torch.{self.name}"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("bf16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        (_Torch("bfloat16"), "bfloat16"),
        (jnp.bfloat16, "bfloat16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        (_Torch("float16"), "float16"),
        (np.float16, "float16"),
        ("fp32", "float32"),
        ("float", "float32"),
        (_Torch("float32", 4), "float32"),
        (np.dtype("float32"), "float32"),
        (jnp.zeros(2), "float32"),
        ("auto", "bfloat16"),
    ],
    ids=str,
)
def test_what_people_write(folder: Path, tmp_path: Path, written: Any, name: str) -> None:
    plan = lazyload.plan(folder, cache_dir=tmp_path, dtype=written)
    assert {parameter.dtype for parameter in plan.parameters.values()} == {name}
    assert plan.key == lazyload.plan(folder, cache_dir=tmp_path, dtype=name).key  # type: ignore[arg-type]


@pytest.mark.parametrize("written", [None, "double", np.float64, float, "int8", _Torch("int64", 8), "", "torch", 16])
def test_what_parameters_cannot_be(folder: Path, tmp_path: Path, written: Any) -> None:
    with pytest.raises(errors.UnsupportedFormatError) as caught:
        lazyload.plan(folder, cache_dir=tmp_path, dtype=written)
    assert f"dtype {written!r}: parameters can be bfloat16, float16, float32" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"torch_dtype": "float16"}, "float16"), ({"dtype": "float32", "torch_dtype": "float16"}, "float32")],
)
def test_auto_is_what_the_file_says(tmp_path: Path, fields: dict[str, str], name: str) -> None:
    folder = with_fields(tmp_path, **fields)
    plan = lazyload.plan(folder, cache_dir=tmp_path / "cache", dtype="auto")
    assert {parameter.dtype for parameter in plan.parameters.values()} == {name}


def test_auto_where_the_file_does_not_say(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedFormatError, match="does not say which"):
        lazyload.plan(with_fields(tmp_path), cache_dir=tmp_path / "cache", dtype="auto")
    with pytest.raises(errors.UnsupportedFormatError, match="'float8_e4m3fn'"):
        lazyload.plan(with_fields(tmp_path / "b", dtype="float8_e4m3fn"), cache_dir=tmp_path / "cache", dtype="auto")


def with_fields(tmp_path: Path, **fields: str) -> Path:
    tmp_path.mkdir(exist_ok=True)
    folder = checkpoints.make("qwen3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


NORMS_AND_ROUTER: Any = {"*norm*": "fp32", "router": jnp.float32, "*": "bfloat16"}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3_moe", tmp_path_factory.mktemp("models"))


def test_a_model_with_dtypes_by_role_runs(experts: Path, tmp_path: Path) -> None:
    model = lazyload.from_pretrained(experts, cache_dir=tmp_path, dtype=NORMS_AND_ROUTER)
    by_dtype: dict[str, set[str]] = {"float32": set(), "bfloat16": set()}
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        by_dtype[param.dtype.name].add(".".join(str(part) for part in path if isinstance(part, str)))
    attention = {f"layers.attn.{name}_norm.scale" for name in "qk"}
    norms = {"final_norm.scale", "layers.attn_norm.scale", "layers.mlp_norm.scale"}
    assert by_dtype["float32"] == norms | attention | {"layers.moe.router.kernel"}
    tokens, expected = checkpoints.reference("qwen3_moe")
    logits, _ = run(model, tokens)
    assert np.corrcoef(np.asarray(logits).ravel(), expected.ravel())[0, 1] > 0.95
    assert not lazyload.convert(experts, cache_dir=tmp_path, dtype=NORMS_AND_ROUTER).converted
    explained = " ".join(lazyload.plan(experts, cache_dir=tmp_path).reasons)
    assert explained == 'dtype: bfloat16 instead of ["*norm*=float32", "router=float32", "*=bfloat16"]'


def test_the_first_pattern_that_matches_counts(experts: Path, tmp_path: Path) -> None:
    dtype: Any = {"layers.0.moe.*": "float16", "experts.out": "float32", "mlp_norm": "float16"}
    parameters = lazyload.plan(experts, cache_dir=tmp_path, dtype=dtype).parameters
    assert parameters["layers.0.moe.down_proj.kernel"].dtype == "float16"
    assert parameters["layers.1.moe.down_proj.kernel"].dtype == "float32"
    assert parameters["layers.1.moe.up_proj.kernel"].dtype == "bfloat16"
    assert parameters["layers.1.mlp_norm.scale"].dtype == "float16"
    assert parameters["layers.1.mlp_norm.scale"].nbytes == 2 * parameters["layers.1.mlp_norm.scale"].shape[0]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dtypes_by_role_in_maxtext_s_layout(experts: Path, tmp_path: Path, scan_layers: bool) -> None:
    layout = lazyload.MaxText(scan_layers)
    mixed = lazyload.convert(experts, cache_dir=tmp_path, layout=layout, dtype=NORMS_AND_ROUTER)
    for path, array in mixed.manifest.arrays.items():
        wide = "norm" in path or path.endswith("gate.kernel")
        assert array["dtype"] == ("float32" if wide else "bfloat16"), path


def test_dtypes_by_role_in_a_layout_of_one_s_own(experts: Path, tmp_path: Path) -> None:
    layout = lazyload.Layout(
        {"norm.scale": "final_norm : embed", "table": "embed : vocab embed"},
        skipped=["model.layers.*", "lm_head.*"],
    )
    tree = lazyload.from_pretrained(experts, cache_dir=tmp_path, layout=layout, dtype={"norm.*": "float32"})
    assert (tree["norm"]["scale"].dtype, tree["table"].dtype) == (jnp.float32, jnp.bfloat16)
    target = lazyload.Target(layout, build=lambda config, arrays: arrays["table"].dtype)
    assert lazyload.from_pretrained(experts, cache_dir=tmp_path, layout=target, dtype={"embed": "auto"}) == jnp.bfloat16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"*": "float32"}, "float32"),
        ({}, "bfloat16"),
        ({"*norm*": "bf16"}, "bfloat16"),
        ({"router": "auto", "*": "auto"}, "bfloat16"),
        ({"router": "float32"}, {"router": "fp32", "*": "bfloat16"}),
        ({"router": "float32", "*norm*": "float32"}, {"*norm*": np.float32, "router": np.float32}),
    ],
    ids=str,
)
def test_one_meaning_is_one_key(experts: Path, tmp_path: Path, one: Any, other: Any) -> None:
    keys = [lazyload.plan(experts, cache_dir=tmp_path, dtype=dtype).key for dtype in (one, other)]
    assert keys[0] == keys[1]


def test_other_dtypes_are_another_key(experts: Path, tmp_path: Path) -> None:
    options: list[Any] = [
        "bfloat16",
        "float32",
        {"router": "float32"},
        {"router": "float16"},
        {"*norm*": "float32"},
        {"*norm*": "float32", "*": "float16"},
        {"attn.*": "float16", "*norm*": "float32"},
        {"*norm*": "float32", "attn.*": "float16"},
    ]
    keys = {lazyload.plan(experts, cache_dir=tmp_path, dtype=dtype).key for dtype in options}
    assert len(keys) == len(options)


def test_what_has_a_dtype_of_its_own_keeps_it_unless_it_is_named(tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3_next", tmp_path)

    def dtypes(option: Any) -> dict[str, str]:
        parameters = lazyload.plan(folder, cache_dir=tmp_path / "cache", dtype=option).parameters
        return {path.removeprefix("layers.0.linear_attn."): each.dtype for path, each in parameters.items()}

    kept = dtypes({"delta.*": "float16"})
    assert (kept["A_log"], kept["dt_bias"], kept["norm.scale"], kept["conv1d.kernel"]) == (
        "float32",
        "float32",
        "float16",
        "float16",
    )
    named = dtypes({"delta.a_log": "bfloat16", "layers.0.linear_attn.dt_bias": "float16"})
    assert (named["A_log"], named["dt_bias"], named["layers.1.linear_attn.dt_bias"]) == (
        "bfloat16",
        "float16",
        "float32",
    )
    with pytest.raises(errors.LayoutError, match=r"only where it is named: delta\.a_log"):
        dtypes({"*.a_log": "bfloat16"})


@pytest.mark.parametrize(
    ("dtype", "error", "message"),
    [
        (
            {"rooter": "float32"},
            errors.LayoutError,
            r"'rooter' matches nothing; there are the roles attn\.k, .*router, ",
        ),
        ({"Router": "float32"}, errors.LayoutError, "matches nothing"),
        ({"lm_head.bias": "float32"}, errors.LayoutError, "matches nothing.* and paths such as embed.embedding"),
        ({"*norm*": "float32", "attn_norm": "bf16"}, errors.LayoutError, "'attn_norm' .*: put it before them"),
        ({"*": "float32", "router": "bf16"}, errors.ArgumentError, "put it last"),
        ({"router": "int8"}, errors.UnsupportedFormatError, "dtype 'int8': parameters can be"),
        ({"router": None}, errors.UnsupportedFormatError, "dtype None: parameters can be"),
        ({"router": {"*": "float32"}}, errors.UnsupportedFormatError, "parameters can be"),
        ({7: "float32"}, errors.ArgumentError, "7 is no pattern"),
        ({"": "float32"}, errors.ArgumentError, "'' is no pattern"),
        ([("router", "float32")], errors.UnsupportedFormatError, "parameters can be"),
    ],
    ids=str,
)
def test_patterns_that_cannot_be_meant(
    experts: Path, tmp_path: Path, dtype: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lazyload.convert(experts, cache_dir=tmp_path / "cache", dtype=dtype)
    assert not (tmp_path / "cache").exists()


def test_a_head_that_may_turn_out_to_be_stored_can_be_named(tmp_path: Path) -> None:
    folder, cache = checkpoints.make("llama3_tied", tmp_path), tmp_path / "cache"
    assert "lm_head.kernel" not in lazyload.plan(folder, cache_dir=cache, dtype={"lm_head": "float32"}).parameters
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"][::-1].copy()}, file)
    assert (
        lazyload.from_pretrained(folder, cache_dir=cache, dtype={"lm_head": "float32"}).lm_head.kernel.dtype
        == "float32"
    )
    assert not lazyload.convert(folder, cache_dir=cache, dtype={"lm_head": "float32"}).converted


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16])
def test_what_overflows_float16_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stored: type
) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    spoilt = {"model.norm.weight": [3, 5], "model.layers.1.mlp.up_proj.weight": [(0, 0)]}
    for file in folder.glob("*.safetensors"):
        tensors = {name: np.array(array, stored) for name, array in load_file(file).items()}
        for name in spoilt.keys() & tensors.keys():
            for place in spoilt[name]:
                tensors[name][place] = -1e5
        if "model.layers.0.input_layernorm.weight" in tensors:
            tensors["model.layers.0.input_layernorm.weight"][0] = np.inf
        save_file(tensors, file, metadata={"format": "pt"})
    for dtype in ("bfloat16", "float32"):
        lazyload.convert(folder, cache_dir=tmp_path / "cache", dtype=dtype)  # type: ignore[arg-type]
    assert not caplog.records
    lazyload.convert(folder, cache_dir=tmp_path / "cache", dtype="float16")
    (record,) = caplog.records
    assert "2 of final_norm.scale (model.norm.weight)" in record.getMessage()
    assert "1 of layers.1.mlp.up_proj.kernel (model.layers.1.mlp.up_proj.weight)" in record.getMessage()
    assert "input_layernorm" not in record.getMessage()
