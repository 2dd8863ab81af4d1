"""MaxText itself restores our conversions, and its models then say what transformers' do.

Needs MaxText (Python 3.12) in this environment, or in the one whose interpreter `LAZYLOAD_MAXTEXT_PYTHON` names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import checkpoints, stored

import lazyload

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = os.environ.get("LAZYLOAD_MAXTEXT_PYTHON") or (sys.executable if importlib.util.find_spec("maxtext") else None)
# All in one process of the test run: what they look at takes MaxText a minute.
pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="MaxText is not installed"),
    pytest.mark.xdist_group("maxtext"),
]

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
# What MaxText is told of a model beyond the settings that its golden tree was made with.
OF_TREES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"rope_factor": 1},
    "deepseek_v4_7": {},
    "gemma4_a4b_12": {"sliding_window_size": 8},
    "gemma4_e2b_10": {"sliding_window_size": 8},
    "gemma4_text_31b_12": {"sliding_window_size": 8},
    "kimi_k2": {"model_name": "kimi-k2-1t"},
    "mistral": {"normalization_layer_epsilon": 1e-6, "rope_max_timescale": 10000},
    "qwen3_5_moe_8": {},
    "qwen3_next_8": {},
    "qwen3_vl": {"use_multimodal": False},
    "qwen3_vl_moe": {"use_multimodal": False},
}
# MaxText extends Llama's context from 8192, whatever config.json says (the golden model has 64), so what to compare
# with is transformers 5.23 (PyTorch 2.13, CPU, eager, float32) on the golden weights with that number in config.json.
# MaxText's Mistral has no window, the golden model one of 8: transformers 5.24 with none.
LOGITS = {"llama3": HERE / "llama3_context_8192.npz", "mistral": HERE / "mistral_without_window.npz"}


class Case(NamedTuple):
    """A checkpoint, and how MaxText comes by it.

    Attributes:
        model: The golden checkpoint.
        scan_layers: How it is converted.
        flags: OCDBT and zarr3.
        how: "path" gives MaxText the path of a conversion; "unset" does without saying `scan_layers`; "filled" has it
            filled in by the integration.
    """

    model: str
    scan_layers: bool
    flags: bool
    how: str


SAVED: dict[str, Case | None] = {
    "qwen3": Case("qwen3", True, True, "path"),
    "gemma2": Case("gemma2", False, True, "filled"),
    "deepseek_v4_7": None,
}
"""Of which models MaxText saves what it has restored, and in which case; None by the trainer."""
CASES = [
    *(case for case in SAVED.values() if case),
    Case("qwen3", True, False, "filled"),
    Case("qwen3", False, True, "unset"),
    Case("qwen3", False, False, "path"),
    Case("llama3", True, True, "filled"),
    Case("llama3", False, False, "path"),
    Case("gemma2", True, False, "path"),
    Case("deepseek_v3", True, True, "path"),
    Case("gemma4_a4b_12", False, False, "path"),
    Case("gemma4_a4b_12", True, True, "filled"),
    Case("gemma4_e2b_10", False, True, "filled"),
    Case("gemma4_text_31b_12", True, False, "path"),
    Case("kimi_k2", True, False, "filled"),
    Case("kimi_k2", False, True, "path"),
    Case("mistral", False, True, "path"),
    Case("mistral", True, True, "filled"),
    Case("qwen3_5_moe_8", True, True, "path"),
    Case("qwen3_5_moe_8", False, False, "filled"),
    Case("qwen3_next_8", False, True, "path"),
    Case("qwen3_next_8", True, False, "filled"),
    Case("qwen3_vl", True, True, "path"),
    Case("qwen3_vl", False, True, "filled"),
    Case("qwen3_vl_moe", False, True, "filled"),
]


def settings_of(model: str) -> dict[str, Any]:
    """What MaxText is told of a golden model."""
    if model in MODELS:
        return SHAPE | MODELS[model]
    tree = json.loads(next((HERE.parent / "golden" / "maxtext").glob(f"{model}-*.json")).read_text())
    overrides = dict(override.split("=") for override in tree["overrides"])
    return {"model_name": tree["maxtext_model"]} | overrides | OF_TREES[model]


def golden(name: str) -> Path:
    return HERE.parent / "golden" / "logits" / f"{name}.npz"


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """The output of a program in MaxText's environment."""
    result = subprocess.run(
        [str(PYTHON), *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return result.stdout


def job_of(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """What `maxtext_logits.py` is to do."""
    settings = {
        **settings_of(case.model),
        "scan_layers": case.scan_layers,
        "checkpoint_storage_use_ocdbt": case.flags,
        "checkpoint_storage_use_zarr3": case.flags,
    }
    job = {
        "settings": settings,
        "tokens": str(golden(case.model)),
        "logits": str(folder / f"{'-'.join(map(str, case))}.npz"),
    }
    if case.how == "filled":
        settings["convert_checkpoint_if_possible"] = True
        return job | {"model": str(model), "cache_dir": str(folder / "cache")}
    layout = lazyload.MaxText(scan_layers=case.scan_layers, vocab_size=int(settings["vocab_size"]))
    storage = lazyload.Storage(ocdbt=case.flags, zarr3=case.flags)
    settings["load_parameters_path"] = str(
        lazyload.convert(model, layout=layout, storage=storage, cache_dir=folder / "cache").path
    )
    if case.how == "unset":
        del settings["scan_layers"]
    return job


class Found(NamedTuple):
    """What MaxText's process found.

    Attributes:
        logits: Of all cases.
        otherwise: The parameters that the trainer restored otherwise than `from_pretrained`.
        trained: What the trainer restored of a DeepSeek V4, scanned and not.
        saved: Models, and what MaxText has saved of them.
        refusals: What was said of a contradicting config.
        internals: A config's inside.
    """

    logits: dict[Case, np.ndarray]
    otherwise: dict[Case, list[str]]
    trained: dict[bool, dict[str, Any]]
    saved: dict[str, tuple[Path, Path]]
    refusals: Sequence[str]
    internals: dict[str, Any]


def tree_of(scan_layers: bool) -> dict[str, Any]:
    """The leaves of the golden tree of a DeepSeek V4, without the collections that they lie in."""
    path = HERE.parent / "golden" / "maxtext" / f"deepseek_v4_7-scan_{str(scan_layers).lower()}.json"
    leaves = json.loads(path.read_text())["leaves"]
    return {name.split("/", 2)[2]: leaf for name, leaf in leaves.items() if name != "step"}


def job_of_trainer(scan_layers: bool, model: Path, folder: Path) -> dict[str, Any]:
    """The trainer is to restore a DeepSeek V4, whose collections beside `params` its other loader does not see."""
    layout = lazyload.MaxText(scan_layers=scan_layers)
    path = lazyload.convert(model, layout=layout, cache_dir=folder / "cache").path
    settings = settings_of("deepseek_v4_7") | {"scan_layers": scan_layers, "load_parameters_path": str(path)}
    dtypes = {name: leaf["dtype"] for name, leaf in tree_of(scan_layers).items()}
    return {"settings": settings, "dtypes": dtypes, "trained": str(folder / f"trained-{scan_layers}.json")}


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All that is to be tested in one process, as importing MaxText takes longer than all the rest."""
    folder = tmp_path_factory.mktemp("maxtext")
    models = {name: checkpoints.make(name, folder) for name in MODELS | OF_TREES}
    own = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    wanted = {*SAVED.values(), *(item.callspec.params.get("case") for item in own)}
    cases = [case for case in CASES if case in wanted]
    jobs = [job_of(case, models[case.model], folder) for case in cases]
    saved = {name: folder / f"saved-{name}" for name in SAVED}
    for job, case in zip(jobs, cases, strict=True):
        if SAVED.get(case.model) == case:
            job["saved"] = str(saved[case.model])
    scanned = jobs[0]["settings"]
    refused = {"settings": {**scanned, "scan_layers": False}, "refusals": str(folder / "refusals.json")}
    inside = {"settings": scanned, "internals": str(folder / "internals.json")}
    trainer = {scan: job_of_trainer(scan, models["deepseek_v4_7"], folder) for scan in (True, False)}
    trainer[True]["saved"] = str(saved["deepseek_v4_7"])
    (folder / "jobs.json").write_text(json.dumps([*jobs, *trainer.values(), refused, inside]))
    run(folder, HERE / "maxtext_logits.py", folder / "jobs.json")
    arrays = {case: dict(np.load(job["logits"])) for case, job in zip(cases, jobs, strict=True)}
    logits = {case: found["logits"] for case, found in arrays.items()}
    otherwise = {case: found["otherwise"].tolist() for case, found in arrays.items()}
    trained = {scan: json.loads(Path(job["trained"]).read_text()) for scan, job in trainer.items()}
    return Found(
        logits,
        otherwise,
        trained,
        {name: (models[name], path) for name, path in saved.items()},
        *(json.loads((folder / f"{name}.json").read_text()) for name in ("refusals", "internals")),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_maxtext_s_model_says_what_transformers_does(case: Case, found: Found) -> None:
    expected = np.load(LOGITS.get(case.model, golden(case.model)))["logits"]
    logits = found.logits[case][..., : expected.shape[-1]]
    # Everything is float32, and the only rounding of the conversion, Llama's and Gemma 2's query scale, is a power
    # of two for heads of 16: what is left is the order of sums.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_maxtext_s_trainer_restores_the_same(case: Case, found: Found) -> None:
    assert found.otherwise[case] == []


@pytest.mark.parametrize("scan_layers", [True, False])
def test_maxtext_s_trainer_restores_a_deepseek_v4(scan_layers: bool, found: Found) -> None:
    wanted = {name: {"shape": leaf["shape"], "sha256": leaf["sha256"]} for name, leaf in tree_of(scan_layers).items()}
    assert found.trained[scan_layers] == wanted


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "deepseek_v4_7"])
def test_what_maxtext_saves_is_exported(name: str, found: Found, tmp_path: Path) -> None:
    source, saved = found.saved[name]
    before = stored.tensors(source)
    after = stored.tensors(lazyload.export(saved, tmp_path / "out", like=source))
    assert len(after) > 10
    for key, values in after.items():
        # MaxText computes in float32 here, and Gemma 2's embeddings and norms are rounded by arithmetic.
        wide = before[key].astype(np.float32)
        np.testing.assert_allclose(values.astype(np.float32), wide, rtol=2**-8, atol=0, err_msg=key)


def test_maxtext_and_the_integration_refuse_layers_scanned_otherwise(found: Found) -> None:
    maxtext, ours = found.refusals
    assert maxtext.startswith("ValueError: Configuration mismatch: ")
    assert "specifies scan_layers=False, but the checkpoint was saved with scan_layers=True" in maxtext
    assert ours.startswith("ConfigError: ")
    assert "asks for layout maxtext-unscanned" in ours
    assert "with layout maxtext;" in ours


def test_a_config_s_fields_are_in_a_private_pydantic_model(found: Found) -> None:
    # What base.yml says of enable_dropout does not count as set, since somebody's own setting does not say it.
    assert found.internals == {
        "is_pydantic": True,
        "copied": "/elsewhere",
        "set": {"scan_layers": True, "enable_dropout": False},
    }
