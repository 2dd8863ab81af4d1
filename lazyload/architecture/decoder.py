"""The decoder: a stack of layers, each of a mixer and a feed-forward, between an embedding and an output projection."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lazyload.architecture.altup import AltUp, AltUpStreams
from lazyload.architecture.attention import Attention
from lazyload.architecture.block import Block, CacheArray, Mixer
from lazyload.architecture.checks import require, require_positive
from lazyload.architecture.compressed_attention import CompressedAttention
from lazyload.architecture.experts import Experts
from lazyload.architecture.head import ScoreHead
from lazyload.architecture.hyper_connection import HyperConnection, HyperStreams
from lazyload.architecture.latent_attention import LatentAttention
from lazyload.architecture.laurel import Laurel
from lazyload.architecture.norm import LayerNorm, Norm
from lazyload.architecture.per_layer_input import PerLayerEmbedding, PerLayerInput
from lazyload.display.values import differing_fields
from lazyload.layouts.axes import Group
from lazyload.layouts.notation import parse_line

B = TypeVar("B")

Sizes = tuple[tuple[str, int], ...]
"""Axes with their sizes."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: its blocks, and how they are added to the residual stream.

    Attributes:
        mixer: The block through which tokens see each other; None for a layer that has none (Nemotron H).
        feed_forward: The block that works on each token alone; None for a layer that has none (Nemotron H).
        norm: The norms around the blocks.
        pre_norms: Whether both blocks have a norm before them (OLMo 2: not).
        post_norms: Whether both blocks have a norm after them (Gemma 2 and 3, OLMo 2 and 3, GLM 4).
        parallel: Whether both blocks work on the same tokens, those before the layer, and share the norm before them,
            `attn_norm` (Cohere 2).
        experts: Experts beside the feed-forward, on the same residual stream: both have a norm of their own after
            them, and the experts one before them, too (Gemma 4). None for none.
        per_layer_input: What is made of the input that the layer has of its own; None for none (Gemma 3n and 4).
        laurel: A branch beside the mixer, on the same tokens; the sum of all that has been added to the residual stream
            by then and of this branch is divided by `sqrt(2)`. None for none (Gemma 3n).
        altup: What is done with a residual stream of several, of which the blocks work on one; what comes of the
            layer's own input is added to all streams but the first. None for one stream (Gemma 3n).
        residual_scale: What a block's output is multiplied with before it is added.
        scalar: Whether all that leaves the layer is multiplied with a learned number (Gemma 4).
        hyper_connection: How both blocks read the residual stream and are added to it where it is several, each with
            parameters of its own, `attn_hc` and `mlp_hc`; None where it is one (all but DeepSeek V4).
    """

    mixer: Mixer | None
    feed_forward: Block | None
    norm: Norm | LayerNorm
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    experts: Experts | None = None
    per_layer_input: PerLayerInput | None = None
    laurel: Laurel | None = None
    altup: AltUp | None = None
    residual_scale: float = 1.0
    scalar: bool = False
    hyper_connection: HyperConnection | None = None

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        both = self.mixer is not None and self.feed_forward is not None
        require(
            self.mixer is not None or self.feed_forward is not None, self, "there is neither mixer nor feed-forward"
        )
        beside = self.experts is None or self.feed_forward is not None
        require(beside, self, "there are experts beside no feed-forward; alone they are one themselves")
        require(
            self.experts is None or self.feed_forward is None or self.feed_forward.name != self.experts.name,
            self,
            "there are experts beside experts; the feed-forward must be another block",
        )
        require(
            self.experts is None or not self.experts.by_token,
            self,
            "experts beside a feed-forward are not chosen by token",
        )
        require(
            not self.parallel or (both and not any((self.experts, self.per_layer_input, self.laurel, self.altup))),
            self,
            "where blocks are parallel, there are the mixer and the feed-forward, and nothing beside them",
        )
        others = (self.parallel, self.scalar, self.per_layer_input, self.laurel, self.altup)
        require(
            self.hyper_connection is None or (both and not any(others) and self.residual_scale == 1),
            self,
            "hyper-connections are around a mixer and a feed-forward, with nothing beside them",
        )

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The mixer, then the feed-forward, then what there is beside and after it."""
        blocks = (self.mixer, self.feed_forward, self.experts, self.per_layer_input, self.laurel, self.altup)
        return tuple(block for block in blocks if block is not None)

    @property
    def num_streams(self) -> int | None:
        """How many residual streams it reads and writes; None for one."""
        around = self.hyper_connection if self.altup is None else self.altup
        return None if around is None else around.num_streams

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """What its mixer keeps of the tokens seen so far, by name."""
        return {} if self.mixer is None else self.mixer.cache

    @property
    def around(self) -> Mapping[str, str]:
        """The table of what stands around the blocks: norms, the scalar, hyper-connections."""
        names: tuple[str, ...] = ()
        if self.mixer is not None:
            names += ("attn_norm",) * self.pre_norms + ("post_attn_norm",) * self.post_norms
        if self.feed_forward is not None:
            names += ("mlp_norm",) * (self.pre_norms and not self.parallel) + ("post_mlp_norm",) * self.post_norms
        if self.experts is not None:
            names += ("post_dense_norm", "moe_norm", "post_moe_norm")
        table = {f"{name}.{path}": entry for name in names for path, entry in self.norm.parameters(name).items()}
        if self.hyper_connection is not None:
            for name in ("attn_hc", "mlp_hc"):
                table |= {f"{name}.{path}": entry for path, entry in self.hyper_connection.parameters(name).items()}
        return table | {"layer_scalar": "layer_scalar : 1"} if self.scalar else table

    @property
    def around_axes(self) -> Mapping[str, int]:
        """The size of every axis of what stands around the blocks, but `embed`."""
        return {} if self.hyper_connection is None else self.hyper_connection.axes

    @functools.cached_property
    def parameters(self) -> Mapping[str, str]:
        """The table of all parameters: from the path below the layer to role and axes."""
        rows = {f"{block.name}.{path}": entry for block in self.blocks for path, entry in block.parameters.items()}
        return {**self.around, **rows}

    @functools.cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis of its blocks, and of what stands around them."""
        return {**self.around_axes, **{axis: size for block in self.blocks for axis, size in block.axes.items()}}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer: what a `config.json` means, in one vocabulary.

    Attributes:
        vocab_size: Rows of the embedding.
        embed_dim: Width of the residual stream.
        layers: One value a layer.
        norm: The norm before the output projection.
        tied: Whether the embedding is the output projection, too.
        logits_bias: Whether the output projection has a bias, be it the embedding or not (Phi 3.5 MoE).
        embed_scale: What embeddings are multiplied with, rounded to the activations' dtype first.
        logits_scale: What the output logits are multiplied with.
        final_softcap: Soft cap of the output logits.
        per_layer_embedding: Where the inputs come from that layers have of their own; None for none (Gemma 3n and 4).
        streams: How the residual stream becomes several, and one again; None for one (all but Gemma 3n and
            DeepSeek V4).
        head: What scores tokens in place of the output projection; None for a model that predicts tokens.
        family: The name of the family that read it; empty for one made by hand. Two that differ in it only are equal.
    """

    vocab_size: int
    embed_dim: int
    layers: tuple[Layer, ...]
    norm: Norm | LayerNorm
    tied: bool = False
    logits_bias: bool = False
    embed_scale: float = 1.0
    logits_scale: float = 1.0
    final_softcap: float | None = None
    per_layer_embedding: PerLayerEmbedding | None = None
    streams: AltUpStreams | HyperStreams | None = None
    head: ScoreHead | None = None
    family: str = field(default="", compare=False)

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "embed_dim")
        require(len(self.layers) > 0, self, "there are no layers")
        if self.final_softcap is not None:
            require(self.final_softcap > 0, self, f"final_softcap = {self.final_softcap!r} must be positive, or None")
        self._require_per_layer_inputs()
        self._require_streams()
        for number in range(self.num_layers):
            self._require_keys_and_values(number)
            require(
                not self._shares_selection(number) or self._indexing_layer(number) is not None,
                self,
                f"layer {number} attends to what an earlier layer's indexer selects, and there is none",
            )

    def kv_layer(self, number: int) -> int:
        """The layer whose keys and values, or states, layer `number` attends to: itself, if it shares no other's."""
        mixer = self.layers[number].mixer
        shared = mixer.kv_layer if isinstance(mixer, Attention) else None
        return number if shared is None else shared

    @functools.cached_property
    def shared_kv_layers(self) -> frozenset[int]:
        """The layers whose keys and values others attend to, too."""
        return frozenset(source for number in range(self.num_layers) if (source := self.kv_layer(number)) != number)

    @functools.cached_property
    def selecting_layers(self) -> frozenset[int]:
        """The layers that attend to what another one's indexer selects, and those others."""
        sharing = [number for number in range(self.num_layers) if self._shares_selection(number)]
        indexing = (self._indexing_layer(number) for number in sharing)
        return frozenset(sharing) | frozenset(number for number in indexing if number is not None)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        # Called by treescope, with which Flax displays modules: it would spell out every layer.
        from treescope.rendering_parts import text

        return text(repr(self))

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def num_embed(self) -> int:
        """The rows of the embedding, by the name that Tunix reads."""
        return self.vocab_size

    @property
    def num_heads(self) -> int:
        """The query heads of the first layer with attention; 0 where there is none."""
        return self._first_attention("num_heads")

    @property
    def num_kv_heads(self) -> int:
        """The key and value heads of the first layer with attention; 0 where there is none."""
        return self._first_attention("num_kv_heads")

    @property
    def head_dim(self) -> int:
        """A head's width in the first layer with attention; 0 where there is none."""
        return self._first_attention("head_dim")

    def part(self, layers: range) -> "DecoderConfig":
        """A decoder of some of the layers, which count from 0 there.

        Args:
            layers: Which ones, step 1.

        Raises:
            ConfigError: A layer needs what is left out, or layers have inputs that are made for all of them at once.
        """
        require(self.per_layer_embedding is None, self, "no part can be had of layers that have inputs of their own")
        for number in layers:
            source = self.kv_layer(number)
            require(
                source in layers,
                self,
                f"layer {number} attends to the keys and values of layer {source}, which layers={layers} leaves out",
            )
            indexing = self._indexing_layer(number) if self._shares_selection(number) else number
            require(
                indexing in layers,
                self,
                f"layer {number} attends to what the indexer of layer {indexing} selects, which layers={layers} leaves "
                "out",
            )
        return replace(self, layers=tuple(_counted_from(layers.start, self.layers[number]) for number in layers))

    def layers_with(self, kind: type[Any]) -> tuple[int, ...]:
        """The layers that have a block of the class `kind`."""
        return tuple(n for n, layer in enumerate(self.layers) if any(isinstance(b, kind) for b in layer.blocks))

    def first(self, kind: type[B]) -> B | None:
        """The first block of the class `kind`; None where no layer has one."""
        return next((block for layer in self.layers for block in layer.blocks if isinstance(block, kind)), None)

    @property
    def parameters(self) -> Mapping[str, str]:
        """The table of the parameters that belong to no layer."""
        final_norm = {f"final_norm.{path}": entry for path, entry in self.norm.parameters("final_norm").items()}
        table = {"embed.embedding": "embed : vocab embed", **final_norm}
        if self.head is not None:
            table |= self.head.parameters
        elif not self.tied:
            table["lm_head.kernel"] = "lm_head : embed vocab"
        if self.logits_bias and self.head is None:
            table["logits_bias"] = "logits_bias : vocab"
        for block in self.blocks:
            table |= {f"{block.name}.{path}": entry for path, entry in block.parameters.items()}
        return table

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that belong to no layer."""
        return tuple(block for block in (self.per_layer_embedding, self.streams) if block is not None)

    @property
    def axes(self) -> Mapping[str, int]:
        """The sizes of the axes that belong to no block."""
        axes = {"vocab": self.vocab_size, "embed": self.embed_dim, "layer": self.num_layers}
        if self.head is not None:
            axes |= self.head.axes
        return axes | {axis: size for block in self.blocks for axis, size in block.axes.items()}

    @property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        """Axes that a layout may also write by their parts: a head is its two rotary halves of pairs."""
        return {"head_dim": ("half", "pair")}

    def groups(self, role: str) -> tuple[Group, ...]:
        """The layers that have a role, those of the same sizes together; see `lazyload.layouts.axes.Axes`."""
        return self._groups.get(role, ())

    @functools.cached_property
    def _groups(self) -> Mapping[str, tuple[Group, ...]]:
        alike: dict[Layer, list[int]] = {}
        for number, layer in enumerate(self.layers):
            alike.setdefault(layer, []).append(number)
        found: dict[str, dict[Sizes, tuple[list[int], Mapping[str, int]]]] = {}
        for layer, numbers in alike.items():
            for role, sizes, axes in _roles(layer):
                layers, _ = found.setdefault(role, {}).setdefault(sizes, ([], axes))
                layers.extend(numbers)
        groups = {
            role: tuple(Group(tuple(sorted(layers)), {**self.axes, **axes}) for layers, axes in some.values())
            for role, some in found.items()
        }
        own = {role for row in self.parameters.items() for role in parse_line(*row).roles}
        return groups | {role: (Group((), self.axes),) for role in own}

    def _require_per_layer_inputs(self) -> None:
        """Makes sure that the inputs of all layers are those that the layers expect."""
        inputs = self.per_layer_embedding
        expected = {None if layer.per_layer_input is None else layer.per_layer_input.dim for layer in self.layers}
        made = None if inputs is None else inputs.dim
        require(
            expected == {made} and (inputs is None or inputs.num_layers == self.num_layers),
            self,
            f"per_layer_embedding = {inputs!r} does not fit what {self.num_layers} layers expect, inputs of width "
            f"{', '.join(map(str, expected))}",
        )

    def _require_streams(self) -> None:
        """Makes sure that the residual stream is what all layers expect."""
        made = self.streams and self.streams.num_streams
        around = {
            layer.hyper_connection if isinstance(self.streams, HyperStreams) else layer.altup for layer in self.layers
        }
        width = self.streams.embed_dim if isinstance(self.streams, AltUpStreams) else self.embed_dim
        expected = ", ".join(sorted({str(layer.num_streams) for layer in self.layers}))
        require(
            {each and each.num_streams for each in around} == {made} == {layer.num_streams for layer in self.layers}
            and width == self.embed_dim,
            self,
            f"streams = {self.streams!r} does not fit layers that expect {expected}, of width {self.embed_dim}",
        )

    def _require_keys_and_values(self, number: int) -> None:
        """Makes sure that a layer whose keys and values are another's can attend to them."""
        mixer = self.layers[number].mixer
        if not isinstance(mixer, Attention) or mixer.kv_layer is None:
            return
        other = self.layers[mixer.kv_layer].mixer if 0 <= mixer.kv_layer < number else None
        require(
            isinstance(other, Attention)
            and other.kv_layer is None
            and (other.num_kv_heads, other.head_dim) == (mixer.num_kv_heads, mixer.head_dim),
            self,
            f"layer {number} attends to the keys and values of layer {mixer.kv_layer}, which must be an earlier one "
            f"with {mixer.num_kv_heads} heads of its own of width {mixer.head_dim}",
        )

    def _shares_selection(self, number: int) -> bool:
        mixer = self.layers[number].mixer
        return isinstance(mixer, LatentAttention) and mixer.shares_selection

    def _indexing_layer(self, number: int) -> int | None:
        """The last layer before layer `number` that has an indexer; None for none."""
        mixers = [layer.mixer for layer in self.layers[:number]]
        indexing = [n for n, mixer in enumerate(mixers) if isinstance(mixer, LatentAttention) and mixer.indexer]
        return max(indexing, default=None)

    def _first_attention(self, attribute: str) -> int:
        attention = self.first(Attention) or self.first(LatentAttention) or self.first(CompressedAttention)
        return getattr(attention, attribute, 0)


def _counted_from(start: int, layer: Layer) -> Layer:
    """A layer of a part that begins at `start`: what it shares keys and values with is counted from there, too."""
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or mixer.kv_layer is None:
        return layer
    return replace(layer, mixer=replace(mixer, kv_layer=mixer.kv_layer - start))


def _roles(layer: Layer) -> Iterator[tuple[str, Sizes, Mapping[str, int]]]:
    """Every role of a layer, with the sizes of its own axes, and of all axes of the block that has it."""
    tables: list[tuple[Mapping[str, str], Mapping[str, int]]] = [(layer.around, layer.around_axes)]
    tables += [(block.parameters, block.axes) for block in layer.blocks]
    for table, axes in tables:
        for line in (parse_line(*row) for row in table.items()):
            for role, pattern in zip(line.roles, line.patterns, strict=True):
                words = [
                    *(axis for dimension in pattern for axis in dimension),
                    *(axis.axis for axis in line.path_axes),
                ]
                yield role, tuple((word, axes[word]) for word in words if word in axes), axes
