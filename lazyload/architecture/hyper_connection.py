"""Hyper-connections: a residual stream that is several side by side (https://arxiv.org/abs/2512.24880).

Every block reads one mixture of the streams; what it puts out is added to each of them with a weight of its own, while
the streams are mixed among each other by a matrix that is almost doubly stochastic. All weights follow from the token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.checks import require, require_positive
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class HyperConnection:
    """How a block reads the streams and is added to them (DeepSeek V4).

    Attributes:
        num_streams: How many streams there are.
        num_iterations: How often the mixing matrix is divided by its sums, to become almost doubly stochastic.
        eps: Added to weights and to sums.
        norm: The bare norm over all streams, which the weights are computed after.
    """

    num_streams: int
    num_iterations: int = 20
    eps: float = 1e-6
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_streams", "num_iterations")
        require(self.eps > 0, self, f"eps = {self.eps!r} must be positive")

    @property
    def axes(self) -> Mapping[str, int]:
        """The streams: those of the token, by what a weight is for, and of each pair that the matrix mixes."""
        names = ("stream", "pre_stream", "post_stream", "from_stream", "to_stream")
        return {**dict.fromkeys(names, self.num_streams), "one": 1}

    def parameters(self, role: str) -> Mapping[str, str]:
        """The table of the parameters of one such connection; all stay in float32, in which the weights are computed.

        Args:
            role: What their roles begin with.
        """
        outputs = {"pre": "pre_stream", "post": "post_stream", "comb": "from_stream to_stream"}
        return {path: entry for name, axes in outputs.items() for path, entry in _weight(role, name, axes).items()}


@dataclass(frozen=True, kw_only=True)
class HyperStreams:
    """All streams are the embedding at first; in the end their sum, weighted by what the token says, is one.

    Attributes:
        num_streams: How many streams there are.
        eps: Added to the weights.
        norm: The bare norm over all streams, which the weights are computed after.
    """

    name: ClassVar[str] = "streams"

    num_streams: int
    eps: float = 1e-6
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_streams")
        require(self.eps > 0, self, f"eps = {self.eps!r} must be positive")

    @property
    def axes(self) -> Mapping[str, int]:
        """The streams, and the weights for them."""
        return {"stream": self.num_streams, "pre_stream": self.num_streams, "one": 1}

    @property
    def parameters(self) -> Mapping[str, str]:
        """What the weights are computed with; see `HyperConnection`."""
        return _weight("hyper_head", "pre", "pre_stream")


def _weight(role: str, name: str, axes: str) -> dict[str, str]:
    """A linear map from all streams, what it is scaled with, and what is added."""
    return {
        f"{name}.kernel": f"{role}.{name} : stream embed {axes} ; as float32",
        f"{name}.scale": f"{role}.{name}.scale : one ; as float32",
        f"{name}.bias": f"{role}.{name}.bias : {axes} ; as float32",
    }
