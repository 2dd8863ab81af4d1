"""What a user adds without editing the package: a family, a layout, a module of one's own."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from support.decoders import run

import lazyload
from lazyload import errors, families
from lazyload.models.fill import fill

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("own_model", EXAMPLES / "own_model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def llama(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example.write_small_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def own(example: ModuleType, llama: Path) -> Path:
    return example.write_own_checkpoint(llama, llama.parent / "own")


@pytest.fixture(autouse=True)
def _nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_families", dict(families._families))


def test_a_module_of_one_s_own(example: ModuleType, llama: Path, tmp_path: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    module = lazyload.from_pretrained(llama, layout=example.BIGRAMS, cache_dir=tmp_path, mesh=mesh)
    assert run(module, jnp.array([[1, 2]])).shape == (1, 2, 1024)
    assert module.head.kernel[...].sharding.spec == jax.sharding.PartitionSpec("fsdp", "tp")
    specs = nnx.get_partition_spec(nnx.state(module))
    assert jax.tree.leaves(specs["head"]) == [jax.sharding.PartitionSpec("fsdp", "tp")]
    plan = lazyload.plan(llama, layout=example.BIGRAMS, cache_dir=tmp_path)
    assert plan.hit
    assert len(plan.parameters) == 3
    assert len(plan.skipped) == 4 * 9


def test_a_family_is_given_or_registered(example: ModuleType, llama: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UnknownArchitectureError, match="'own'"):
        lazyload.from_pretrained(own, cache_dir=tmp_path)
    tokens = jnp.array([[5, 6, 7]])
    expected, _ = run(lazyload.from_pretrained(llama, cache_dir=tmp_path), tokens)
    given, _ = run(lazyload.from_pretrained(own, cache_dir=tmp_path, family=example.OWN), tokens)
    lazyload.register(example.OWN)
    registered, _ = run(lazyload.from_pretrained(own, cache_dir=tmp_path), tokens)
    assert lazyload.last_report().hit
    np.testing.assert_array_equal(given, expected)
    np.testing.assert_array_equal(registered, expected)


def test_a_family_registered_later_wins(example: ModuleType) -> None:
    mine = lazyload.Family("mine", ("llama",), example.own_config, example.own_names)
    lazyload.register(mine)
    assert families.find({"model_type": "llama"}) is mine


def test_a_changed_table_is_another_key(example: ModuleType, llama: Path, tmp_path: Path) -> None:
    entries = dict(example.BIGRAMS.layout.tables[0].lines)
    other = lazyload.Layout(
        entries | {"head.kernel": "lm_head : vocab embed"}, name="bigrams", skipped=["model.layers.*"]
    )
    keys = [lazyload.plan(llama, layout=layout, cache_dir=tmp_path).key for layout in (example.BIGRAMS, other)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("head : vocab embed", "wants head"),
        ("lm_head : vocab width", "unknown axis 'width'"),
        ("lm_head : (vocab embed", r"'\(' without '\)'"),
        ("lm_head : vocab", "lm_head"),
        ("lm_head vocab embed", "lm_head vocab embed"),
        ("lm_head : vocab embed ; twice", "twice"),
    ],
)
def test_a_mistake_in_a_table_is_explained(llama: Path, tmp_path: Path, entry: str, complaint: str) -> None:
    with pytest.raises(errors.LayoutError, match=complaint):
        lazyload.convert(llama, layout=lazyload.Layout({"head": entry}, skipped=["*"]), cache_dir=tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))


def test_tensors_that_a_layout_forgets_are_all_named(llama: Path, tmp_path: Path) -> None:
    layout = lazyload.Layout({"head": "lm_head : vocab embed"}, skipped=["model.layers.*"])
    with pytest.raises(errors.TensorMismatchError) as caught:
        lazyload.convert(llama, layout=layout, cache_dir=tmp_path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "model.embed_tokens.weight",
        "model.norm.weight",
    ]


def test_filling_reports_every_problem() -> None:
    module = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(errors.TensorMismatchError) as caught:
        fill(module, {"kernel": jnp.ones((3, 2)), "scale": jnp.ones(3)})
    assert len(caught.value.problems) == 3
