"""Laurel, the learned augmented residual layer (https://arxiv.org/abs/2411.07501), in its low-rank form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.checks import require_positive
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class Laurel:
    """A branch beside the mixer, `x + norm(right(left(x)))` of the tokens that the mixer gets (Gemma 3n).

    Attributes:
        rank: The width between its two projections.
        norm: The norm of what they put out.
    """

    name: ClassVar[str] = "laurel"

    rank: int
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "rank")

    @property
    def axes(self) -> Mapping[str, int]:
        """The rank."""
        return {"laurel_rank": self.rank}

    @property
    def parameters(self) -> Mapping[str, str]:
        """Both projections, and the norm."""
        return {
            "linear_left.kernel": "laurel.left : embed laurel_rank",
            "linear_right.kernel": "laurel.right : laurel_rank embed",
            "norm.scale": "laurel.norm : embed",
        }
