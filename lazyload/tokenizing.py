"""`lazyload.tokenizer`: texts to tokens and back, from where a model comes from.

The tokenizer itself is transformers' or tokenizers', whichever is installed; its files are found as a model's are, and
so a revision, a token, a folder and what is in the hub's cache count for it, too.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lazyload.errors import ArgumentError, MissingPackageError, SourceNotFoundError
from lazyload.options import explains_arguments
from lazyload.sources import ModelReference, open_source
from lazyload.sources.beside import TOKENIZER, matching
from lazyload.sources.files import CONFIG, parse_json

_GENERATION = "generation_config.json"


@dataclass(frozen=True, repr=False)
class Tokenizer:
    """The tokenizer of a model.

    Attributes:
        inner: The tokenizer of transformers, or of tokenizers.
        eos: The tokens that end a sequence, as the model's files say.
        pad: The token that shorter prompts are padded with.
    """

    inner: Any
    eos: tuple[int, ...]
    pad: int

    def __repr__(self) -> str:
        return f"Tokenizer({type(self.inner).__name__}, eos={self.eos}, pad={self.pad})"

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that the model wants at its start.

        Raises:
            ArgumentError: It is no text.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"text={text!r:.100}: give a text")
        encoded = self.inner.encode(text)
        # That of tokenizers says more than the tokens.
        return list(getattr(encoded, "ids", encoded))

    def decode(self, tokens: Any) -> str:
        """The text of some tokens, `[length]`, without those that are no text."""
        return str(self.inner.decode([int(token) for token in np.asarray(tokens)], skip_special_tokens=True))

    def batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of several texts, padded on the left, for `lazyload.generate`.

        Args:
            texts: The texts.

        Returns:
            Tokens and attention mask, both int32 `[batch, length]`.

        Raises:
            ArgumentError: They are no texts.
        """
        if isinstance(texts, str) or not texts:
            raise ArgumentError("texts: give a list of one or more")
        rows = [self.encode(text) for text in texts]
        length = max(map(len, rows))
        tokens = np.array([[self.pad] * (length - len(row)) + row for row in rows], np.int32)
        mask = np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows], np.int32)
        return tokens, mask

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation, up to where the model is to answer.

        Args:
            messages: What has been said: `[{"role": "user", "content": "Hello"}]`.

        Raises:
            MissingPackageError: transformers is not installed, which knows how to write conversations.
            SourceNotFoundError: The model has no template for them.
            ArgumentError: The model's template refuses them.
        """
        if not hasattr(self.inner, "apply_chat_template"):
            raise MissingPackageError("conversations are written by transformers: pip install transformers jinja2")
        if not self.inner.chat_template:
            raise SourceNotFoundError("the model has no chat template; encode a text")
        # Its template may write the tokens of the start itself, and so they are not added once more.
        try:
            text = self.inner.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except ImportError as error:
            raise MissingPackageError(f"conversations need more than transformers: {error}") from error
        # A template raises what it likes, and what Jinja raises where it does not fit.
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ArgumentError(f"messages: the model's chat template refuses them: {what}") from error
        return list(self.inner.encode(text, add_special_tokens=False))


@explains_arguments
def tokenizer(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Tokenizer:
    """The tokenizer of a model; needs transformers or tokenizers, and prefers the first.

    Args:
        model: A hub id, a folder or a URL, as for `from_pretrained`.
        revision: A branch, tag or commit of a hub model.
        subfolder: Where in the repository or folder the model lies.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`: neither package is installed, or the model has no
            tokenizer that they read.

    Example:
        >>> lazyload.tokenizer("Qwen/Qwen3-0.6B").encode("Hello")  # doctest: +SKIP
        [9707]
    """
    readers = [name for name in ("transformers", "tokenizers") if importlib.util.find_spec(name)]
    if not readers:
        raise MissingPackageError("a tokenizer needs tokenizers, or transformers: pip install tokenizers")
    source = open_source(ModelReference(model, revision, token, local_files_only, subfolder or ""))
    try:
        names = matching(source, TOKENIZER)
        if not names:
            raise SourceNotFoundError(f"{source.name} has no tokenizer; files such as tokenizer.json are looked for")
        files = {name: content for name in names if (content := source.find(name)) is not None}
        content = source.find(_GENERATION)
        generation = {} if content is None else parse_json(f"{source.name}: {_GENERATION}", content)
    finally:
        source.close()
    inner = _read(source.name, {**files, CONFIG: json.dumps(source.config).encode()}, readers[0])
    settings = {**(source.config.get("text_config") or {}), **source.config, **generation}
    eos = _tokens(settings.get("eos_token_id"))
    return Tokenizer(inner, eos, next(iter((*_tokens(settings.get("pad_token_id")), *eos)), 0))


def _read(name: str, files: Mapping[str, bytes], reader: str) -> Any:
    """The tokenizer that some files describe."""
    if reader == "tokenizers" and "tokenizer.json" not in files:
        raise MissingPackageError(f"{name} has no tokenizer.json, and its other files need transformers")
    with tempfile.TemporaryDirectory(prefix="lazyload-tokenizer-") as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        try:
            if reader == "tokenizers":
                import tokenizers

                return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
            import transformers

            return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # Both libraries raise whatever is at hand where a file is not what they expect.
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise SourceNotFoundError(f"{name}: its tokenizer cannot be read by {reader}: {what}") from error


def _tokens(value: Any) -> tuple[int, ...]:
    """The token, or tokens, that a field names."""
    several = value if isinstance(value, list) else [value]
    return tuple(token for token in several if isinstance(token, int) and not isinstance(token, bool))
