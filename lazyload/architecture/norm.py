"""Root mean square norms."""

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


RMS_NORM = Norm()
"""The plain one."""
