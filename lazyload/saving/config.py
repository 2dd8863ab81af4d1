"""The `config.json` of a checkpoint that is written: that of its source, with what has changed."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_DTYPES = ("torch_dtype", "dtype")


def config_json(values: Mapping[str, Any], dtype: np.dtype, *, untied: bool = False) -> bytes:
    """A `config.json` for weights that are not packed.

    Args:
        values: What stands in that of the source.
        dtype: The dtype of most tensors.
        untied: Whether the output projection is none but the embedding by these values, and one of its own is written.

    Example:
        >>> print(config_json({"torch_dtype": "float16"}, np.dtype(np.float32)).decode())
        {
          "torch_dtype": "float32"
        }
        <BLANKLINE>
    """
    written = _with_dtype(values, dtype.name)
    if not any(field in part for part in (written, written.get("text_config") or {}) for field in _DTYPES):
        written["torch_dtype"] = dtype.name
    written.pop("quantization_config", None)
    part = written.get("text_config")
    if isinstance(part, dict):
        part.pop("quantization_config", None)
    if untied:
        written["tie_word_embeddings"] = False
        if isinstance(part, dict):
            part["tie_word_embeddings"] = False
    return (json.dumps(written, indent=2, ensure_ascii=False) + "\n").encode()


def _with_dtype(values: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A part of the file, and the part of the text model in it, where they name a dtype with another one."""
    changed = {name: dtype if name in _DTYPES and value is not None else value for name, value in values.items()}
    if isinstance(part := changed.get("text_config"), Mapping):
        changed["text_config"] = _with_dtype(part, dtype)
    return changed
