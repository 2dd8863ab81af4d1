"""Every error a user can meet.

Each derives from `LazyLoadError`, so that one `except` catches them all, and from the built-in exception that fits,
so that code which knows nothing of this library handles it too. Messages say what is wrong, where, and what to do.
"""

from collections.abc import Sequence

_MOST_CHARACTERS = 8000


class LazyLoadError(Exception):
    """The base of every error raised on purpose by lazyload."""

    def __str__(self) -> str:
        text = super().__str__()
        # What is quoted may come from a file of any size.
        return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}... ({len(text)} characters)"


class SourceNotFoundError(LazyLoadError, FileNotFoundError):
    """The model, revision or one of its files does not exist or cannot be reached (also: offline and not cached)."""


class AccessDeniedError(LazyLoadError, PermissionError):
    """The hub or the file system refuses access: a gated or private repository, a missing or wrong token."""


class CorruptSourceError(LazyLoadError, ValueError):
    """A file of the checkpoint is truncated, malformed, or contradicts its own index."""


class UnsupportedFormatError(LazyLoadError, ValueError):
    """The weights are stored in a form that is not read: pickles, an unknown dtype, a quantisation scheme."""


class ConfigError(LazyLoadError, ValueError):
    """`config.json` lacks a needed field, or switches on something that is not implemented."""


class UnknownArchitectureError(ConfigError):
    """No family is known for the model type in `config.json`."""


class TensorMismatchError(LazyLoadError, ValueError):
    """Tensors of the checkpoint are missing, unexpected or of the wrong shape. Lists every problem at once.

    Attributes:
        headline: What is wrong in all.
        problems: One sentence a problem.
    """

    headline: str
    problems: tuple[str, ...]

    def __init__(self, headline: str, problems: Sequence[str]):
        self.headline = headline
        self.problems = tuple(problems)
        shown = [f"  - {problem}" for problem in self.problems[:20]]
        if len(self.problems) > 20:
            shown.append(f"  ... and {len(self.problems) - 20} more")
        super().__init__("\n".join([headline, *shown]))


class LayoutError(LazyLoadError, ValueError):
    """A layout's table is malformed, or two layouts do not fit each other."""


class StorageError(LazyLoadError, ValueError):
    """The storage flags contradict each other or the platform."""


class ShardingError(LazyLoadError, ValueError):
    """The mesh or the sharding rules cannot be used."""


class PeerError(LazyLoadError, RuntimeError):
    """Another process of the mesh is missing, was called otherwise, or has raised an error that is none of these."""


class InputError(LazyLoadError, ValueError):
    """What a model is called with does not fit it, or its key-value cache."""


class ArgumentError(LazyLoadError, TypeError):
    """A call has an argument that there is not, or one of a kind that is not taken."""


class IntegrationError(LazyLoadError, RuntimeError):
    """A trainer cannot be made to load through this library: it is not installed, or not of a version that is known."""


class NoReportError(LazyLoadError, LookupError):
    """There is no record of a load, because there has been none."""


class MissingPackageError(LazyLoadError, ImportError):
    """What is asked for needs a package that is not installed."""


class CacheError(LazyLoadError, OSError):
    """The cache cannot be used: not writable, disk full, not ours."""


class CacheAccessError(CacheError, PermissionError):
    """The bucket that the cache is in refuses access: no credentials, or none that may read or write there."""


class EntryRemovedError(CacheError):
    """A converted checkpoint has been removed, or converted again, since it was found."""


class SaveError(LazyLoadError, OSError):
    """A checkpoint cannot be written: its folder is not empty, the disk is full, or it lies elsewhere."""


class LockTimeoutError(CacheError, TimeoutError):
    """Another process has been converting the same checkpoint for longer than the limit."""
