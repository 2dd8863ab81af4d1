"""The families of models: what `config.json` and the names of tensors mean in each.

A family of your own is a `Family` given to `register`; a family that is registered later wins.
"""

from collections.abc import Mapping
from typing import Any

from lazyload.errors import ArgumentError, ConfigError, UnknownArchitectureError
from lazyload.families import (
    apertus,
    arcee,
    cohere2,
    deepseek,
    deepseek_sparse,
    deepseek_v4,
    ernie,
    exaone4,
    gemma,
    gemma3n,
    gemma4,
    glm,
    gpt_oss,
    granite,
    granite_hybrid,
    hunyuan,
    llama,
    llama4,
    minimax_m2,
    mistral3,
    mixtral,
    nemotron_h,
    olmo,
    olmoe,
    phi,
    phimoe,
    qwen,
    qwen2_moe,
    qwen3_5,
    qwen3_next,
    qwen3_vl,
    seed_oss,
    smollm,
)
from lazyload.families.family import Family

__all__ = ["Family", "find", "known", "register"]

_families: dict[str, Family] = {}


def register(family: Family) -> None:
    """Makes a family known, in place of the ones that read the same values of `model_type`.

    Raises:
        ArgumentError: It is none.
    """
    if not isinstance(family, Family):
        raise ArgumentError(f"{family!r:.200} is no lazyload.Family")
    _families.update(dict.fromkeys(family.model_types, family))


def known() -> tuple[Family, ...]:
    """The families that `find` chooses from."""
    return tuple(dict.fromkeys(_families.values()))


def find(config: Mapping[str, Any]) -> Family:
    """The family of a model.

    Args:
        config: Its parsed `config.json`.

    Raises:
        ConfigError: It has no `model_type`.
        UnknownArchitectureError: No family reads its `model_type`.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError("config.json has no model_type, which says what kind of model it is")
    if kind not in _families:
        raise UnknownArchitectureError(
            f"config.json: no family reads model_type = {kind!r}; known are {', '.join(sorted(_families))}. "
            "Describe the architecture with a lazyload.Family of your own"
        )
    return _families[kind]


for _family in (
    llama.LLAMA,
    llama4.LLAMA4,
    llama.MISTRAL,
    mistral3.MINISTRAL3,
    mistral3.MISTRAL3,
    qwen.QWEN2,
    qwen.QWEN3,
    qwen.QWEN3_MOE,
    qwen3_next.QWEN3_NEXT,
    qwen3_5.QWEN3_5,
    qwen3_5.QWEN3_5_MOE,
    qwen3_vl.QWEN3_VL,
    qwen3_vl.QWEN3_VL_MOE,
    mixtral.MIXTRAL,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    gemma3n.GEMMA3N,
    gemma4.GEMMA4,
    phi.PHI3,
    olmo.OLMO2,
    olmo.OLMO3,
    smollm.SMOLLM3,
    granite.GRANITE,
    granite_hybrid.GRANITE_HYBRID,
    nemotron_h.NEMOTRON_H,
    glm.GLM4,
    glm.GLM4_MOE,
    gpt_oss.GPT_OSS,
    deepseek.DEEPSEEK_V2,
    deepseek.DEEPSEEK_V3,
    deepseek.KIMI,
    deepseek_sparse.DEEPSEEK_V32,
    deepseek_sparse.GLM_MOE_DSA,
    deepseek_v4.DEEPSEEK_V4,
    cohere2.COHERE2,
    exaone4.EXAONE4,
    seed_oss.SEED_OSS,
    hunyuan.HUNYUAN_DENSE,
    arcee.ARCEE,
    apertus.APERTUS,
    olmoe.OLMOE,
    qwen2_moe.QWEN2_MOE,
    minimax_m2.MINIMAX_M2,
    ernie.ERNIE4_5,
    ernie.ERNIE4_5_MOE,
    phimoe.PHIMOE,
):
    register(_family)
