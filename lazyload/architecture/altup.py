"""AltUp, alternating updates (https://arxiv.org/abs/2301.13310): a residual stream of several, of which layers see one.

The decoder makes the streams from the tokens' embeddings, and one of them again at the end (`AltUpStreams`). Each layer
predicts what the streams will be, lets its blocks work on the active one, and corrects all of them by how far the
prediction was off (`AltUp`). Gemma 3n has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.checks import require, require_positive
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class AltUp:
    """What a layer does with the streams around its blocks.

    Attributes:
        num_streams: Streams.
        active: The one that the layer's blocks work on.
        scaled: Whether the active stream has a learned scale where the layer's own input is made of it.
        norm: The norm of what decides how streams are mixed.
    """

    name: ClassVar[str] = "altup"

    num_streams: int
    active: int = 0
    scaled: bool = True
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_streams")
        require(
            0 <= self.active < self.num_streams, self, f"active = {self.active} is none of {self.num_streams} streams"
        )

    @property
    def axes(self) -> Mapping[str, int]:
        """The streams, as what is read and what is written; and as many ways in which they are mixed."""
        return {"stream": self.num_streams, "stream_read": self.num_streams, "modality": self.num_streams}

    @property
    def parameters(self) -> Mapping[str, str]:
        """What decides between the ways of mixing, the mixtures of each way, the active stream's scale."""
        table = {
            "router_norm.scale": "altup.router_norm : embed",
            "modality_router.kernel": "altup.router : embed modality",
            "prediction_coefs.kernel": "altup.prediction : modality stream stream_read",
            "correction_coefs.kernel": "altup.correction : modality stream",
        }
        return table | {"output_scale": "altup.output_scale : embed"} if self.scaled else table


@dataclass(frozen=True, kw_only=True)
class AltUpStreams:
    """The first stream is the embedding, the others are projections of it; at the end all are projected and averaged.

    Attributes:
        num_streams: Streams.
        embed_dim: Their width.
    """

    name: ClassVar[str] = "streams"

    num_streams: int
    embed_dim: int

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_streams", "embed_dim")
        require(self.num_streams > 1, self, "one stream is a residual stream without AltUp")

    @property
    def axes(self) -> Mapping[str, int]:
        """The streams but the first, and the width of one."""
        return {"further_stream": self.num_streams - 1, "stream_embed": self.embed_dim}

    @property
    def parameters(self) -> Mapping[str, str]:
        """The projections, one a stream."""
        return {
            "split.kernel": "altup.split : further_stream embed stream_embed",
            "join.kernel": "altup.join : further_stream stream_embed embed",
        }
