"""A target: what a conversion makes, beyond where the arrays lie."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from lazyload.display.values import named
from lazyload.errors import LayoutError
from lazyload.layouts.layout import Layout

Built = TypeVar("Built")


@dataclass(frozen=True)
class Target(Generic[Built]):
    """A layout, what the checkpoint holds beside its arrays, and what is built from the loaded ones.

    Example:
        >>> layout = Layout({"table": "embed : vocab embed"}, name="mine", skipped=["model.layers.*"])
        >>> Target(layout, build=lambda config, arrays: arrays["table"]).layout.name
        'mine'

    Attributes:
        layout: Where the arrays lie, and their axes.
        build: Makes what `from_pretrained` returns, from what `config.json` means (`DecoderConfig`, for the families of
            this library) and the loaded `jax.Array`s by path.
        metadata: What else the checkpoint says about itself (Orbax's custom metadata); JSON values.
        scalars: Whole numbers stored beside the arrays, by path.
        item: Where a reader expects the checkpoint to be one item of several (Orbax's composite checkpoints), its name.
    """

    layout: Layout
    build: Callable[[Any, Mapping[str, Any]], Built]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    scalars: Mapping[str, int] = field(default_factory=dict)
    item: str = ""

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise LayoutError(f"build={self.build!r:.100}: give a function of the model's config and its arrays")
        if not all(isinstance(value, int) for value in self.scalars.values()):
            raise LayoutError(f"scalars={self.scalars!r:.200}: give whole numbers by path")
        if not re.fullmatch(r"[\w-]*", self.item):
            raise LayoutError(f"item={self.item!r:.100}: give a name for a folder, such as 'items'")
        try:
            json.dumps(self.metadata, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise LayoutError(f"metadata: its values must be those of JSON: {error}") from None

    def __repr__(self) -> str:
        build = getattr(self.build, "__qualname__", type(self.build).__name__)
        return named(self, repr(self.layout), f"build={build}", **({"item": self.item} if self.item else {}))

    def description(self) -> dict[str, Any]:
        """What decides bytes on disk beside the layout, as JSON values; for the cache's key."""
        return {"metadata": dict(self.metadata), "scalars": dict(self.scalars), "item": self.item}


def nested(config: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays as nested dictionaries: `a.b.c` becomes `tree["a"]["b"]["c"]`; a `build` that needs no `config`."""
    # Flax takes a while to import, and a conversion without a restore builds nothing.
    from flax.traverse_util import unflatten_dict

    return dict(unflatten_dict(arrays, sep="."))
