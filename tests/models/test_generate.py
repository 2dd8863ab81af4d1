"""`lazyload.generate` says what transformers says, whatever the padding, the mesh and the end of a sequence."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from support import checkpoints
from support.decoders import CONFIGS, build, weights

import lazyload
from lazyload.architecture import Mamba2, ScoreHead
from lazyload.errors import ArgumentError, InputError
from lazyload.models.sampling import choose

PROMPTS = np.array([[5, 9, 3, 7, 22, 4], [0, 0, 8, 1, 30, 2]], np.int32)


def model_of(kind: str) -> lazyload.Decoder:
    config = CONFIGS[kind]
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


@pytest.fixture(scope="module")
def plain() -> lazyload.Decoder:
    return model_of("plain")


def one_by_one(model: lazyload.Decoder, prompts: list[np.ndarray], count: int) -> list[list[int]]:
    """The likeliest tokens, each from the whole sequence before it, without padding and without a cache."""
    length = max(map(len, prompts)) + count
    forward = nnx.jit(lambda model, tokens: jnp.argmax(model(tokens)[0], axis=-1))
    continued = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(count):
            whole = np.array([tokens + [0] * (length - len(tokens))])
            tokens.append(int(forward(model, jnp.asarray(whole))[0, len(tokens) - 1]))
        continued.append(tokens[len(prompt) :])
    return continued


@pytest.mark.parametrize("kind", ["plain", "gemma4", "granite4", "llama4"])
def test_padded_prompts_are_continued_as_if_each_were_alone(kind: str) -> None:
    model = model_of(kind)
    made = np.asarray(lazyload.generate(model, PROMPTS, 5, pad=0))
    np.testing.assert_array_equal(made[:, :6], PROMPTS)
    assert made[:, 6:].tolist() == one_by_one(model, [PROMPTS[0], PROMPTS[1, 2:]], 5)


def test_padding_is_no_part_of_states_without_slots() -> None:
    config = replace(CONFIGS["granite4"], layers=CONFIGS["granite4"].layers[:1])
    assert isinstance(config.layers[0].mixer, Mamba2)
    model = build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})
    made = np.asarray(lazyload.generate(model, PROMPTS, 3, pad=0))
    assert made[:, 6:].tolist() == one_by_one(model, [PROMPTS[0], PROMPTS[1, 2:]], 3)


def test_a_model_that_scores_predicts_nothing() -> None:
    config = replace(CONFIGS["plain"], head=ScoreHead(size=1))
    model = build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})
    with pytest.raises(InputError, match="scores tokens"):
        lazyload.generate(model, PROMPTS, 3)


class Counting(nnx.Module):
    """Says that the next token is the next position."""

    def __init__(self) -> None:
        self.config = CONFIGS["plain"]
        self.embed = nnx.Embed(64, 1, rngs=nnx.Rngs(0))

    def init_cache(self, *_: object) -> dict[str, jax.Array]:
        return {}

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, cache: object, mask: object
    ) -> tuple[jax.Array, object]:
        return jax.nn.one_hot(positions + 1, 64), cache


def test_positions_begin_behind_the_padding() -> None:
    made = np.asarray(lazyload.generate(Counting(), PROMPTS, 4, pad=0))
    assert made[:, 6:].tolist() == [[6, 7, 8, 9], [4, 5, 6, 7]]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(axis_type: AxisType, plain: lazyload.Decoder, tmp_path: Path) -> None:
    source = checkpoints.make("llama3", tmp_path)
    mesh = jax.make_mesh((2, 2), ("fsdp", "tp"), devices=jax.devices()[:4], axis_types=(axis_type,) * 2)
    alone = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    made = [
        np.asarray(
            lazyload.generate(lazyload.from_pretrained(source, mesh=each, dtype="float32"), PROMPTS, 4, pad=0)
        ).tolist()
        for each in (alone, mesh)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["llama3", "gemma3_text", "qwen3_next"])
def test_the_likeliest_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", minversion="5.24")
    source = checkpoints.make(name, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    prompts, mask = torch.tensor(PROMPTS).long(), torch.tensor(PROMPTS != 0).long()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    free = theirs.generate(prompts, attention_mask=mask, eos_token_id=None, **options).numpy()
    eos = int(free[0, 8])
    ended = theirs.generate(prompts, attention_mask=mask, eos_token_id=eos, **options).numpy()
    mesh = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    model = lazyload.from_pretrained(source, mesh=mesh, dtype="float32", cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(lazyload.generate(model, PROMPTS, 8, pad=0), free)
    np.testing.assert_array_equal(lazyload.generate(model, PROMPTS, 8, pad=0, eos=eos), ended)


def test_the_loop_ends_when_all_sequences_have_ended(plain: lazyload.Decoder) -> None:
    free = np.asarray(lazyload.generate(plain, PROMPTS, 6, pad=0))[:, 6:]
    ends = [int(free[0, 2]), int(free[1, 1])]
    made = np.asarray(lazyload.generate(plain, PROMPTS, 6, pad=0, eos=ends))[:, 6:]
    stops = [next(n for n, token in enumerate(row) if token in ends) for row in free]
    assert made.shape[1] == max(stops) + 1
    for row, whole, stop in zip(made, free, stops, strict=True):
        assert row[: stop + 1].tolist() == whole[: stop + 1].tolist()
        assert set(row[stop + 1 :].tolist()) <= {0}


def test_what_is_drawn_has_the_distribution_that_is_asked_for() -> None:
    logits = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    many = jnp.broadcast_to(logits, (40_000, 5))

    def shares(**options: float | None) -> np.ndarray:
        given = {"temperature": 1.0, "top_k": None, "top_p": None} | options
        drawn = choose(many, jax.random.key(3), **given)
        return np.bincount(np.asarray(drawn), minlength=5) / len(many)

    np.testing.assert_allclose(shares(), [0.4, 0.3, 0.15, 0.1, 0.05], atol=0.01)
    np.testing.assert_allclose(shares(top_k=2), [4 / 7, 3 / 7, 0, 0, 0], atol=0.01)
    np.testing.assert_allclose(shares(top_p=0.75), [8 / 17, 6 / 17, 3 / 17, 0, 0], atol=0.01)
    np.testing.assert_allclose(shares(top_p=0.01), [1, 0, 0, 0, 0])
    squared = np.array([0.4, 0.3, 0.15, 0.1, 0.05]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squared / squared.sum(), atol=0.01)


def test_the_same_key_draws_the_same_tokens(plain: lazyload.Decoder) -> None:
    first, again, other = (
        np.asarray(lazyload.generate(plain, PROMPTS, 8, temperature=2.0, key=key, pad=0)).tolist()
        for key in (1, jax.random.key(1), 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": [1, 2]}, InputError, r"give whole numbers \[batch, length\]"),
        ({"tokens": [[1, 2], [3]]}, InputError, "pad shorter ones on the left"),
        ({"tokens": [[1, 64]]}, InputError, "the tokens 0 to 63"),
        ({"max_new_tokens": 0}, ArgumentError, "max_new_tokens=0"),
        ({"temperature": 1.0}, ArgumentError, "give key="),
        ({"temperature": -1.0, "key": 0}, ArgumentError, "temperature=-1.0"),
        ({"top_k": 3}, ArgumentError, "give temperature="),
        ({"temperature": 1.0, "key": 0, "top_k": 0}, ArgumentError, "top_k=0"),
        ({"temperature": 1.0, "key": 0, "top_p": 1.5}, ArgumentError, "top_p=1.5"),
        ({"eos": 64}, ArgumentError, "eos=64"),
        ({"pad": -5}, ArgumentError, "pad=-5"),
        ({"pad": "0"}, ArgumentError, "pad='0'"),
        ({"temperature": 1.0, "key": "x"}, ArgumentError, "key='x'"),
        ({"tokens": [[1, 2], [3, 4]], "attention_mask": [[1], [1, 1]]}, InputError, "rows differ in length"),
        ({"tokens": [[1, 2, 0]], "attention_mask": [[1, 1, 0]]}, InputError, "pad them on the left"),
        ({"tokens": [[1, 2]], "attention_mask": [[1]]}, InputError, "attention_mask has shape"),
        ({"tokens": [[0, 0]], "pad": 0}, InputError, "nothing but padding"),
    ],
)
def test_what_is_refused(plain: lazyload.Decoder, changes: dict, error: type[Exception], message: str) -> None:
    arguments = {"tokens": [[1, 2, 3]], "max_new_tokens": 2} | changes
    with pytest.raises(error, match=message):
        lazyload.generate(plain, **arguments)
