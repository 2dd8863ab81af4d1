"""The target that a call's layout means for a model."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lazyload.architecture import DecoderConfig
from lazyload.arguments import ModelArguments
from lazyload.errors import LayoutError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.nnx import layout as nnx_layout
from lazyload.formats.nnx import stacked_layout
from lazyload.formats.target import Target, nested
from lazyload.formats.tensor_names import tensor_names
from lazyload.formats.tunix import Tunix
from lazyload.importing import without_collection
from lazyload.layouts.layout import Layout
from lazyload.options import LayoutOption

if TYPE_CHECKING:
    import jax

    from lazyload.models.decoder import Decoder


def with_all_parameters(layout: LayoutOption, whole: Any) -> Any:
    """A model as a layout has it: classes of others may have parameters that nobody reads."""
    return layout.with_all_parameters(whole) if isinstance(layout, Tunix) else whole


def target_of(arguments: ModelArguments, family: Family, architecture: Any) -> Target[Any]:
    """What is wanted of a model: its layout, and what is built from the arrays.

    Raises:
        LayoutError: The model has no such layout.
    """
    match layout := arguments.layout:
        case Target():
            return layout
        case Layout():
            return Target(layout, nested)
        case MaxText() | Tunix() if getattr(architecture, "head", None) is not None:
            name = type(layout).__name__
            raise LayoutError(f"layout {name}: the model scores texts, and {name} has no place for its head")
        case MaxText():
            return layout.target(family.name, architecture)
        case Tunix() if isinstance(architecture, DecoderConfig):
            return Target(layout.layout(family.name, architecture), nested)
        case "nnx" | "nnx-scanned" if not isinstance(architecture, DecoderConfig):
            raise LayoutError(
                f"layout {layout!r} is for models that a lazyload.DecoderConfig describes; family "
                f"{family.name!r} reads config.json as {type(architecture).__name__}: give a lazyload.Layout or "
                "lazyload.Target"
            )
        case "nnx":
            return Target(nnx_layout(architecture), functools.partial(_decoder, arguments, family))
        case "nnx-scanned":
            return Target(stacked_layout(architecture), functools.partial(_decoder, arguments, family))
    raise LayoutError(
        f"layout {layout!r} is not known for family {family.name!r}; give 'nnx', lazyload.MaxText(...), "
        "lazyload.Tunix(...), a lazyload.Layout or a lazyload.Target"
    )


def _decoder(
    arguments: ModelArguments, family: Family, architecture: Any, arrays: "Mapping[str, jax.Array]"
) -> "Decoder":
    """The decoder; Flax is imported only where a module is wanted."""
    with without_collection():
        from lazyload.models.decoder import Decoder
        from lazyload.models.fill import fill

    # Not `nnx.eval_shape`, whose time grows with the square of the number of parameters.
    decoder = Decoder(
        architecture,
        dtype=arrays["embed.embedding"].dtype,
        compute_dtype=arguments.compute_dtype,
        scan_layers=arguments.layout == "nnx-scanned",
        rngs=None,
    )
    decoder.hub_names = tuple(tensor_names(nnx_layout(architecture), family.stored(architecture)).items())
    return fill(decoder, arrays)
