"""What people name of a cache: models, or the starts of keys; and what the folders of models are called."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence

from lazyload.bucket.path import Folder
from lazyload.errors import CacheError


def selected(
    targets: Sequence[str], folders: Sequence[Folder], models: Mapping[Folder, str], root: Folder
) -> list[Folder]:
    """The folders that targets name.

    Args:
        targets: Names of models, or the starts of keys (4 characters at least).
        folders: All folders of entries.
        models: What entries are of, by folder; those without a usable manifest go by the names of their folders.
        root: Where they are.

    Raises:
        CacheError: A target is not in the cache.
    """
    chosen: dict[Folder, None] = {}
    for target in targets:
        names = (target, os.path.abspath(os.path.expanduser(target)))
        stored = {folder_name(name) for name in names}
        matching = [
            folder
            for folder in folders
            if (models[folder] in names if folder in models else folder.parent.name in stored)
            or (len(target) >= 4 and folder.name.startswith(target))
        ]
        if not matching:
            meant = _meant(target, set(models.values()))
            raise CacheError(f"{target!r} is neither a model nor the start of a key in {root}; {meant}")
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def folder_name(model: str) -> str:
    """A model's name as the name of a folder: `models--Qwen--Qwen3-8B`; what is not safe is replaced, and hashed."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", model.replace("/", "--"))[:120]
    if safe.replace("--", "/") != model:
        safe += f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"models--{safe}"


def _meant(target: str, models: Collection[str]) -> str:
    """What may be meant by a target that is not there."""
    # Only mistakes need it.
    import difflib

    by_spelling = {spelling: model for model in models for spelling in (model.lower(), model.lower().split("/")[-1])}
    close = difflib.get_close_matches(target.lower(), by_spelling, n=3, cutoff=0.7)
    meant = dict.fromkeys(repr(by_spelling[spelling]) for spelling in close)
    return f"is {' or '.join(meant)} meant?" if meant else "`lazyload cache ls` shows what there is"
