"""Runs a program of MaxText's RL where vLLM is not installed: `without_vllm.py PROGRAM ARGUMENTS...`.

vLLM generates the answers that are trained on. Here they are random tokens; all else is MaxText's and Tunix's own.
"""

import importlib
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tunix.rl.rollout import base_rollout


class RandomRollout(base_rollout.BaseRollout):  # type: ignore[misc]
    """In the place of MaxText's own around vLLM."""

    mesh = None

    def __init__(self, rollout_actor: Any, tokenizer: Any, mesh: Any, rollout_config: Any, **further: Any):
        self._model, self._tokenizer, self._random = rollout_actor, tokenizer, np.random.default_rng(0)

    def generate(self, prompts: Any, rollout_config: Any, **further: Any) -> Any:
        answers = [
            self._random.integers(4, 300, rollout_config.max_tokens_to_generate).astype(np.int32) for _ in prompts
        ]
        length = rollout_config.max_prompt_length
        asked = np.full((len(prompts), length), self.pad_id(), np.int32)
        for row, prompt in zip(asked, prompts, strict=True):
            tokens = self._tokenizer.encode(str(prompt))[-length:]
            row[length - len(tokens) :] = tokens
        return base_rollout.RolloutOutput(
            text=[self._tokenizer.decode(list(answer)) for answer in answers],
            logits=None,
            tokens=answers,
            left_padded_prompt_tokens=asked,
            logprobs=None,
        )

    def get_per_token_logps(self, prompt_tokens: Any, completion_tokens: Any) -> Any:
        return jnp.zeros(completion_tokens.shape, jnp.float32)

    def update_params(self, params: Any, filter_types: Any = None) -> None:
        """vLLM would take the weights over."""

    def pad_id(self) -> int:
        return int(self._tokenizer.pad_id())

    def eos_id(self) -> int:
        return int(self._tokenizer.eos_id())

    def model(self) -> Any:
        return self._model


def module(name: str, **attributes: Any) -> None:
    """A module with nothing but these attributes."""
    made = types.ModuleType(name)
    vars(made).update(attributes)
    sys.modules[name] = made
    package, _, last = name.rpartition(".")
    if package:
        setattr(importlib.import_module(package), last, made)


if __name__ == "__main__":
    module("vllm", SamplingParams=object)
    module("maxtext.integration.vllm.maxtext_vllm_adapter", register=lambda *_: None)
    module("maxtext.integration.vllm.maxtext_vllm_rollout", MaxTextVllmRollout=RandomRollout)
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
