"""The values of the command's options: what is typed, as the arguments that Python takes."""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lazyload.config_json.overrides import overridden
from lazyload.errors import ArgumentError

Amount = TypeVar("Amount", int, float)

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh

_WORD = re.compile(r"[A-Za-z_][\w./-]*")
_NOT_JSON = {"None": "null", "True": "true", "False": "false", "NaN": "null"}


def layout(name: str, vocab_size: int | None) -> Any:
    """The layout that `--layout` and `--vocab-size` mean."""
    if name.startswith("maxtext"):
        if name not in ("maxtext", "maxtext-unscanned"):
            known = "nnx, nnx-scanned, maxtext, maxtext-unscanned and tunix"
            raise click.BadParameter(f"{name!r}: there are {known}", param_hint="--layout")
        # NumPy comes with it, which commands that only look do not need.
        from lazyload.formats.maxtext import MaxText

        return MaxText(scan_layers=name == "maxtext", vocab_size=vocab_size)
    if vocab_size is not None:
        raise click.BadParameter("is for the maxtext layouts", param_hint="--vocab-size")
    if name == "tunix":
        from lazyload.formats.tunix import Tunix

        return Tunix()
    return name


def config_fields(typed: Sequence[str]) -> Mapping[str, Any] | None:
    """The fields that `--config` gives, each `FIELD=JSON`, `PART.FIELD=JSON` or an object; later ones win.

    Example:
        >>> config_fields(["rope_theta=1e6", "hidden_act=silu", "text_config.note=null", '{"vocab_size": 8}'])
        {'rope_theta': 1000000.0, 'hidden_act': 'silu', 'text_config': {'note': None}, 'vocab_size': 8}
    """
    if not typed:
        return None
    nothing: Mapping[str, Any] = {}
    return functools.reduce(overridden, map(_fields, typed), nothing)


def dtypes(typed: Sequence[str]) -> Any:
    """The dtype, or dtypes by pattern, that `--dtype` gives: one `DTYPE` at most, and any number of `PATTERN=DTYPE`.

    Example:
        >>> dtypes(["bf16"])
        'bf16'
        >>> dtypes(["float16", "*norm*=float32"])
        {'*norm*': 'float32', '*': 'float16'}
    """
    # As above.
    from lazyload.layouts.dtypes import ALL

    pairs = [text.rpartition("=") for text in typed]
    by_pattern = {pattern: dtype for pattern, sign, dtype in pairs if sign}
    plain = [dtype for _, sign, dtype in pairs if not sign]
    if len(plain) > 1 or len(by_pattern) + len(plain) < len(typed) or (plain and ALL in by_pattern):
        raise click.BadParameter(
            f"{' '.join(typed)}: give one DTYPE for all, and PATTERN=DTYPE for others, each pattern once",
            param_hint="--dtype",
        )
    default = plain[0] if plain else "bfloat16"
    if not by_pattern:
        return default
    return by_pattern if ALL in by_pattern else {**by_pattern, ALL: default}


def layers(text: str | None) -> range | None:
    """The layers that `--layers` gives, as a slice: `0:8`.

    Example:
        >>> layers("0:8"), layers(":8")
        (range(0, 8), range(0, 8))
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{0,9}):(\d{1,9})", text)
    if not match:
        raise click.BadParameter(
            f"{text!r}: give the first layer and the one behind the last, 0:8", param_hint="--layers"
        )
    return range(int(match[1] or 0), int(match[2]))


def mesh(text: str | None) -> "AbstractMesh | None":
    """The mesh that `--mesh` describes: its axes with their sizes, `fsdp=4,tp=2`."""
    if text is None:
        return None
    pairs = [re.fullmatch(r"\s*(\w+)\s*=\s*([1-9]\d{0,6})\s*", part) for part in text.split(",")]
    axes = {match[1]: int(match[2]) for match in pairs if match}
    if len(axes) < len(pairs):
        raise click.BadParameter(f"{text!r}: give each axis once, with its size: fsdp=4,tp=2", param_hint="--mesh")
    # JAX takes a while to import, and without a mesh the commands need it not.
    from jax.sharding import AbstractMesh

    return AbstractMesh(tuple(axes.values()), tuple(axes))


def amount(text: str | None, option: str, parse: Callable[[str], Amount]) -> Amount | None:
    """The bytes of a size, or the seconds of a duration, that an option gives."""
    if text is None:
        return None
    with as_usage(option):
        return parse(text)


@contextlib.contextmanager
def as_usage(option: str) -> Iterator[None]:
    """Has what the body says of its arguments be told as a mistake in the command's usage."""
    try:
        yield
    except ArgumentError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def _fields(text: str) -> Mapping[str, Any]:
    """One `--config`: the object, or the field below the parts that its name leads through."""
    if text.lstrip().startswith("{"):
        fields: Mapping[str, Any] = _json(text, text)
        return fields
    path, sign, value = text.partition("=")
    *parts, field = path.strip().split(".")
    if not sign or not all((*parts, field)):
        raise _mistyped(f"{text!r}: give FIELD=JSON, PART.FIELD=JSON or an object")
    # As other commands with such options have it, a word needs no quotes.
    is_word = _WORD.fullmatch(value) and value not in ("null", "true", "false", *_NOT_JSON)
    fields = {field: value if is_word else _json(value, text)}
    for part in reversed(parts):
        fields = {part: fields}
    return fields


def _json(value: str, text: str) -> Any:
    if value in _NOT_JSON:
        raise _mistyped(f"{text!r}: {value} is none of JSON's values; is {_NOT_JSON[value]} meant?")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise _mistyped(
            f"{text!r}: {value!r} is no JSON; give a number, true, false, null, a word, or '\"a text\"'"
        ) from None


def _mistyped(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="--config")
