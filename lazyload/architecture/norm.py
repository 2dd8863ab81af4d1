"""The norms of a decoder: by the root mean square, and with the mean taken away first."""

from collections.abc import Mapping
from dataclasses import dataclass

from lazyload.architecture.checks import require
from lazyload.display.values import differing_fields


@dataclass(frozen=True)
class Norm:
    """A root mean square norm, `x / sqrt(mean(x ** 2) + eps) * (scale + offset)`.

    Example:
        >>> Norm(eps=0.0)
        Traceback (most recent call last):
        lazyload.errors.ConfigError: Norm: eps = 0.0 must be positive

    Attributes:
        eps: Added to the mean square.
        offset: Added to the scale that checkpoints store (Gemma, Qwen 3 Next: 1).
    """

    eps: float = 1e-6
    offset: float = 0.0

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require(self.eps > 0, self, f"eps = {self.eps!r} must be positive")

    def parameters(self, role: str) -> Mapping[str, str]:
        """The table of the parameters of such a norm over the residual stream, whose scale has the role `role`."""
        return {"scale": f"{role} : embed"}


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm, `(x - mean(x)) / sqrt(variance(x) + eps) * scale + bias`.

    Example:
        >>> LayerNorm(bias=True).parameters("attn_norm")
        {'scale': 'attn_norm : embed', 'bias': 'attn_norm.bias : embed'}

    Attributes:
        eps: Added to the variance.
        bias: Whether it has a bias (Phi 3.5 MoE); Cohere's has none.
    """

    eps: float = 1e-5
    bias: bool = False

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require(self.eps > 0, self, f"eps = {self.eps!r} must be positive")

    def parameters(self, role: str) -> Mapping[str, str]:
        """The table of its parameters over the residual stream; see `Norm`."""
        table = {"scale": f"{role} : embed"}
        return table | {"bias": f"{role}.bias : embed"} if self.bias else table


RMS_NORM = Norm()
"""The plain one."""
