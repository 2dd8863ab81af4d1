"""How two decoders differ: in sentences, the layers that differ alike together."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lazyload.architecture import Attention, DecoderConfig, Norm, Rope
from lazyload.display.text import ranges

Difference = tuple[str, str, str]
"""What differs, and how both sides have it."""

_ATOMS = (Rope, Norm)
"""Values whose fields mean nothing one by one."""


def differences(wanted: DecoderConfig, computed: DecoderConfig, name: str) -> list[str]:
    """How what a class computes differs from what `config.json` means: clauses.

    Args:
        wanted: What `config.json` means.
        computed: What the class computes.
        name: What to call the class.
    """
    if wanted.num_layers != computed.num_layers:
        return [f"config.json has {wanted.num_layers} layers, {name} {computed.num_layers}"]
    layers: dict[Difference, list[int]] = {}
    for number, pair in enumerate(zip(wanted.layers, computed.layers, strict=True)):
        for difference in _differing(*pair, ""):
            layers.setdefault(difference, []).append(number)
    around = (
        difference
        for field in dataclasses.fields(DecoderConfig)
        if field.compare and field.name != "layers"
        for difference in _differing(getattr(wanted, field.name), getattr(computed, field.name), field.name)
    )
    said = [f"{what} is {theirs}, {name} computes {own}" for what, theirs, own in around]
    for (what, theirs, own), numbers in layers.items():
        where = "" if len(numbers) == wanted.num_layers else f" in layers {ranges(tuple(numbers))}"
        said.append(f"{what} is {theirs}{where}, {name} computes {own}")
    return said


def _differing(wanted: Any, computed: Any, path: str) -> Iterator[Difference]:
    """The innermost fields of two values that differ, by their dotted path."""
    if wanted == computed:
        return
    if type(wanted) is not type(computed) or not dataclasses.is_dataclass(wanted) or isinstance(wanted, _ATOMS):
        yield path, repr(wanted), repr(computed)
        return
    for field in dataclasses.fields(wanted):
        if field.compare:
            theirs, own = _value(wanted, field.name), _value(computed, field.name)
            yield from _differing(theirs, own, f"{path}.{field.name}".strip("."))


def _value(side: Any, name: str) -> Any:
    """A field, with what None stands for."""
    if isinstance(side, Attention) and name == "query_scale":
        return side.scale
    return getattr(side, name)
