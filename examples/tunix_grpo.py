"""GRPO with Tunix's trainer and sampler: a small model learns to write even tokens.

    pip install google-tunix
    python examples/tunix_grpo.py [--steps 24]

The policy and the reference are loaded by `lazyload.from_pretrained` and given to Tunix as they are. Weights are stored
in float32, so that small updates are not lost, and computed with in bfloat16. To try a mesh on a machine without
accelerators: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from quickstart import write_small_llama
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

import lazyload

PROMPTS_A_STEP = 4
ANSWERS_A_PROMPT = 4


class Numbers:
    """A tokenizer whose words are the tokens' numbers."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(str(int(number)) for number in ids)

    def pad_id(self) -> int:
        return 0

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        rewards = train(pathlib.Path(folder), steps)
    tenth = max(1, steps // 6)
    first, last = np.mean(rewards[:tenth]), np.mean(rewards[-tenth:])
    print(f"share of even tokens: {first:.2f} in the first {tenth} steps, {last:.2f} in the last {tenth}")
    if steps >= 24 and last < first + 0.2:
        raise SystemExit("the reward has not risen")


def train(folder: pathlib.Path, steps: int) -> list[float]:
    """Runs the trainer; the mean reward of each step."""
    # Tunix's trainers are for axes that the compiler splits over.
    mesh = jax.make_mesh((jax.device_count(), 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    source = write_small_llama(folder / "small-llama")

    def load() -> nnx.Module:
        return lazyload.from_pretrained(
            source, mesh=mesh, dtype="float32", compute_dtype="bfloat16", cache_dir=folder / "cache"
        )

    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh),
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-3),
            eval_every_n_steps=steps + 1,
            max_steps=steps,
            mini_batch_size=PROMPTS_A_STEP,
            train_micro_batch_size=PROMPTS_A_STEP,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=8, max_prompt_length=8, kv_cache_size=16, temperature=1.0, top_p=1.0
        ),
    )
    cluster = rl_cluster.RLCluster(actor=load(), reference=load(), tokenizer=Numbers(), cluster_config=config)
    rewards: list[float] = []

    def share_of_even_tokens(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        answers = [Numbers().encode(completion) for completion in completions]
        found = [float(np.mean([number % 2 == 0 for number in answer])) if answer else 0.0 for answer in answers]
        rewards.append(float(np.mean(found)))
        return found

    learner = GRPOLearner(cluster, GRPOConfig(num_generations=ANSWERS_A_PROMPT, beta=0.01), share_of_even_tokens)
    random = np.random.default_rng(0)
    prompts = random.integers(3, 1024, (steps, PROMPTS_A_STEP, 4))
    learner.train([{"prompts": np.array([" ".join(map(str, prompt)) for prompt in batch])} for batch in prompts])
    return rewards


if __name__ == "__main__":
    main()
