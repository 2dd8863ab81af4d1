"""Which checkpoint is meant, and how it may be had: what a call says of its model, as one value."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lazyload.errors import ArgumentError, SourceNotFoundError
from lazyload.sources.secrets import without_secrets

_COMMIT = re.compile("[0-9a-f]{40}")
_VARIANT = re.compile(r"[\w-]*")


@dataclass(frozen=True, repr=False)
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
        subfolder: Where in the repository or folder the checkpoint lies, with slashes; empty for its top.
        variant: The name in the middle of the names of files of weights; empty for none.
        on_hub: Whether the model is one of the hub, whatever lies here under its name.
    """

    model: str | os.PathLike[str]
    revision: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    subfolder: str = ""
    variant: str = ""
    on_hub: bool = False

    def __repr__(self) -> str:
        shown = {"model": self.name, "revision": self.revision, "local_files_only": self.local_files_only, **self.place}
        return f"ModelReference({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | os.PathLike) or not isinstance(os.fspath(self.model), str) or not self.name:
            raise ArgumentError(f"model={self.model!r:.200}: give a hub id, a folder or a URL")
        if not isinstance(self.revision, str | None):
            raise ArgumentError(f"revision={self.revision!r:.200}: give a branch, tag or commit")
        if not isinstance(self.token, str | bool | None):
            raise ArgumentError("token=: give a text, None for the one that is logged in, or False for none")
        if isinstance(self.token, str):
            # What is read from a file ends in a newline, which no header may hold.
            object.__setattr__(self, "token", self.token.strip() or None)
            if not re.fullmatch(r"[!-~]*", self.token or ""):
                raise ArgumentError("token=: it holds spaces or letters that no token has")
        if not isinstance(self.subfolder, str) or not _is_inside(self.subfolder):
            raise SourceNotFoundError(f"subfolder={self.subfolder!r}: give a folder inside the model's, such as 'text'")
        if not isinstance(self.variant, str) or not _VARIANT.fullmatch(self.variant):
            raise SourceNotFoundError(f"variant={self.variant!r}: give a name such as 'fp16'")

    @property
    def name(self) -> str:
        """The model as text, without the secrets of a URL."""
        return without_secrets(self.address)

    @property
    def address(self) -> str:
        """The model as it was given."""
        return os.fspath(self.model)

    @property
    def place(self) -> dict[str, str]:
        """Which of the model's files are meant, where not the usual ones at its top; for keys and manifests."""
        named = {"subfolder": self.subfolder, "variant": self.variant}
        return {name: value for name, value in named.items() if value}

    @property
    def is_hub_id(self) -> bool:
        """Whether the model is one of the hub: neither a URL, nor what can only be a path, nor a file that is here."""
        if self.on_hub:
            return True
        is_path = not isinstance(self.model, str) or _is_path(self.name)
        # Not `Path.exists`, which raises where a name is too long for a file.
        return not is_path and "://" not in self.name and not os.path.exists(self.folder)

    @property
    def folder(self) -> Path:
        """The folder that the model is, where it is one; `~` stands for the home, and `file://` for nothing."""
        return Path(os.path.abspath(os.path.expanduser(self.address.split("://", 1)[-1])))

    @property
    def commit(self) -> str | None:
        """The revision, where it is a commit already."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None


def _is_inside(subfolder: str) -> bool:
    path = PurePosixPath(subfolder)
    odd = any(sign in subfolder for sign in "\\:\0")
    return not odd and not path.is_absolute() and ".." not in path.parts and str(path) in (subfolder, ".")


def _is_path(text: str) -> bool:
    """Whether a text can only be a path: absolute, relative to here or home, or too deep for a hub id."""
    return text.startswith(("/", "./", "../", "~", ".\\")) or text in (".", "..") or text.count("/") > 1
