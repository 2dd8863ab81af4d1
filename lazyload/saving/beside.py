"""What stands beside the weights of a checkpoint: `config.json`, and the files of tokenizer, generation and licence."""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

TOKENIZER = (
    "tokenizer*.json",
    "tokenizer.model*",
    "*.tiktoken",
    "*.spm",
    "spiece.model",
    "sentencepiece.*.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
)
"""What makes texts into tokens, by the names that transformers gives it."""

_BESIDE = (
    *TOKENIZER,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "LICEN[CS]E*",
    "NOTICE*",
    "USE_POLICY*",
)

_DTYPES = ("torch_dtype", "dtype")


class HasFiles(Protocol):
    """A checkpoint with further files."""

    def file_names(self) -> list[str]:
        """Their names."""

    def find(self, name: str) -> bytes | None:
        """The content of one; None where there is no such file."""


def files_beside(source: HasFiles) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files that go with a checkpoint, whatever its weights."""
    for name in matching(source, _BESIDE):
        if (content := source.find(name)) is not None:
            yield name, content


def matching(source: HasFiles, globs: tuple[str, ...]) -> list[str]:
    """The names of the files that one of some globs matches."""
    return sorted(name for name in source.file_names() if any(fnmatch.fnmatchcase(name, glob) for glob in globs))


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
