"""Tunix's own modules: made without values for a model, to be filled with its arrays.

Tunix is imported once a module is asked for. What is private to it was read in Tunix 0.1.7: the fields of each
`ModelConfig`, and what its classes make of them (`classes`).
"""

import dataclasses
import importlib
import importlib.metadata
import logging
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lazyload.architecture import DecoderConfig
from lazyload.errors import ConfigError, LayoutError, ShardingError
from lazyload.formats.tunix import CLASSES, Tunix, module_of
from lazyload.models.tunix.classes import computed, fields, further_differences
from lazyload.models.tunix.differences import differences

logger: logging.Logger = logging.getLogger("lazyload")

KNOWN_VERSIONS = ("0.1.7",)
"""The releases of Tunix whose inside was looked at."""

_SIZES = ("num_layers", "vocab_size", "embed_dim", "hidden_dim", "num_heads", "head_dim", "num_kv_heads")
"""What a whole `ModelConfig` must have as `config.json` has it.

The rows of Gemma's embedding, which Tunix itself counts in the files, are corrected as everything else is.
"""


def abstract_module(layout: Tunix, family: str, config: DecoderConfig, mesh: Mesh) -> nnx.Module:
    """Tunix's module for a model: a `jax.ShapeDtypeStruct` in place of every parameter, which says where it goes.

    What the class computes otherwise than `config.json` means is logged as a warning.

    Args:
        layout: What the call asks for.
        family: The name of the model's family.
        config: What its `config.json` means.
        mesh: Where the parameters go.

    Raises:
        ConfigError: The `ModelConfig` given has other sizes.
        LayoutError: Tunix is not installed, has no class for the family, or has another inside than is known; or the
            config given is for another class.
        ShardingError: Tunix's class splits nothing over an axis of the mesh.
    """
    name = module_of(family)
    tunix = _module(name)
    _tell_version()
    given = _config(layout, name, config, tunix)
    _tell_differences(name, config, given, tunix)
    _require_axes(given, mesh, CLASSES[name])
    given = _on_mesh(given, mesh)
    kind = getattr(tunix, CLASSES[name])
    try:
        module: nnx.Module = nnx.eval_shape(lambda: kind(given, rngs=nnx.Rngs(params=0)))
    except Exception as error:
        raise _unknown_inside(f"{CLASSES[name]} cannot be made: {type(error).__name__}: {error}") from error
    _place(module, mesh)
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"tunix.models.{name}.model")
    except ImportError as error:
        raise LayoutError(
            f"layout=lazyload.Tunix() needs Tunix (pip install google-tunix), of which tunix.models.{name}.model could "
            f"not be imported: {error}"
        ) from error


def _tell_version() -> None:
    """Logs that nobody has looked into this release of Tunix."""
    if (version := installed_version()) not in KNOWN_VERSIONS:
        logger.warning(
            "Tunix %s is none of the versions known here, %s: what its classes compute has not been compared",
            version,
            ", ".join(KNOWN_VERSIONS),
        )


def installed_version() -> str:
    """The version of Tunix that is installed; `unknown` where nothing says it."""
    try:
        return importlib.metadata.version("google-tunix")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _unknown_inside(what: str) -> LayoutError:
    known = ", ".join(KNOWN_VERSIONS)
    return LayoutError(f"{what}; this is Tunix {installed_version()}, and known are {known}: install one of these")


def _config(layout: Tunix, name: str, config: DecoderConfig, tunix: ModuleType) -> Any:
    """The class's config: what `config.json` means, and beside it what the call says.

    Raises:
        ConfigError: The config given has other sizes.
        LayoutError: It is one of another class, or Tunix has other fields than are known.
    """
    meant, known = fields(name, config, tunix), {field.name for field in dataclasses.fields(tunix.ModelConfig)}
    if unknown := meant.keys() - known:
        raise _unknown_inside(f"Tunix's {CLASSES[name]} has no field {', '.join(sorted(unknown))} in its ModelConfig")
    if layout.config is None or isinstance(layout.config, Mapping):
        return _from_fields(layout.config or {}, meant, known, tunix, CLASSES[name])
    if not isinstance(layout.config, tunix.ModelConfig):
        kind = type(layout.config)
        raise LayoutError(
            f"lazyload.Tunix({kind.__module__}.{kind.__qualname__}): this model is a {CLASSES[name]} of Tunix; give a "
            f"{tunix.ModelConfig.__module__}.ModelConfig, or fields of it by name"
        )
    return _corrected(layout.config, meant, name, tunix)


def _from_fields(
    given: Mapping[str, Any], meant: Mapping[str, Any], known: set[str], tunix: ModuleType, kind: str
) -> Any:
    if decided := given.keys() & meant.keys():
        raise LayoutError(f"lazyload.Tunix: config.json says what {', '.join(sorted(decided))} is; leave it out")
    if unknown := given.keys() - known:
        free = ", ".join(sorted(known - meant.keys()))
        raise LayoutError(f"lazyload.Tunix: {kind} has no field {', '.join(sorted(unknown))}; it has {free}")
    return tunix.ModelConfig(**meant, **given)


