"""The dtype of parameters: what people write for it, and what does not fit into it."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints

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
