"""What stands where the output projection would, in models that score texts instead of predicting tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lazyload.architecture.checks import require_one_of, require_positive
from lazyload.display.values import differing_fields

NAMES = ("score", "v_head")


@dataclass(frozen=True, kw_only=True)
class ScoreHead:
    """A linear map of each token's vector to its scores.

    Attributes:
        name: The attribute of the decoder's module: `"score"`, as in transformers' models for the classification of
            sequences, or `"v_head"`, as in TRL's models with a value head.
        size: How many scores a token gets; one in reward and value models.
        bias: Whether there is a bias.
    """

    name: Literal["score", "v_head"] = "score"
    size: int = 1
    bias: bool = False

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_one_of(self, "name", NAMES)
        require_positive(self, "size")

    @property
    def axes(self) -> Mapping[str, int]:
        """The sizes of its axes."""
        return {"label": self.size}

    @property
    def parameters(self) -> Mapping[str, str]:
        """The table of its parameters, as whole paths."""
        table = {f"{self.name}.kernel": f"{self.name} : embed label"}
        return table | {f"{self.name}.bias": f"{self.name}.bias : label"} if self.bias else table
