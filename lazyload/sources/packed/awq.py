"""AWQ as AutoAWQ's GEMM form stores it: `X.qweight`, `X.qzeros` and `X.scales`, inputs first.

Codes and zero points have 4 bits and are packed along the outputs, eight a word, in the order 0 2 4 6 1 3 5 7
(https://github.com/casper-hansen/AutoAWQ, `awq/utils/packing_utils.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.sources.packed.bits import Integers
from lazyload.sources.packed.blocks import find_grid
from lazyload.sources.packed.grouped_integers import GroupedIntegers, ZeroPoints
from lazyload.sources.packed.packed import Packed
from lazyload.sources.packed.stored import FLOATS, WORDS, Stored

_BITS = 4
_IN_A_WORD = 32 // _BITS
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AWQ:
    """What `quantization_config` says.

    Attributes:
        group_size: How many inputs share a scale; None for all.
    """

    group_size: int | None

    @classmethod
    def read(cls, config: Fields) -> "AWQ":
        """Reads the config.

        Raises:
            ConfigError: A field is malformed.
            UnsupportedFormatError: The codes have other than 4 bits, or are in another order.
        """
        # Files of older releases of both programs say `w_bit` and `q_group_size`.
        bits = config.size("bits", config.size("w_bit", _BITS))
        form = config.get("version", config.get("format", config.get("checkpoint_format", "gemm"))).lower()
        if bits != _BITS or form != "gemm" or config.get("backend", "autoawq") == "llm-awq":
            raise UnsupportedFormatError(
                f"{config.where}: AWQ with bits = {bits}, version = {form!r} is not read; there is bits = 4, version = "
                "'gemm'. Use a repository in that form, or of the unpacked weights"
            )
        size = config.get("group_size", config.get("q_group_size", 128))
        if size != -1 and size <= 0:
            raise ConfigError(f"{config.where}: group_size = {size} must be positive, or -1 for one group")
        return cls(None if size == -1 else size)

    def find(self, stored: Stored) -> Mapping[str, Packed]:
        """Every `X.qweight`, as `X.weight`."""
        modules = [name.removesuffix(".qweight") for name in stored.tensors if name.endswith(".qweight")]
        return {f"{module}.weight": self._packed(module, stored) for module in modules}

    def _packed(self, module: str, stored: Stored) -> GroupedIntegers:
        weight, field = f"{module}.qweight", f"quantization_config: group_size = {self.group_size or -1}"
        words = stored.need(weight, WORDS, weight, field)
        if len(words) != 2:
            raise CorruptSourceError(
                f"{stored.where}: {stored.shown(weight)} is no matrix packed along its outputs ({field})"
            )
        shape = (words[0], words[1] * _IN_A_WORD)
        size = self.group_size or max(1, shape[0])
        stored.require_divides(size, shape[0], weight, field)
        zeros = Integers(f"{module}.qzeros", (shape[0] // size, shape[1]), _BITS, 1, _ORDER)
        stored.need(zeros.tensor, WORDS, weight, field)
        stored.require_shape(zeros.tensor, zeros.stored_shape, weight, field)
        scales = find_grid(stored, f"{module}.scales", weight, shape, [(size, 1)], FLOATS, field)
        return GroupedIntegers(Integers(weight, shape, _BITS, 1, _ORDER), 0, scales, ZeroPoints(zeros))
