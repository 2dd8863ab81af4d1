"""Looking at a model without loading it: what a load would do, and what its `config.json` means."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Unpack, overload

from lazyload.arguments import ModelArguments
from lazyload.checkpoint.reads import Kind
from lazyload.checkpoint.records import new_record
from lazyload.errors import ArgumentError
from lazyload.families.family import Family
from lazyload.options import ConfigOptions, DTypeOption, LayoutOption, StorageOption, explains_arguments
from lazyload.progress import show_progress
from lazyload.request import Request, open_request, read_config
from lazyload.results import Parameter, Plan

if TYPE_CHECKING:
    import jax

    from lazyload.architecture import DecoderConfig
    from lazyload.sharding import Rules


@explains_arguments
def plan(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    mesh: "jax.sharding.Mesh | jax.sharding.AbstractMesh | None" = None,
    rules: "Rules | None" = None,
    dtype: DTypeOption = "bfloat16",
    layout: LayoutOption = "nnx",
    layers: range | None = None,
    storage: StorageOption = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Plan:
    """Says what a load would do. Nothing is written.

    Nothing is read but `config.json` and the headers of the weights; embedding and output projection where both are
    stored although `config.json` ties them, until they differ, or samples of both where they are far away; and the
    weights of a folder that has never been loaded, where the cache has an entry that may be made of the same.

    Args:
        model: See `from_pretrained`, here and below.
        revision: A branch, tag or commit.
        subfolder: Where in the repository or folder the checkpoint lies.
        variant: Which files of weights.
        mesh: A mesh to ask about: what of the model each of its devices would hold. It needs no devices
            (`jax.sharding.AbstractMesh`). None for none; the plan then needs no JAX.
        rules: The rules for that mesh.
        dtype: The dtype of floating-point parameters, or dtypes by pattern.
        layout: The layout of the converted checkpoint.
        layers: Which layers of the decoder; None for all.
        storage: How it would be stored.
        cache_dir: The cache's root.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        strict: Whether every tensor without use is an error.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.
        adapter: A LoRA adapter in PEFT's format.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`: whatever keeps the model from being loaded, or the mesh
            from being used.

    Example:
        >>> print(lazyload.plan("Qwen/Qwen3-8B").nbytes)  # doctest: +SKIP
    """
    _require_rules_of_a_mesh(mesh, rules)
    arguments = ModelArguments(
        model=model,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        dtype=dtype,
        layout=layout,
        layers=layers,
        storage=storage,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        strict=strict,
        config=config,
        family=family,
        adapter=adapter,
    )
    return planned(arguments, mesh, rules)


def planned(
    arguments: ModelArguments,
    mesh: "jax.sharding.Mesh | jax.sharding.AbstractMesh | None" = None,
    rules: "Rules | None" = None,
) -> Plan:
    """What a load of some arguments would do; see `plan`."""
    with _opened(arguments) as request:
        conversion = request.settled().conversion()
        entry = request.cache.find(request.key, request.forms) if request.may_be_cached else None
        reasons = () if entry else tuple(request.reasons())

    def key() -> str:
        with _opened(arguments) as request:
            return request.key.digest

    parameters = {
        path: Parameter(lazy.shape, lazy.dtype.name, conversion.axes[path], lazy.nbytes, lazy.sources)
        for path, lazy in conversion.tensors.items()
    }
    made = Plan(
        model=request.source.name,
        family=request.family.name,
        layout=request.target.layout.name,
        parameters=parameters,
        skipped=conversion.skipped,
        other_layers=conversion.other_layers,
        unread=conversion.unread,
        nbytes=sum(parameter.nbytes for parameter in parameters.values()),
        hit=entry is not None,
        reasons=reasons,
        mesh=mesh,
        rules=rules,
        _key=key,
        _kinds={
            path: Kind.of(new_record(lazy.shape, lazy.dtype, request.storage, lazy.split_order))
            for path, lazy in conversion.tensors.items()
        },
    )
    # Rules that do not fit the model are refused here.
    _ = made.shardings
    return made


@contextlib.contextmanager
def _opened(arguments: ModelArguments) -> Iterator[Request]:
    """The request of a call that only asks."""
    with (
        show_progress(None, arguments.reference.name) as shown,
        open_request(arguments, shown, dry_run=True) as request,
    ):
        yield request


def _require_rules_of_a_mesh(mesh: object, rules: object) -> None:
    """Makes sure that a mesh can be asked about, and that rules are for one."""
    if mesh is not None:
        # JAX takes a while to import, and without a mesh a plan does not need it.
        from lazyload.sharding import require_mesh

        require_mesh(mesh)
    elif rules is not None:
        raise ArgumentError("rules= say how a mesh is used: give mesh=, too, such as jax.sharding.AbstractMesh")


@overload
def config(
    model: str | os.PathLike[str], *, family: None = None, **options: Unpack[ConfigOptions]
) -> "DecoderConfig": ...
@overload
def config(model: str | os.PathLike[str], *, family: Family, **options: Unpack[ConfigOptions]) -> Any: ...
@explains_arguments
def config(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    layers: range | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> Any:
    """Says what a model's `config.json` means.

    Nothing else of the model is read, and nothing is written but the hub's own copy of the file; where the cache has an
    entry of a hub model, the hub may be out of reach. Whether a model that `config.json` calls tied has an output
    projection of its own all the same is seen in its weights: then `tied` is False in the config of the loaded model.

    Args:
        model: A hub id, a local folder, or a URL; see `from_pretrained`, here and below.
        revision: A branch, tag or commit.
        subfolder: Where in the repository or folder the checkpoint lies.
        variant: Which files of weights, by whose entries in the cache the hub need not be asked.
        layers: Which layers of the decoder; None for all.
        cache_dir: The cache's root.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.

    Returns:
        A `DecoderConfig`, of which `lazyload.Decoder(config, rngs=None)` makes a module without values; of an
        architecture of your own, what its `Family` reads.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`.

    Example:
        >>> lazyload.config("Qwen/Qwen3-8B").num_layers  # doctest: +SKIP
        36
    """
    arguments = ModelArguments(
        model=model,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        layers=layers,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        config=config,
        family=family,
    )
    return read_config(arguments)
