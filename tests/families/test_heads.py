"""Models that score texts: transformers' classes for the classification of sequences, and TRL's value heads."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import checkpoints

import lazyload
from lazyload.architecture import ScoreHead

TOKENS = (np.arange(24).reshape(2, 12) * 7 % 97).astype(np.int32)
VALUE_HEAD = {"architectures": ["AutoModelForCausalLMWithValueHead"]}


def load(folder, **options):
    return lazyload.from_pretrained(folder, dtype="float32", progress=False, **options)


def scores(model):
    return np.asarray(nnx.jit(lambda model: model(TOKENS)[0])(model))


def test_a_classifier_of_transformers_scores_as_there(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Qwen3Config(**sizes, **heads, num_labels=3, tie_word_embeddings=True, pad_token_id=96)
    theirs = transformers.Qwen3ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        expected = theirs.score(theirs.model(torch.from_numpy(TOKENS).long()).last_hidden_state).numpy()
    model = load(tmp_path / "classifier")
    assert model.config.head == ScoreHead(name="score", size=3)
    assert model.score.kernel.shape == (32, 3)
    np.testing.assert_allclose(scores(model), expected, atol=1e-5)
    # What was not saved with it is not needed, and what is there of another head is not read.
    assert not hasattr(model, "lm_head")


def rewritten(folder, change):
    """The tensors of a checkpoint as `change` returns them, in one file."""
    stored = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    tensors = change(stored)
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.fixture(scope="module")
def with_value_head(tmp_path_factory):
    """A language model beside whose output projection there is a value head, as TRL saves it."""
    folder = checkpoints.make("llama3", tmp_path_factory.mktemp("value"))
    weight = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": np.array([0.5], np.float32)}
    return folder, rewritten(folder, lambda tensors: tensors | head)


def test_a_value_head_is_loaded_where_its_class_is_named(with_value_head):
    folder, tensors = with_value_head
    with jax.default_matmul_precision("highest"):
        policy = load(folder, layers=range(1))
        value = load(folder, layers=range(1), config=VALUE_HEAD)
    assert policy.config.head is None
    hidden, _ = nnx.jit(lambda model: model(TOKENS, skip_lm_head=True))(policy)
    expected = hidden @ tensors["v_head.summary.weight"].T + 0.5
    assert scores(value).shape == (2, 12, 1)
    np.testing.assert_allclose(scores(value), expected, atol=1e-4)


def test_maxtext_has_no_place_for_a_head_that_scores(with_value_head):
    with pytest.raises(lazyload.errors.LayoutError, match="the model scores texts"):
        lazyload.plan(with_value_head[0], layout=lazyload.MaxText(), config=VALUE_HEAD)


def test_the_plan_of_a_classifier_has_its_head(tmp_path):
    folder = checkpoints.make("llama3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    rewritten(folder, lambda tensors: tensors | {"score.weight": tensors.pop("lm_head.weight")[:1].copy()})
    plan = lazyload.plan(folder)
    assert plan.parameters["score.kernel"].shape == (64, 1)
    assert "lm_head.kernel" not in plan.parameters
