"""The golden checkpoints: written anew from their specifications, byte for byte the same on every machine."""

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in (GOLDEN / "specs").glob("*.json"))


def make(name: str, folder: Path) -> Path:
    """Writes the checkpoint `name` below a folder, and returns its own folder."""
    return Path(_make_models().make(name, folder))


def tensors(name: str) -> dict[str, np.ndarray]:
    """The tensors of the checkpoint `name`, as stored."""
    spec = json.loads((GOLDEN / "specs" / f"{name}.json").read_text())
    fill = spec.get("fill")
    return {key: _make_models().values(key, dtype, shape, fill) for key, (dtype, shape) in spec["tensors"].items()}


def reference(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[batch, length]` and the logits `[batch, length, vocab]` that transformers computed for them."""
    with np.load(GOLDEN / "logits" / f"{name}.npz") as arrays:
        return arrays["tokens"], arrays["logits"]


@functools.cache
def _make_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_models", GOLDEN / "make_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
