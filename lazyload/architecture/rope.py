"""Rotary position embedding."""

from dataclasses import dataclass
from typing import Literal, get_args

from lazyload.architecture.checks import require, require_one_of, require_positive
from lazyload.display.values import differing_fields

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"]
_EXTENDED = ("dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of one layer.

    The meaning of every scaling kind is that of `transformers.modeling_rope_utils`.

    Attributes:
        theta: The base.
        dim: How many of a head's dimensions are rotated, from its start; even.
        kind: The scaling.
        factor: linear, dynamic, llama3, yarn, proportional: the context's extension.
        original_max_position: dynamic, llama3, yarn, longrope: the context length before extension.
        low_freq_factor: llama3.
        high_freq_factor: llama3.
        beta_fast: yarn.
        beta_slow: yarn.
        truncate: yarn: whether the correction range is rounded to whole dimensions.
        attention_factor: yarn, longrope: what cosines and sines are multiplied with; resolved by the family.
        long_attention_factor: longrope: the same beyond the original context length; None for no other (Phi 3.5 MoE).
        short_factor: longrope: `dim / 2` divisors of the frequencies up to the original context length.
        long_factor: longrope: the same beyond it.
        turning_pairs: proportional: how many pairs turn; the others stay as they are, though `dim` counts them.
        interleaved: Whether a rotated pair is two neighbours (DeepSeek) instead of the two halves.
    """

    theta: float
    dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    long_attention_factor: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    turning_pairs: int = 0
    interleaved: bool = False

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_one_of(self, "kind", get_args(RopeKind))
        require_positive(self, "dim")
        require(self.dim % 2 == 0, self, f"dim = {self.dim} must be even: dimensions are rotated in pairs")
        for name in ("theta", "factor"):
            require(getattr(self, name) > 0, self, f"{name} = {getattr(self, name)!r} must be positive")
        require(
            0 <= self.turning_pairs <= self.dim // 2,
            self,
            f"turning_pairs = {self.turning_pairs} of {self.dim // 2} pairs",
        )
        only_long = self.long_attention_factor is None or self.kind == "longrope"
        require(only_long, self, "long_attention_factor is for longrope")
        if self.kind in _EXTENDED:
            require(self.original_max_position is not None, self, f"kind {self.kind!r} needs original_max_position")
            require_positive(self, "original_max_position")
        if self.kind == "longrope":
            for name in ("short_factor", "long_factor"):
                count = len(getattr(self, name))
                require(count == self.dim // 2, self, f"{name} has {count} values for {self.dim // 2} rotated pairs")
