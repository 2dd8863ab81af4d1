"""MaxText itself restores our conversions, and its models then say what transformers' do.

Needs MaxText (Python 3.12) in this environment, or in the one whose interpreter `LAZYLOAD_MAXTEXT_PYTHON` names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

import lazyload

HERE = Path(__file__).parent
PYTHON = os.environ.get("LAZYLOAD_MAXTEXT_PYTHON") or (sys.executable if importlib.util.find_spec("maxtext") else None)
pytestmark = pytest.mark.skipif(PYTHON is None, reason="MaxText is not installed")

SHAPE = {
    "base_emb_dim": 64,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 2,
    "base_mlp_dim": 96,
    "base_num_decoder_layers": 4,
    "head_dim": 16,
    "vocab_size": 512,
    "normalization_layer_epsilon": 1e-6,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama3": {"model_name": "llama3.1-8b", "logits_via_embedding": False},
    "qwen3": {"model_name": "qwen3-0.6b", "logits_via_embedding": False, "rope_max_timescale": 10000},
    # A MaxText layer of Gemma 2 is two layers; MaxText pads its vocabulary.
    "gemma2": {
        "model_name": "gemma2-2b",
        "base_num_decoder_layers": 2,
        "vocab_size": 640,
        "sliding_window_size": 8,
    },
}
# MaxText extends Llama's context from 8192, whatever config.json says (the golden model has 64), so what to compare
# with is transformers 5.23 (PyTorch 2.13, CPU, eager, float32) on the golden weights with that number in config.json.
LOGITS = {"llama3": HERE / "llama3_context_8192.npz"}

CASES = [
    # model, scan_layers, ocdbt and zarr3, filled in by the integration
    ("qwen3", True, True, False),
    ("qwen3", True, False, True),
    ("qwen3", False, True, False),
    ("qwen3", False, False, False),
    ("llama3", True, True, True),
    ("llama3", False, False, False),
    ("gemma2", True, False, False),
    ("gemma2", False, True, True),
]


def golden(name: str) -> Path:
    return HERE.parent / "golden" / "logits" / f"{name}.npz"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool, bool, bool], np.ndarray]:
    """The logits of all cases: one process, as importing MaxText takes longer than all the rest."""
    folder = tmp_path_factory.mktemp("maxtext")
    models = {name: checkpoints.make(name, folder) for name in MODELS}
    jobs = []
    for number, (name, scan_layers, flags, fill_in) in enumerate(CASES):
        settings = {
            **SHAPE,
            **MODELS[name],
            "scan_layers": scan_layers,
            "checkpoint_storage_use_ocdbt": flags,
            "checkpoint_storage_use_zarr3": flags,
        }
        job = {"settings": settings, "tokens": str(golden(name)), "logits": str(folder / f"{number}.npz")}
        if fill_in:
            settings["convert_checkpoint_if_possible"] = True
            job |= {"model": str(models[name]), "cache_dir": str(folder / "cache")}
        else:
            layout = lazyload.MaxText(scan_layers=scan_layers, vocab_size=settings["vocab_size"])
            storage = lazyload.Storage(ocdbt=flags, zarr3=flags)
            converted = lazyload.convert(models[name], layout=layout, storage=storage, cache_dir=folder / "cache")
            settings["load_parameters_path"] = str(converted.path)
        jobs.append(job)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    command = [PYTHON, HERE / "maxtext_logits.py", folder / "jobs.json"]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    return {case: np.load(job["logits"])["logits"] for case, job in zip(CASES, jobs, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_maxtext_s_model_says_what_transformers_does(
    case: tuple[str, bool, bool, bool], found: dict[tuple[str, bool, bool, bool], np.ndarray]
) -> None:
    expected = np.load(LOGITS.get(case[0], golden(case[0])))["logits"]
    logits = found[case][..., : expected.shape[-1]]
    # Everything is float32, and the only rounding of the conversion, Llama's and Gemma 2's query scale, is a power
    # of two for heads of 16: what is left is the order of sums.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)
