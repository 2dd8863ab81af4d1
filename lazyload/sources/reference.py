"""Which checkpoint is meant, and how it may be had: what a call says of its model, as one value."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelReference:
    """A checkpoint of the hub, in a folder, or behind a URL.

    Example:
        >>> ModelReference("Qwen/Qwen3-8B", token="hf_secret")
        ModelReference(model='Qwen/Qwen3-8B', revision=None, local_files_only=False)

    Attributes:
        model: A hub id, a local folder, or an fsspec URL.
        revision: A branch, tag or commit of a hub model; None for `main`.
        token: A hub token; None for the one that is logged in, False for none. Never shown.
        local_files_only: Whether the hub must not be asked.
    """

    model: str | os.PathLike[str]
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False

    @property
    def name(self) -> str:
        """The model as text."""
        return os.fspath(self.model)

    @property
    def is_hub_id(self) -> bool:
        """Whether the model is one of the hub: neither a URL, nor what can only be a path, nor a file that is here."""
        is_path = not isinstance(self.model, str) or _is_path(self.name)
        return not is_path and "://" not in self.name and not self.folder.exists()

    @property
    def folder(self) -> Path:
        """The folder that the model is, where it is one; `~` stands for the home, and `file://` for nothing."""
        return Path(os.path.abspath(Path(self.name.split("://", 1)[-1]).expanduser()))

    @property
    def commit(self) -> str | None:
        """The revision, where it is a commit already."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None


def _is_path(text: str) -> bool:
    """Whether a text can only be a path: absolute, relative to here or home, or too deep for a hub id."""
    return text.startswith(("/", "./", "../", "~", ".\\")) or text in (".", "..") or text.count("/") > 1
