"""What stands beside the weights of a checkpoint and its `config.json`: tokenizer, settings of generation, licence."""

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

TOKENIZER = (
    "tokenizer*.json",
    "tokenizer.model*",
    "*.tiktoken",
    "*.spm",
    "spiece.model",
    "tekken.json",
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

_CODE = "*.py"
"""What `auto_map` of `config.json` may name: it is copied, where a checkpoint is, and never run."""


class HasFiles(Protocol):
    """A checkpoint with further files."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its `config.json`."""

    def file_names(self) -> list[str]:
        """Their names."""

    def find(self, name: str) -> bytes | None:
        """The content of one; None where there is no such file."""


def files_beside(source: HasFiles) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files that go with a checkpoint, whatever its weights."""
    for name in matching(source, (*_BESIDE, _CODE) if "auto_map" in source.config else _BESIDE):
        if (content := source.find(name)) is not None:
            yield name, content


def matching(source: HasFiles, globs: tuple[str, ...]) -> list[str]:
    """The names of the files that one of some globs matches."""
    return sorted(name for name in source.file_names() if any(fnmatch.fnmatchcase(name, glob) for glob in globs))
