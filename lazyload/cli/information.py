"""`lazyload cache info` and `lazyload cache dir`: all that is known of entries, and where they are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lazyload.bucket.path import Folder
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry, read_entry
from lazyload.cache.manifest import UnreadableManifestError
from lazyload.cache.root import size
from lazyload.cache.superseded import Superseded
from lazyload.cli import options, text
from lazyload.cli.command import command
from lazyload.cli.listing import fields_of


@command("lazyload cache info 1a2b3c4d", "lazyload cache info Qwen/Qwen3-8B --json")
@options.targets
@options.as_json
@options.quiet
@options.verbose
@options.cache_dir
def info(targets: Sequence[str], as_json: bool, quiet: bool, verbose: bool, cache_dir: str | None) -> None:
    """Show all that is known of a checkpoint.

    With -v, its arrays and files, too; with -q, its path alone.
    """
    cache = Cache(cache_dir)
    superseded = cache.superseded()
    found = [_described(folder, superseded, verbose=verbose) for folder in cache.folders(*targets)]
    shown = sorted(found, key=lambda fields: (fields.get("model", ""), fields.get("created", "")))
    if as_json:
        print(json.dumps(shown, indent=1))
    elif quiet:
        for fields in shown:
            print(fields["path"])
    else:
        for number, fields in enumerate(shown):
            print("\n" * bool(number), end="")
            text.block(fields)


@command("lazyload cache dir", name="dir")
@options.as_json
@options.cache_dir
def directory(as_json: bool, cache_dir: str | None) -> None:
    """Print the cache's root.

    Of several, as LAZYLOAD_CACHE may name them, each on a line; the last one is written to.
    """
    cache = Cache(cache_dir)
    if as_json:
        print(json.dumps({"root": str(cache.root), "shared": [str(root) for root in cache.shared]}, indent=1))
        return
    for root in (*cache.shared, cache.root):
        print(root)


def _described(folder: Folder, superseded: Mapping[Folder, Superseded], *, verbose: bool) -> dict[str, Any]:
    """All that is known of what is in an entry's folder, as JSON values."""
    try:
        entry = read_entry(folder)
    except UnreadableManifestError as error:
        return {"key": folder.name, "path": str(folder), "size_on_disk": size(folder), "problem": str(error)}
    manifest = entry.manifest
    described = {
        **{
            name: value
            for name, value in fields_of(entry, superseded).items()
            if name not in ("seconds", "superseded_by")
        },
        "size_on_disk": size(folder),
        "arrays": len(manifest.arrays),
        "files": len(manifest.files),
        "conversion_seconds": manifest.seconds,
        "versions": manifest.versions,
        "writer": manifest.writer,
        "used_by": entry.user(),
        "superseded": _said(superseded.get(folder)),
        "problems": _lost(entry),
    }
    return described | ({"arrays": manifest.arrays, "files": manifest.files} if verbose else {})


def _said(found: Superseded | None) -> str | None:
    return None if found is None else f"by {found.by.key}: newer {' and '.join(found.changes)}"


def _lost(entry: Entry) -> list[str]:
    try:
        return entry.lost_files()
    except UnreadableManifestError as error:
        return [str(error)]
