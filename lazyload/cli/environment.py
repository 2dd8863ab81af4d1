"""The command that prints what a bug report should say of where lazyload runs."""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from lazyload import __version__
from lazyload.cache.cache import Cache
from lazyload.cache.removal import size
from lazyload.cli import options, text
from lazyload.cli.command import command
from lazyload.errors import LazyLoadError

_PROGRAMS = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "jax-rocm7-plugin",
    "flax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "ml_dtypes",
    "huggingface_hub",
    "hf-xet",
    "fsspec",
    "filelock",
    "click",
    "rich",
    "transformers",
    "maxtext",
)
_PREFIXES = (
    "LAZYLOAD_",
    "JAX_",
    "XLA_",
    "HF_",
    "HUGGING",
    "TPU_",
    "CUDA_VISIBLE",
    "LIBTPU_",
    "TENSORSTORE_",
    "XDG_CACHE",
)
_NAMES = ("USE_PATHWAYS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")

# In a process of its own: a device that another process holds may keep it waiting for ever.
_DEVICES = """
import collections, json, jax
kinds = collections.Counter(device.device_kind for device in jax.devices())
found = {"backend": jax.default_backend(), "devices": [f"{n} x {kind}" for kind, n in kinds.items()]}
print(json.dumps(found | {"processes": jax.process_count()}))
"""


@command("lazyload env", "lazyload env --json --timeout 0")
@options.as_json
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="How long JAX may take to find its devices; 0 for not asking.",
)
@options.cache_dir
def env(as_json: bool, timeout: float, cache_dir: str | None) -> None:
    """Print what a bug report should say.

    That is versions, devices, the cache and its file system, the hub, and environment variables; no secrets.
    """
    # No other command needs what this one imports.
    import platform

    found = {
        "versions": _versions(),
        "platform": {"system": platform.platform(), "python": sys.executable, "processors": os.cpu_count()},
        "devices": _devices(timeout),
        "cache": _cache(cache_dir),
        "hub": _hub(),
        "environment": _variables(),
    }
    if as_json:
        print(json.dumps(found, indent=1))
        return
    text.block(found)


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    versions = {"python": platform.python_version(), "lazyload": __version__}
    for program in _PROGRAMS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[program] = metadata.version(program)
    return versions


def _devices(timeout: float) -> dict[str, Any]:
    """What JAX finds; or why it finds nothing."""
    if not timeout:
        return {"error": "not asked"}
    import subprocess

    line = [sys.executable, "-c", _DEVICES]
    try:
        ended = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"JAX did not find its devices in {timeout:g} s; another process may hold them"}
    except OSError as error:
        return {"error": str(error)}
    with contextlib.suppress(ValueError, IndexError):
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return found
    said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
    return {"error": _harmless(said[-1])}


def _cache(cache_dir: str | None) -> dict[str, Any]:
    from lazyload.cache import filesystem

    try:
        cache = Cache(cache_dir)
        root = cache.root
        shared = [str(each) for each in cache.shared]
        if not isinstance(root, Path):
            entries, problems = cache.look()
            total = text.size(sum(entry.nbytes for entry in entries))
            counts = {"entries": len(entries), "unusable": len(problems), "size": total}
            return {"root": str(root), "shared": shared, **counts}
        existing = next(path for path in (root, *root.parents) if path.exists())
        found: dict[str, Any] = {
            "root": str(root),
            "shared": shared,
            "exists": root.is_dir(),
            "writable": os.access(existing, os.W_OK),
            "file system": filesystem.type_of(existing) or "unknown",
            "locks": {True: "yes", False: "no", None: "not tried: there is nothing to write to"}[
                filesystem.locks(root)
            ],
            "free": text.size(shutil.disk_usage(existing).free),
        }
        entries, problems = cache.look()
        return found | {"entries": len(entries), "unusable": len(problems), "size": text.size(size(root))}
    except (LazyLoadError, OSError) as error:
        return {"error": str(error)}


def _hub() -> dict[str, Any]:
    try:
        from huggingface_hub import constants, get_token

        from lazyload.cache import filesystem

        return {
            "endpoint": _harmless(constants.ENDPOINT),
            "cache": constants.HF_HUB_CACHE,
            "file system": filesystem.type_of(Path(constants.HF_HUB_CACHE)) or "unknown",
            "offline": constants.HF_HUB_OFFLINE,
            "token": "set" if get_token() else "not set",
        }
    # A bug report says what is wrong with it, whatever that is.
    except Exception as error:
        return {"error": _harmless(f"{type(error).__name__}: {error}")}


def _variables() -> dict[str, str]:
    """The variables that matter here; of secrets, only that they are set."""
    named = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES) or name in _NAMES}
    return {
        name: "set" if any(word in name for word in _SECRETS) and not name.endswith("_PATH") else _harmless(value)
        for name, value in named.items()
    }


def _harmless(said: str) -> str:
    """A text without the secrets of the URLs in it."""
    # NumPy comes with it, which other commands do not need.
    from lazyload.sources.secrets import without_secrets

    return without_secrets(said)
