"""How a converted checkpoint is stored: the flags, and what a platform can read."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from lazyload.errors import StorageError

DEFAULT_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Storage:
    """How arrays are stored; None stands for the platform's default.

    Example:
        >>> Storage(ocdbt=False).resolve(environment={})
        Storage(ocdbt=False, zarr3=True, compression='none', chunk_bytes=16777216)

    Attributes:
        ocdbt: Whether arrays are kept in one key-value store (few large files) instead of a folder each. Default: True,
            under Pathways False.
        zarr3: Whether arrays are in zarr's third format instead of its second. Default: True, under Pathways False.
        compression: "none" (the default) or "zstd".
        chunk_bytes: The size that chunks have at most, before compression. Default: 16 MiB.
    """

    ocdbt: bool | None = None
    zarr3: bool | None = None
    compression: str | None = None
    chunk_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("ocdbt", "zarr3"):
            if not isinstance(getattr(self, name), bool | None):
                raise StorageError(f"Storage({name}={getattr(self, name)!r}): give True, False or None")
        if self.compression not in (None, "none", "zstd"):
            raise StorageError(f"Storage(compression={self.compression!r}): give 'none', 'zstd' or None")
        size = self.chunk_bytes
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 4096):
            raise StorageError(f"Storage(chunk_bytes={size!r}): give a number of bytes, 4096 or more")

    def resolve(
        self, environment: Mapping[str, str] | None = None, reads_every_format: Callable[[], bool] = lambda: False
    ) -> "Storage":
        """The same with the platform's defaults filled in.

        Args:
            environment: The environment variables; None for the process's.
            reads_every_format: Whether what reads under Pathways is known to read all formats; asked only there.

        Raises:
            StorageError: A flag is set that the platform cannot read.
        """
        pathways = is_pathways(os.environ if environment is None else environment)
        for name in ("ocdbt", "zarr3"):
            if pathways and getattr(self, name) and not reads_every_format():
                raise StorageError(
                    f"Storage({name}=True) under Pathways, whose persistence cannot read it (JAX's platforms name "
                    f"`proxy`, or USE_PATHWAYS is set): leave {name} out, or give {name}=False; or have Orbax read by "
                    "colocated Python: ocp.pathways.register_type_handlers(checkpointing_impl="
                    "ocp.pathways.CheckpointingImpl.COLOCATED_PYTHON)"
                )
        return Storage(
            ocdbt=not pathways if self.ocdbt is None else self.ocdbt,
            zarr3=not pathways if self.zarr3 is None else self.zarr3,
            compression=self.compression or "none",
            chunk_bytes=self.chunk_bytes or DEFAULT_CHUNK_BYTES,
        )

    def fields(self) -> dict[str, Any]:
        """The flags by name, for the cache's key."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_fields(cls, values: Any) -> "Storage":
        """The flags that `fields` gave, read back from its `values`.

        Raises:
            StorageError: A flag is missing, malformed, or none that this version knows.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or values.keys() != known or None in values.values():
            raise StorageError(f"not the storage flags {', '.join(sorted(known))}: {values!r}")
        return cls(**values)


def is_pathways(environment: Mapping[str, str]) -> bool:
    """Whether JAX runs under Pathways, by the environment or by what JAX has been told since."""
    # Whoever has told it has imported it.
    jax = sys.modules.get("jax")
    told = getattr(getattr(jax, "config", None), "jax_platforms", None) or ""
    platforms = f"{environment.get('JAX_PLATFORMS', '')},{told}".split(",")
    return "proxy" in map(str.strip, platforms) or environment.get("USE_PATHWAYS", "").lower() in ("1", "true", "yes")
