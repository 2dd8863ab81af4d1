"""Storage flags: the platform's defaults, explicit flags, and what a platform cannot read."""

import itertools

import pytest

from lazyload.errors import StorageError
from lazyload.storage import Storage

ORDINARY = [
    {},
    {"JAX_PLATFORMS": "cpu"},
    {"JAX_PLATFORMS": "tpu,cpu"},
    {"USE_PATHWAYS": "0"},
    {"JAX_PLATFORMS": "proxyish"},
]
PATHWAYS = [{"JAX_PLATFORMS": "proxy,cpu"}, {"JAX_PLATFORMS": "proxy"}, {"USE_PATHWAYS": "1"}, {"USE_PATHWAYS": "true"}]


@pytest.mark.parametrize("environment", ORDINARY)
def test_defaults_of_ordinary_jax(environment: dict[str, str]) -> None:
    resolved = Storage().resolve(environment)
    assert (resolved.ocdbt, resolved.zarr3, resolved.compression) == (True, True, "none")


@pytest.mark.parametrize("environment", PATHWAYS)
def test_defaults_under_pathways(environment: dict[str, str]) -> None:
    resolved = Storage(compression="zstd").resolve(environment)
    assert (resolved.ocdbt, resolved.zarr3, resolved.compression) == (False, False, "zstd")


@pytest.mark.parametrize("environment", ORDINARY)
@pytest.mark.parametrize("flags", list(itertools.product((True, False), repeat=2)))
def test_explicit_flags_win(environment: dict[str, str], flags: tuple[bool, bool]) -> None:
    resolved = Storage(*flags).resolve(environment)
    assert (resolved.ocdbt, resolved.zarr3) == flags


@pytest.mark.parametrize("environment", PATHWAYS)
@pytest.mark.parametrize("flag", ["ocdbt", "zarr3"])
def test_what_pathways_cannot_read_is_refused_by_name(environment: dict[str, str], flag: str) -> None:
    with pytest.raises(StorageError, match=rf"Storage\({flag}=True\) under Pathways.*give {flag}=False"):
        Storage(**{flag: True}).resolve(environment)
    assert not getattr(Storage(**{flag: False}).resolve(environment), flag)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ocdbt": 1},
        {"zarr3": "yes"},
        {"compression": "lz77"},
        {"compression": 3},
        {"chunk_bytes": 1},
        {"chunk_bytes": 1e6},
        {"chunk_bytes": True},
    ],
)
def test_malformed_flags_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(StorageError, match=next(iter(arguments))):
        Storage(**arguments)
