"""What a shell completes: the models and keys that are in the cache, and the fields of filters.

A shell waits for the answer, so nothing but the cache's folders and one manifest a model is looked at.
"""

from collections.abc import Iterable
from pathlib import Path

from click import Context, Parameter

from lazyload.errors import LazyLoadError

SHELLS = ("bash", "zsh", "fish")


def show(context: Context, _parameter: Parameter, shell: str | None) -> None:
    """Prints what a shell needs to run so that it completes, and ends the command."""
    if shell is None:
        return
    # Nobody else needs it.
    from click.shell_completion import get_completion_class

    if found := get_completion_class(shell):
        print(found(context.command, {}, "lazyload", "_LAZYLOAD_COMPLETE").source())
        context.exit()


def targets(incomplete: str) -> list[str]:
    """Models; and keys, once one has been begun."""
    models, keys = _names()
    return _starting([*models, *(keys if incomplete else ())], incomplete)


def models(incomplete: str) -> list[str]:
    """Models."""
    return _starting(_names()[0], incomplete)


def filters(incomplete: str) -> list[str]:
    """The fields that filters can be about."""
    # Every command has this module, and few are being completed.
    from lazyload.cache.filters import FIELDS

    return _starting([f"{field}=" for field in FIELDS], incomplete)


def _names() -> tuple[list[str], list[str]]:
    # A command line that is still being typed gets no errors, and does not wait for a network.
    from lazyload.cache.cache import Cache

    try:
        cache = Cache()
        return cache.names() if isinstance(cache.root, Path) else ([], [])
    except LazyLoadError:
        return [], []


def _starting(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