def _corrected(given: Any, meant: Mapping[str, Any], name: str, tunix: ModuleType) -> Any:
    """A whole config, with what `config.json` means where that is another thing."""
    kind = CLASSES[name]
    if getattr(given, "vision_config", None) is not None:
        raise LayoutError("lazyload.Tunix: only text models are loaded; give a config with vision_config=None")
    different = {name: value for name, value in meant.items() if not _equal(getattr(given, name), value)}
    sizes = [
        f"{name} is {getattr(given, name)}, config.json means {meant[name]}" for name in _SIZES if name in different
    ]
    if sizes:
        raise ConfigError(
            f"the config of Tunix's {kind} and config.json are not of one model:"
            + "".join(f"\n  - {problem}" for problem in sizes)
        )
    corrected = dataclasses.replace(given, **different)
    # The same can be said in several ways, such as a pattern of layers.
    if different and _computed(name, given, tunix) != _computed(name, corrected, tunix):
        said = "; ".join(f"{name} is {value}, not {getattr(given, name)}" for name, value in different.items())
        logger.warning("Tunix's %s: taken from config.json where its config says something else: %s", kind, said)
    return corrected


def _computed(name: str, given: Any, tunix: ModuleType) -> DecoderConfig:
    """The decoder that a class is with a config.

    Raises:
        LayoutError: It is none that this library knows.
    """
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    try:
        return computed(name, values, tunix)
    except ConfigError as error:
        raise LayoutError(f"Tunix's {CLASSES[name]} cannot be this model: {error}") from None


def _equal(given: Any, meant: Any) -> bool:
    return bool(tuple(given) == meant if isinstance(meant, tuple) and given is not None else given == meant)


def _tell_differences(name: str, config: DecoderConfig, given: Any, tunix: ModuleType) -> None:
    """Logs what the class computes otherwise.

    Raises:
        LayoutError: The class cannot be this model at all.
    """
    kind = f"Tunix's {CLASSES[name]}"
    found = differences(config, _computed(name, given, tunix), kind)
    if found := found + further_differences(name, config):
        logger.warning(
            "%s computes something else than config.json means, so that its logits are wrong: %s. "
            "Load layout='nnx', which Tunix's trainers take, too",
            kind,
            "; ".join(found),
        )


def _require_axes(given: Any, mesh: Mesh, kind: str) -> None:
    """Makes sure that the class splits something over every axis of the mesh.

    Raises:
        ShardingError: It does not know one.
    """
    named = {axis for axes in _tuples(given.shd_config).values() for axis in _flat(axes)}
    if unknown := [axis for axis, size in mesh.shape.items() if size > 1 and axis not in named]:
        raise ShardingError(
            f"Tunix's {kind} splits nothing over the mesh's axis {', '.join(unknown)}; its shd_config knows "
            f"{', '.join(sorted(named))}: call the axes of the mesh so, or give lazyload.Tunix({{'shd_config': ...}})"
        )


def _on_mesh(given: Any, mesh: Mesh) -> Any:
    """The config with a `shd_config` that names axes of the mesh alone: what it has not splits nothing."""
    known = {name: tuple(_there(axes, mesh) for axes in every) for name, every in _tuples(given.shd_config).items()}
    return dataclasses.replace(given, shd_config=dataclasses.replace(given.shd_config, **known))


def _tuples(shd_config: Any) -> dict[str, tuple[Any, ...]]:
    """How a `shd_config` splits each kind of array; Gemma 3's also holds the one of another model."""
    values = {field.name: getattr(shd_config, field.name) for field in dataclasses.fields(shd_config)}
    return {name: value for name, value in values.items() if isinstance(value, tuple)}


def _flat(axes: tuple[Any, ...]) -> list[str]:
    return [axis for each in axes if each for axis in ([each] if isinstance(each, str) else each)]


def _there(axes: Any, mesh: Mesh) -> Any:
    """The axes of one dimension that a mesh has."""
    found = tuple(axis for axis in _flat((axes,)) if axis in mesh.shape)
    return found[0] if len(found) == 1 else found or None


def _place(module: nnx.Module, mesh: Mesh) -> None:
    """Says of every parameter where it goes: as its class has it, as far as the mesh divides it."""
    specs = dict(nnx.to_flat_state(nnx.get_partition_spec(nnx.state(module, nnx.Param))))
    for path, parameter in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        shape, spec = parameter.get_value(), specs[path].get_value()
        names = [_there(axes, mesh) for axes in (*spec, *(None,) * (len(shape.shape) - len(spec)))]
        names = [
            axes if axes and size % math.prod(mesh.shape[axis] for axis in _flat((axes,))) == 0 else None
            for axes, size in zip(names, shape.shape, strict=True)
        ]
        parameter.set_value(
            jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, PartitionSpec(*names)))
        )
