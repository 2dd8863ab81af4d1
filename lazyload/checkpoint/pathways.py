"""Pathways: who reads a checkpoint there, which is the handler that is registered with Orbax for JAX's arrays.

`ocp.pathways.register_type_handlers` registers one of two: persistence, which gives the workers a path, and colocated
Python, which runs Orbax where they are. Without either, this process reads all arrays and sends them. Persistence reads
neither OCDBT nor zarr's third format: `CloudPathwaysArrayHandler` (Orbax 0.12, and `pathwaysutils`, which speaks of its
bug 365549911) refuses the one and has `use_zarr3=False` where it reads. Colocated Python reads both.
"""

import enum
import logging
import os
import re
import sys
from pathlib import Path

from lazyload.bucket.path import Folder
from lazyload.errors import CacheError

logger = logging.getLogger("lazyload")

_OF_ONE_HOST = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs"}
"""Kinds of file systems that no other host sees, where they are mounted to be written to."""


class Reader(enum.Enum):
    """Who reads."""

    PERSISTENCE = enum.auto()
    COLOCATED_PYTHON = enum.auto()
    THIS_PROCESS = enum.auto()


def reader() -> Reader:
    """Who reads arrays, by the handler that is registered.

    That a handler has a dispatcher is in a private attribute, `_dispatcher`; seen in Orbax 0.11.30 to 0.12.8.
    """
    # Both take a while to import, and nothing needs them but Pathways.
    import jax
    import orbax.checkpoint as ocp

    handler = ocp.type_handlers.get_type_handler(jax.Array)
    if getattr(handler, "_dispatcher", None) is not None:
        return Reader.COLOCATED_PYTHON
    plain = (ocp.type_handlers.ArrayHandler, ocp.type_handlers.SingleReplicaArrayHandler)
    return Reader.THIS_PROCESS if type(handler) in plain else Reader.PERSISTENCE


def reads_every_format() -> bool:
    """Whether what is registered by now reads OCDBT and zarr's third format."""
    # Who has registered a handler has imported Orbax.
    return "orbax.checkpoint" in sys.modules and reader() is Reader.COLOCATED_PYTHON


def require_visible(root: Folder) -> None:
    """Makes sure that who reads can see a cache, as far as that is known; warns where all passes through this process.

    Raises:
        CacheError: It is on a disk of this host, and workers on others are to read it.
    """
    who = reader()
    if who is Reader.THIS_PROCESS:
        logger.warning(
            "no handler for Pathways is registered with Orbax: every array passes through this process; call "
            "ocp.pathways.register_type_handlers() before"
        )
        return
    kind = _kind_of_file_system(root) if isinstance(root, Path) else None
    if kind in _OF_ONE_HOST and (who is Reader.PERSISTENCE or _has_workers()):
        raise CacheError(
            f"{root} is on a disk of this host ({kind}), which the workers of Pathways, who read from it, do not see: "
            "give a cache_dir (LAZYLOAD_CACHE) that is mounted on all of them, such as a bucket's"
        )


def _has_workers() -> bool:
    """Whether devices belong to other hosts, rather than being simulated in this process."""
    from orbax.checkpoint import multihost

    return bool(multihost.is_pathways_backend())


def _kind_of_file_system(path: Path, mounts: str = "/proc/mounts") -> str | None:
    """The kind of the file system that a path is on, or would be; None where it is not known, or only read."""
    try:
        rows = [[_unescaped(word) for word in line.split()] for line in Path(mounts).read_text().splitlines()]
    except OSError:
        return None
    found = os.path.realpath(path)
    over = [row for row in rows if len(row) > 3 and os.path.commonpath([found, row[1]]) == row[1]]
    if not over:
        return None
    # What is mounted later hides what was mounted in the same place before.
    _, _, kind, options, *_ = max(over, key=lambda row: (len(row[1]), rows.index(row)))
    return kind if "rw" in options.split(",") else None


def _unescaped(word: str) -> str:
    """A word of `/proc/mounts`, which has octal numbers for spaces and the like (`fs/proc_namespace.c` of Linux)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)
