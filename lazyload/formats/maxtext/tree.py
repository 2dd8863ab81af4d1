"""The tree of a whole model: its layers, numbered or stacked, and what is around them.

Scanned layers are one array whose second dimension is the layer; a model whose layers follow each other in cycles of
different ones is scanned cycle by cycle, a stack for each place in the cycle.
"""

import re
from collections.abc import Iterable, Sequence

from lazyload.architecture import DecoderConfig
from lazyload.errors import LayoutError
from lazyload.formats.maxtext.blocks import Entries
from lazyload.layouts.layout import Layout, Table

_HEAD = "decoder.logits_dense.kernel"
HEAD = f"params.params.{_HEAD}"
"""The output projection, where it is not the embedding."""


EMBEDDING = "token_embedder.embedding"
"""What every module of MaxText has."""

_TREE = "params.params."
_OTHERS = "nnx_aux.model."
"""Where MaxText's trainer saves variables that are no parameters (`to_checkpoint_dict`, MaxText 0.2.5)."""

ROOTS = (_TREE, "base.", "")
"""What is before a module's paths: in a tree; in one that Tunix's trainers save, in MaxText's adapter; by itself."""

_RANDOM = {"rngs", "dropout"}
"""Steps in the paths of random states, which a module has and a tree has not (`_strip_rng_state`, MaxText 0.2.5)."""


def names_in_tree(paths: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """For the paths of what MaxText has saved those of its layout; random states have none.

    Args:
        paths: The paths: of a tree, of a module, or of none of MaxText's, which come back as they are.
        wanted: The paths of the layout.
    """
    held = list(paths)
    root = next((root for root in ROOTS if root + EMBEDDING in held), _TREE)
    of_module = {path.split(".", 2)[-1]: path for path in wanted}
    names = {}
    for path in held:
        if root == _TREE:
            own = path.removeprefix(_OTHERS)
            names[path] = of_module.get(own, path) if own != path else path
        elif path.startswith(root) and not _RANDOM & set(path.split(".")):
            own = path.removeprefix(root)
            names[path] = of_module.get(own, _TREE + own)
    return names


def layout_name(scan_layers: bool) -> str:
    """What messages and keys call the layout."""
    return "maxtext" if scan_layers else "maxtext-unscanned"


def layout(
    config: DecoderConfig,
    tables: Sequence[Table],
    scan_layers: bool,
    vocab_size: int | None,
    *,
    embed_scale: float = 1.0,
    norm: str = "",
) -> Layout:
    """The whole tree: the layers' tables and what is around them."""
    pad = padding(config, vocab_size)
    scale = f" ; scale {embed_scale!r}" if embed_scale != 1 else ""
    entries = {
        EMBEDDING: f"embed : vocab embed{scale}{pad}",
        "decoder.decoder_norm.scale": f"final_norm : embed{norm}",
        _HEAD: f"lm_head : embed vocab{pad}",
    }
    placed = [
        Table(under("params.params", table.lines), table.only, table.split, table.sizes)
        for table in (Table(entries), *tables)
    ]
    return Layout(placed, name=layout_name(scan_layers), general=True)


def padding(config: DecoderConfig, vocab_size: int | None) -> str:
    """How an array with the axis `vocab` is filled up to MaxText's vocabulary."""
    return f" ; pad vocab {vocab_size}" if vocab_size and vocab_size > config.vocab_size else ""


def stack(
    config: DecoderConfig,
    scan_layers: bool,
    layer: Entries,
    name: str = "layers",
    *,
    cycle: int = 1,
    layers: Sequence[int] | None = None,
) -> list[Table]:
    """The tables of layers that are alike: numbered, or stacked, or stacked for each place in their cycle.

    Args:
        config: The model.
        scan_layers: Whether to stack.
        layer: The entries of one layer.
        name: What the layers are called.
        cycle: How many layers are scanned at once.
        layers: Which layers they are; None for all.

    Raises:
        LayoutError: The layers are no whole number of cycles.
    """
    only = {} if layers is None else {"layer": layers}
    if not scan_layers:
        return [Table(under(f"decoder.{name}_{{layer:0..}}", layer), only)]
    if cycle == 1:
        return [Table(under(f"decoder.{name}", scanned(layer, "layer")), only)]
    if layers is None:
        require_cycles(config, cycle, "MaxText scans its layers in cycles; use scan_layers=False")
    entries = under(f"decoder.{name}.layers_{{place}}", scanned(layer, "cycle"))
    return [Table(entries, only, split={"layer": ("cycle", "place")}, sizes={"place": cycle})]


def refuse(rule: str, config: DecoderConfig, *roles: str) -> None:
    """Refuses a model that has one of the roles."""
    if any(config.groups(role) for role in roles):
        raise LayoutError(f"MaxText's {rule}; this model's config.json says otherwise")


def require_cycles(config: DecoderConfig, cycle: int, why: str) -> None:
    """Refuses a model whose layers are no whole number of cycles."""
    if config.num_layers % cycle:
        raise LayoutError(f"the model's {config.num_layers} layers are not a multiple of {cycle}: {why}")


def under(prefix: str, entries: Entries) -> dict[str, str]:
    """Entries with a prefix before their paths."""
    return {f"{prefix}.{path}": entry for path, entry in entries.items()}


def scanned(entries: Entries, axes: str) -> dict[str, str]:
    """Entries with one more axis, or several, from the second dimension on; those that have it already stay."""
    return {
        path: entry if axes in entry.split() else re.sub(r" : (\([^)]*\)|\w+)", rf"\g<0> {axes}", entry)
        for path, entry in entries.items()
    }
