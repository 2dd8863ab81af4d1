"""MaxText's checkpoints as layouts: the tables of the families that MaxText has a converter for.

Where roles lie is what MaxText's own `checkpoint_conversion/utils/param_mapping.py` says, and its `to_maxtext` saves. A
family's tables are in the module that bears its name, or that of the family before it; `tree` is what all share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lazyload.architecture import DecoderConfig
from lazyload.errors import LayoutError
from lazyload.formats.maxtext.deepseek import deepseek
from lazyload.formats.maxtext.deepseek_v4 import deepseek_v4
from lazyload.formats.maxtext.gemma import gemma2, gemma3
from lazyload.formats.maxtext.gemma4 import gemma4
from lazyload.formats.maxtext.gpt_oss import gpt_oss
from lazyload.formats.maxtext.llama import llama, mistral, mixtral
from lazyload.formats.maxtext.llama4 import llama4
from lazyload.formats.maxtext.olmo import olmo3
from lazyload.formats.maxtext.qwen import qwen, qwen3_vl_moe
from lazyload.formats.maxtext.qwen3_next import qwen3_5_moe, qwen3_next
from lazyload.formats.maxtext.tree import layout_name
from lazyload.formats.target import Target, nested
from lazyload.layouts.layout import Layout

_TABLES: Mapping[str, Callable[[DecoderConfig, bool, int | None], Layout]] = {
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "deepseek_v32": deepseek,
    "deepseek_v4": deepseek_v4,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "gpt_oss": gpt_oss,
    "kimi_k2": deepseek,
    "llama": llama,
    "llama4": llama4,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo3": olmo3,
    "qwen2": qwen,
    "qwen3": qwen,
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_moe": qwen,
    "qwen3_next": qwen3_next,
    "qwen3_vl": qwen,
    "qwen3_vl_moe": qwen3_vl_moe,
}
"""By the name of the family."""


@dataclass(frozen=True)
class MaxText:
    """The parameter tree of a MaxText model, as its own converter saves it.

    Attributes:
        scan_layers: Whether layers are stacked, as MaxText's setting of that name says.
        vocab_size: MaxText's `vocab_size` where it is larger than the model's: rows of zeros fill the embedding, and
            columns of zeros the output projection. None for the model's own.
    """

    scan_layers: bool = True
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        size = self.vocab_size
        if not isinstance(self.scan_layers, bool) or isinstance(size, bool) or not isinstance(size, int | None):
            raise LayoutError(f"{self!r}: give scan_layers=True or False, and a number or None as vocab_size")

    @property
    def name(self) -> str:
        """What messages and keys call the layout."""
        return layout_name(self.scan_layers)

    def target(self, family: str, config: DecoderConfig) -> Target[dict[str, Any]]:
        """The checkpoint of one model: the tree as MaxText's loaders look for it.

        The tree is the item `items` of a composite checkpoint, whose metadata is the only one in which MaxText looks
        `scan_layers` up; `step` is what it restores training from.

        Args:
            family: The name of the model's family.
            config: What its `config.json` means.

        Raises:
            LayoutError: There is no such checkpoint; see `layout`.
        """
        return Target(
            self.layout(family, config),
            nested,
            metadata={"scan_layers": self.scan_layers},
            scalars={"step": 0},
            item="items",
        )

    def layout(self, family: str, config: DecoderConfig) -> Layout:
        """The layout of one model.

        Args:
            family: The name of the model's family.
            config: What its `config.json` means.

        Raises:
            LayoutError: MaxText has no converter for the family, cannot scan its layers as they are, or is to have a
                smaller vocabulary than the model has.
        """
        if family not in _TABLES:
            names = ", ".join(sorted(_TABLES))
            raise LayoutError(f"family {family!r} has no MaxText layout; these have one: {names}")
        if self.vocab_size is not None and self.vocab_size < config.vocab_size:
            raise LayoutError(
                f"MaxText(vocab_size={self.vocab_size}): the model has {config.vocab_size} rows of embeddings, none of "
                f"which can be left out; give at least {config.vocab_size}, or None for just these"
            )
        return _TABLES[family](config, self.scan_layers, self.vocab_size)


def families() -> tuple[str, ...]:
    """The names of the families that have a MaxText layout."""
    return tuple(sorted(_TABLES))


def layers_in_one(family: str) -> int:
    """How many of a model's layers one of MaxText's layers is."""
    return 2 if family == "gemma2" else 1
