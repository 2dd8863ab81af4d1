"""The layers of a decoder, one after another: each by itself or alike ones in a loop, rematerialised or not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload.architecture import DecoderConfig
from lazyload.architecture.stacking import Cycle, cycles
from lazyload.errors import InputError
from lazyload.models.context import Context
from lazyload.models.kv_cache import KVCache, LayerCache

Remat = Literal["none", "block", "dots"]
"""What is computed again in the backward pass instead of being kept: nothing, all of a layer but its input, or all but
that and the products with its parameters."""

_POLICIES: Mapping[Remat, Callable[..., Any] | None] = {
    "block": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

_Called = tuple[jax.Array, LayerCache | None, jax.Array | None]
"""What a layer returns, and which keys are selected after it."""


class Stack:
    """How the layers of one call are gone through.

    Attributes:
        config: What the decoder is.
        context: What the mixers of the call share.
        inputs: The inputs that layers have of their own, `[batch, length, layer, dim]`, or None.
        kept: The caches by layer, as they are so far; without a cache the keys and values that layers attend to which
            have none of their own.
        has_cache: Whether there is a cache.
    """

    def __init__(
        self, config: DecoderConfig, remat: Remat, context: Context, inputs: jax.Array | None, cache: KVCache | None
    ):
        """The state before the first layer.

        Raises:
            InputError: There is no such rematerialisation.
        """
        if remat not in get_args(Remat):
            raise InputError(f"remat={remat!r:.100}: give 'none', 'block' or 'dots'")
        self.config = config
        self.context = context
        self.inputs = inputs
        self.kept: KVCache = {} if cache is None else dict(cache)
        self.has_cache: bool = cache is not None
        self._remat = remat
        for layer in config.layers:
            context.rotation(getattr(layer.mixer, "rope", None))

    def run(self, layers: Sequence[nnx.Module], x: jax.Array) -> jax.Array:
        """The residual stream after layers that are numbered; `x` is `[batch, length, embed]`."""
        for number, layer in enumerate(layers):
            x = self._run_one(layer, number, x)
        return x

    def scan(self, layers: Sequence[nnx.Module], x: jax.Array) -> jax.Array:
        """The same with layers that are stacked, as `lazyload.architecture.stacking.stacks` says."""
        rest = list(layers)
        for cycle in cycles(self.config):
            stacked, rest = rest[: len(cycle)], rest[len(cycle) :]
            if len(cycle[0]) > 1:
                x = self._run_cycle(stacked, cycle, x)
                continue
            graphdef, state = nnx.split(stacked[0])
            layer = nnx.merge(graphdef, _at(state, 0))
            before = _variables(layer)
            x = self._run_one(layer, cycle[0][0], x)
            _require_unchanged(before, layer)
        return x

    def _run_one(self, layer: nnx.Module, number: int, x: jax.Array) -> jax.Array:
        source = f"layer_{self.config.kv_layer(number)}"
        own = None if self.inputs is None else self.inputs[:, :, number]
        x, seen, self.context.selected = self._called(layer, x, self.context, self.kept.get(source), own)
        if seen is not None and (self.has_cache or number in self.config.shared_kv_layers):
            self.kept[source] = seen
        return x

    def _run_cycle(self, layers: Sequence[nnx.Module], cycle: Cycle, x: jax.Array) -> jax.Array:
        """Goes through a cycle in a loop, whose body is compiled once.

        The caches go around in it as a whole, so that they can be changed where they are.
        """
        modules: Any
        modules, states = nnx.split(nnx.List(layers))
        own = [f"layer_{stack[0]}" for stack in cycle]
        caches = {name: dict(self.kept[name]) for name in own if name in self.kept and self.has_cache}
        ends = {name: cache.pop("end_index") for name, cache in caches.items()}
        inputs = None if self.inputs is None else self.inputs[:, :, cycle[0][0] : cycle[-1][-1] + 1]
        if inputs is not None:
            inputs = jnp.moveaxis(inputs, 2, 0).reshape(-1, len(cycle), *inputs.shape[:2], inputs.shape[-1])

        def body(carry: Any, turn: Any) -> tuple[Any, None]:
            x, caches = carry
            number, states, inputs = turn
            # What the layers of the loop make of it is of no use outside.
            context = self.context.copy()
            for place, layer in enumerate(nnx.merge(modules, states)):
                before = _variables(layer)
                name, source = own[place], f"layer_{self.config.kv_layer(cycle[place][0])}"
                cache = self.kept.get(source)
                if name in caches:
                    cache = {**_at(caches[name], number), "end_index": ends[name]}
                x, seen, _ = self._called(layer, x, context, cache, None if inputs is None else inputs[place])
                _require_unchanged(before, layer)
                if name in caches:
                    new = {kind: array for kind, array in (seen or {}).items() if kind != "end_index"}
                    caches = {**caches, name: _put(caches[name], new, number)}
            return (x, caches), None

        turns = (jnp.arange(len(cycle[0])), states, inputs)
        (x, caches), _ = jax.lax.scan(body, (x, caches), turns)
        for name, cache in caches.items():
            self.kept[name] = {**cache, "end_index": ends[name] + x.shape[1]}
        return x

    def _called(
        self, layer: nnx.Module, x: jax.Array, context: Context, cache: LayerCache | None, own: jax.Array | None
    ) -> _Called:
        if self._remat == "none":
            return _call(layer, x, context, cache, own)
        called: _Called = nnx.remat(_call, policy=_POLICIES[self._remat])(layer, x, context, cache, own)
        return called


def _call(layer: Any, x: jax.Array, context: Context, cache: LayerCache | None, own: jax.Array | None) -> _Called:
    x, seen = layer(x, context, cache, own)
    return x, seen, context.selected


def _at(tree: Any, number: jax.Array | int) -> Any:
    """One layer of stacked arrays."""
    return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, number, keepdims=False), tree)


def _put(stacked: LayerCache, layer: LayerCache, number: jax.Array) -> LayerCache:
    """Stacked arrays with one layer replaced."""
    return {
        name: jax.lax.dynamic_update_index_in_dim(arrays, layer[name], number, 0) for name, arrays in stacked.items()
    }


def _variables(layer: nnx.Module) -> set[tuple[Any, ...]]:
    """The paths of a layer's variables."""
    return {path for path, _ in nnx.to_flat_state(nnx.state(layer))}


def _require_unchanged(before: set[tuple[Any, ...]], layer: nnx.Module) -> None:
    """Makes sure that a layer has the variables that it had before its call; what one of a stack gets would be lost.

    Raises:
        InputError: It has other variables than before.
    """
    if _variables(layer) != before:
        raise InputError(
            "a call adds variables to a layer (of LoRA, or what it sows), which layers in stacks cannot keep; load the "
            "model with scan_layers=False"
        )
