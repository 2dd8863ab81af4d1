"""Tunix's own trainers, not a line of them changed, train the decoder.

Needs Tunix (Python 3.12): `.ci/tunix.txt`.
"""

import dataclasses
import inspect
import os
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from support import checkpoints

import lazyload

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tunix", reason="Tunix is not installed")
# Tunix and what it imports use much that is deprecated.
pytestmark = [pytest.mark.xdist_group("tunix"), pytest.mark.filterwarnings("ignore")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import optax
    import qwix
    from tunix.distillation import distillation_trainer, feature_extraction, strategies
    from tunix.generate import mappings
    from tunix.generate import utils as generate_utils
    from tunix.models.gemma4 import mapping_vllm_jax as gemma4
    from tunix.models.llama3 import model as llama3
    from tunix.models.qwen3 import model as qwen3
    from tunix.rl import common, reshard, rl_cluster
    from tunix.rl import utils as rl_utils
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.ppo import ppo_learner
    from tunix.rl.rollout import base_rollout
    from tunix.sft import checkpoint_manager, peft_trainer
    from tunix.sft import utils as sft_utils

TOKENS = (np.arange(16)[None] * 7 + np.arange(8)[:, None] % 3).astype(np.int32) + 3
MODULES = ".*q_proj|.*k_proj|.*v_proj|.*o_proj|.*gate_proj|.*up_proj|.*down_proj"
"""What Tunix's examples and command line say of its own models."""

PAD, EOS = 0, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tunix")


@pytest.fixture(scope="module")
def load(folder):
    """Two layers of a golden checkpoint, in float32, on a mesh."""

    def loaded(name="qwen3", mesh=None, **options):
        source = folder / name
        if not source.exists():
            checkpoints.make(name, folder)
        options = {"layers": range(2), "dtype": "float32", "progress": False} | options
        return lazyload.from_pretrained(source, mesh=mesh or automatic(), **options)

    return loaded


def automatic(shape=(4, 2), names=("fsdp", "tp"), devices=None) -> Mesh:
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def arrays(model, kind=nnx.Param):
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model, kind))}


def values(model, kind=nnx.Param):
    return {path: np.asarray(array) for path, array in arrays(model, kind).items() if isinstance(array, jax.Array)}


def moved(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


def logging(losses, log):
    """A trainer's `log`, which keeps the losses, too."""

    def logged(loss, *args, **kwargs):
        losses.append(float(np.mean(loss)))
        return log(loss, *args, **kwargs)

    return logged


def sft(model, mesh, *, steps=3, learning_rate=3e-3):
    """What `PeftTrainer` makes of a few steps: the losses, and the trainer."""
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1000, max_steps=steps, data_sharding_axis=(mesh.axis_names[0],)
    )
    trainer = peft_trainer.PeftTrainer(model, optax.adamw(learning_rate), config)
    trainer = trainer.with_gen_model_input_fn(
        lambda batch: {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": sft_utils.build_positions_from_mask(batch.input_mask),
            "attention_mask": sft_utils.make_causal_attn_mask(batch.input_mask),
        }
    )
    losses = []
    trainer._log_metrics = logging(losses, trainer._log_metrics)
    batch = peft_trainer.TrainingInput(input_tokens=TOKENS, input_mask=np.ones_like(TOKENS, bool))
    with mesh:
        trainer.train([batch] * steps)
    return losses, trainer


def test_sft_compiles_one_train_step_and_leaves_every_array_where_it_is(load, caplog):
    mesh = automatic()
    model = load(mesh=mesh)
    places = {path: array.sharding for path, array in arrays(model).items()}
    before = values(model)
    with jax.log_compiles():
        losses, _ = sft(model, mesh)
    assert losses[-1] < losses[0]
    assert moved(before, values(model)) == set(before)
    after = arrays(model)
    assert [path for path, place in places.items() if not after[path].sharding.is_equivalent_to(place, 8)] == []
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert sum("_train_step" in message for message in compiled) == 1


def with_lora(model, mesh, **options):
    provider = qwix.LoraProvider(module_path=MODULES, rank=4, alpha=8.0, **options)
    with mesh:
        adapted = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())
        return reshard.reshard_model_to_mesh(adapted, mesh)


@pytest.mark.parametrize("quantised", [None, "int8", "nf4"])
def test_lora_trains_its_own_parameters_and_no_other(load, quantised, folder, tmp_path):
    mesh = automatic()
    options = {} if quantised is None else {"weight_qtype": quantised, "tile_size": 16}
    model = with_lora(load(mesh=mesh), mesh, **options)
    adapters = arrays(model, nnx.LoRAParam)
    modules = {path.rpartition(".")[0].rpartition(".")[2] for path in adapters}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(adapters) == 2 * 2 * 7
    before = values(model)
    losses, _ = sft(model, mesh, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    changed = moved(before, values(model))
    assert changed
    assert changed <= {path for path in before if "lora" in path}
    with pytest.raises(lazyload.errors.InputError, match="LoRA's parameters" if quantised is None else "quantised"):
        lazyload.save_pretrained(model, tmp_path / "saved", like=folder / "qwen3")


def test_lora_on_explicit_axes(load):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Explicit,) * 2)
    model = load(mesh=mesh)
    provider = qwix.LoraProvider(module_path=MODULES, rank=4, alpha=8.0)
    with jax.set_mesh(mesh):
        adapted = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())
    assert len(arrays(adapted, nnx.LoRAParam)) == 2 * 2 * 7


class Words:
    """A tokenizer of 512 words, `w0` to `w511`."""

    def encode(self, text, **_):
        return [int(word[1:]) for word in str(text).split()]

    def decode(self, ids, **_):
        return " ".join(f"w{int(number)}" for number in ids)

    def bos_id(self):
        return 1

    def eos_id(self):
        return EOS

    def pad_id(self):
        return PAD


def share_of_even_words(prompts, completions, **_):
    numbers = [Words().encode(completion) for completion in completions]
    return [sum(number % 2 == 0 for number in one) / max(1, len(one)) for one in numbers]


def cluster(actor, reference, mesh, *, roles=(), critic=None, rollout_mesh=None, steps=2, **options):
    roles = {role: mesh for role in (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, *roles)}
    training = {"actor_optimizer": optax.adamw(1e-2), "eval_every_n_steps": 100, "max_steps": steps}
    config = rl_cluster.ClusterConfig(
        role_to_mesh={**roles, rl_cluster.Role.ROLLOUT: rollout_mesh or mesh},
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(
            critic_optimizer=None if critic is None else optax.adamw(1e-2),
            **{**training, "mini_batch_size": 4, "train_micro_batch_size": 4, **options},
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=6, max_prompt_length=8, kv_cache_size=16, temperature=1.0, top_p=1.0
        ),
    )
    models = {"actor": actor, "reference": reference} | ({} if critic is None else {"critic": critic})
    return rl_cluster.RLCluster(**models, tokenizer=Words(), cluster_config=config)


PROMPTS = [{"prompts": np.array([f"w{10 + i + j} w{20 + j} w{30 + i}" for j in range(4)])} for i in range(2)]


def grpo(load, actor=None, **options):
    mesh = automatic()
    reference = load(mesh=mesh)
    actor = load(mesh=mesh) if actor is None else actor(reference, mesh)
    before = values(actor)
    made = cluster(actor, reference, mesh, **options)
    config = grpo_learner.GRPOConfig(num_generations=2, num_iterations=1, beta=0.04)
    name = next(name for name in ("rl_cluster", "rl_engine") if name in signature(grpo_learner.GRPOLearner.__init__))
    learner = grpo_learner.GRPOLearner(**{name: made}, reward_fns=share_of_even_words, algo_config=config)
    learner.train(PROMPTS)
    trained, sampled = values(made.actor_trainer.model), values(made.rollout.model())
    # The sampler has the weights that were trained.
    for path in sampled:
        np.testing.assert_array_equal(trained[path], sampled[path])
    assert made.actor_trainer.train_steps == 2
    return moved(before, trained), set(before)


def signature(function):
    return inspect.signature(function).parameters


# Releases after 0.1.7 can compute log-probabilities in chunks of the sequence.
CHUNKED = (
    [{"compute_logps_chunk_size": 4}] if "compute_logps_chunk_size" in signature(peft_trainer.TrainingConfig) else []
)


@pytest.mark.parametrize("options", [{}, {"max_seq_token_per_tpu": 64}, *CHUNKED], ids=lambda o: next(iter(o), "plain"))
def test_grpo(load, options):
    changed, everything = grpo(load, **options)
    assert changed == everything


def test_grpo_with_lora(load):
    changed, everything = grpo(load, with_lora)
    assert changed
    assert changed <= {path for path in everything if "lora" in path}


def logps(model, prompts, completions, **options):
    """Log-probabilities as Tunix computes them for a trainer."""
    graphdef, state = nnx.split(model)
    return np.asarray(
        common.compute_per_token_logps(
            graphdef,
            state,
            prompt_tokens=jnp.asarray(prompts),
            completion_tokens=jnp.asarray(completions),
            pad_id=PAD,
            eos_id=EOS,
            **options,
        )
    )


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next", "granitemoehybrid"])
def test_log_probabilities_of_packed_sequences_are_those_of_each_alone(load, name):
    model = load(name, layers=None)
    packed = logps(
        model,
        np.zeros((4, 0), np.int32),
        TOKENS.reshape(4, 32),
        segment_ids=jnp.repeat(jnp.asarray([[1, 2]] * 4), 16, axis=1),
        segment_positions=jnp.tile(jnp.arange(16, dtype=jnp.int32), (4, 2)),
    )
    alone = logps(model, TOKENS[:, :1], TOKENS[:, 1:])
    np.testing.assert_allclose(packed.reshape(8, 16)[:, 1:], alone, atol=2e-4)


@pytest.mark.parametrize("name", ["qwen3", "llama3_tied"])
def test_ppo(load, name):
    mesh = automatic()
    actor, reference = load(name, mesh), load(name, mesh)
    critic = rl_utils.create_critic_model(actor)
    scores = common.compute_score(critic, TOKENS[:, :4], TOKENS[:, 4:], PAD, EOS)
    assert scores.shape == TOKENS.shape
    if name == "llama3_tied":
        return
    made = cluster(actor, reference, mesh, critic=critic, roles=[rl_cluster.Role.CRITIC])
    before = values(critic)
    learner = ppo_learner.PPOLearner(made, ppo_learner.PPOConfig(), reward_fns=share_of_even_words)
    learner.train(PROMPTS)
    assert moved(before, values(made.critic_trainer.model)) == set(before)


def test_a_model_goes_to_a_mesh_with_other_axes(load):
    model = load(layers=range(1))
    expected = np.asarray(nnx.jit(lambda model: model(TOKENS)[0])(model))
    other = automatic((2, 2), ("data", "model"), jax.devices()[4:])
    brought = lazyload.reshard(model, other)
    assert {array.sharding.mesh for array in arrays(brought).values()} == {other}
    np.testing.assert_allclose(nnx.jit(lambda model: model(TOKENS)[0])(brought), expected, atol=1e-5)
    # What Tunix does between the meshes of its roles.
    places = jax.tree.map(lambda array: array.sharding, nnx.state(brought))
    state = reshard.reshard_pytree(nnx.state(model), places)
    jax.tree.map(np.testing.assert_array_equal, state, nnx.state(model))
    assert jax.tree.map(lambda array: array.sharding, state) == places
    fewer = automatic((2, 1), devices=jax.devices()[:2])
    assert {array.sharding.mesh for array in arrays(reshard.reshard_model_to_mesh(model, fewer)).values()} == {fewer}


def test_checkpoints_are_saved_and_restored_in_place(load, tmp_path):
    model, other = load(layers=range(1)), load(layers=range(1))
    nnx.update(model, jax.tree.map(lambda array: array + 1, nnx.state(model, nnx.Param)))
    for step, one in ((1, model), (0, other)):
        optimizer = nnx.Optimizer(one, optax.adamw(1e-3), wrt=nnx.Param)
        manager = checkpoint_manager.CheckpointManager(root_directory=str(tmp_path))
        if step:
            assert manager.save(step, one, optimizer, force=True)
        else:
            places = {path: array.sharding for path, array in arrays(other).items()}
            assert manager.maybe_restore(other, optimizer)[0] == 1
        manager.close()
    assert moved(values(model), values(other)) == set()
    assert {path: array.sharding for path, array in arrays(other).items()} == places


def test_what_layers_return_is_sown_on_explicit_axes(load):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Explicit,) * 2)
    model = load(mesh=mesh)
    layer = type(model.layers[0])
    feature_extraction.wrap_model_with_sowed_modules(model, [layer])
    nnx.jit(lambda model: model(TOKENS)[0])(model)
    sown = feature_extraction.pop_sowed_intermediate_outputs(model)
    shapes = [leaf.shape for leaf in jax.tree.leaves(sown)]
    assert shapes.count((*TOKENS.shape, 64)) == 2


def forward(model, input_tokens, input_mask):
    logits, _ = model(input_tokens)
    return logits


def forward_with_projection(model, input_tokens, input_mask):
    (logits, _), features = model(input_tokens)
    return logits, features


def labels(input_tokens, input_mask):
    return jax.nn.one_hot(jnp.roll(input_tokens, -1, axis=1), 512)


@pytest.mark.parametrize("kind", ["pooling", "projection", "logit"])
def test_distillation(load, kind):
    # On several devices Tunix's own projection, which it leaves on one, has the step compiled twice.
    mesh = automatic((1, 1), devices=jax.devices()[:1])
    teacher, student = load(mesh=mesh), load(mesh=mesh, layers=range(1))
    # A projection of features has as many parameters as all features have numbers, times those of the teacher.
    tokens = TOKENS[:2, :4]
    mlp = type(student.layers[0].mlp)
    strategy = {
        "pooling": lambda: strategies.FeaturePoolingStrategy(forward, forward, labels, mlp),
        "projection": lambda: strategies.FeatureProjectionStrategy(
            forward_with_projection, forward, labels, mlp, dummy_input={"tokens": tokens}, rngs=nnx.Rngs(0)
        ),
        "logit": lambda: strategies.LogitStrategy(forward, forward, labels),
    }[kind]()
    before, taught, losses = values(student), values(teacher), []
    config = distillation_trainer.TrainingConfig(eval_every_n_steps=1000, max_steps=3, data_sharding_axis=("fsdp",))
    batch = distillation_trainer.TrainingInput(input_tokens=tokens, input_mask=np.ones_like(tokens, bool))
    with mesh:
        trainer = distillation_trainer.DistillationTrainer(student, teacher, strategy, optax.adamw(1e-3), config)
        trainer._log_metrics = logging(losses, trainer._log_metrics)
        trainer.train([batch] * 3)
    assert losses[-1] < losses[0]
    assert moved(before, values(student)) == set(before)
    assert moved(taught, values(teacher)) == set()
    # Both are what they were before.
    assert {type(layer.mlp) for layer in (*student.layers, *teacher.layers)} == {mlp}
    assert trainer.model is student


def test_hidden_states_are_sown_where_they_are_asked_for(load):
    model = load(layers=range(1))
    logits, _ = model(TOKENS, output_hidden_states=True)
    (hidden,) = nnx.pop(model, nnx.Intermediate)["all_hidden_states"].get_value()
    np.testing.assert_allclose(model.compute_final_logits(hidden), logits, atol=1e-5)
    assert isinstance(hidden.sharding, NamedSharding)


@pytest.mark.parametrize("backend", ["vllm_jax", "sglang_jax"])
@pytest.mark.parametrize(("name", "theirs"), [("qwen3", qwen3.Qwen3), ("llama3_tied", llama3.Llama3)])
def test_weights_have_the_names_in_other_programs_that_tunix_has_for_its_own_models(load, name, theirs, backend):
    ours = mappings.MappingConfig.build(model=load(name, layers=range(1)), backend=backend)
    known = mappings.MappingConfig.build(model=theirs, backend=backend)
    # Where two are not tied, there is a head; what Tunix's table has further is no parameter of this model.
    assert {target for target, _ in ours.to_hf_mappings.values()} <= {t for t, _ in known.to_hf_mappings.values()}
    assert {t for t, _ in ours.lora_to_hf_mappings.values()} == {
        target for target, _ in known.lora_to_hf_mappings.values() if "bias" not in target
    }
    split = {target: {axis for axis in axes if axis} for target, axes in ours.to_hf_mappings.values()}
    for target, axes in known.to_hf_mappings.values():
        if target in split and "norm" not in target and "bias" not in target:
            assert split[target] == {axis for axis in axes if axis}


def test_experts_have_the_names_that_tunix_has_for_its_own_model(load):
    model = load("gemma4_text_a4b", layers=range(1))
    ours = mappings.MappingConfig.build(mapping_obj=model.mapping_config(tensor_parallel_size=2))
    # Gates and ups were apart when Tunix 0.1.7 was made.
    known = {target.replace("mlp.gate_proj", "mlp.gate_up_proj") for target, _ in gemma4.TO_HF_MAPPINGS.values()}
    for target, _ in ours.to_hf_mappings.values():
        assert any(re.fullmatch(target, each.replace("*", "0")) for each in known), target
    source = "layers.*.moe.gating_einsum"
    assert re.fullmatch(ours.to_hf_mappings[source][0], gemma4.TO_HF_MAPPINGS[source][0].replace("*", "0"))


FUSED = {"qkv_proj": {"q_proj": 64, "k_proj": 32, "v_proj": 32}, "gate_up_proj": {"gate_proj": 96, "up_proj": 96}}


def shared(gate, up, devices, multiple=1):
    """Both in one array whose columns devices share: of each the gate, then the up, filled up with zeros."""
    pieces = [part for both in zip(*(np.split(each, devices, -1) for each in (gate, up)), strict=True) for part in both]
    return np.concatenate(
        [np.pad(piece, [(0, 0)] * (gate.ndim - 1) + [(0, -piece.shape[-1] % multiple)]) for piece in pieces], -1
    )


def there_of(name, backend, devices):
    """The hub's tensors as the other program has them: inputs first, experts in one array, projections apart."""
    tensors = {key: array.astype(np.float32) for key, array in checkpoints.tensors(name).items()}
    experts = {key for key in tensors if ".experts." in key}
    found = {}
    for key in sorted(tensors.keys() - experts):
        block, module, leaf = f".{key}".rsplit(".", 2)
        parts = FUSED.get(module, {module: len(tensors[key])})
        pieces = np.split(tensors[key], np.cumsum(list(parts.values()))[:-1])
        for part, piece in zip(parts, pieces, strict=True):
            found[spelled(f"{block}.{part}.{leaf}".strip("."), backend)] = (
                piece if piece.ndim == 1 or part == "embed_tokens" else piece.T
            )
    for gate in [key for key in found if ".mlp.gate_proj." in key and name.startswith("gemma4")]:
        pair = found.pop(gate), found.pop(gate.replace("gate_proj", "up_proj"))
        found[gate.replace("gate_proj", "gate_up_proj")] = shared(*pair, devices)
    if backend == "sglang_jax":
        found["lm_head.embedding"] = found.pop("lm_head.weight").T
    for block in sorted({key.partition(".experts.")[0] for key in experts}):
        count = sum(key.startswith(f"{block}.experts.") for key in experts) // 3
        if name.startswith("gemma4"):
            gate, up = np.split(tensors[f"{block}.experts.gate_up_proj"].swapaxes(1, 2), 2, axis=2)
            down = tensors[f"{block}.experts.down_proj"].swapaxes(1, 2)
        else:
            gate, up, down = (
                np.stack([tensors[f"{block}.experts.{number}.{kind}_proj.weight"].T for number in range(count)])
                for kind in ("gate", "up", "down")
            )
        if backend == "sglang_jax":
            found |= {f"{block}.wi_0": gate, f"{block}.wi_1": up, f"{block}.wo": down}
            continue
        found[f"{block}.experts.kernel_gating_upproj_EDF"] = shared(gate, up, devices, 128)
        found[f"{block}.experts.kernel_down_proj_EFD"] = down
    return found


def spelled(name, backend):
    """A name of the hub as SGLang spells it in its Qwen 3 with experts."""
    changes = {
        "embed_tokens.weight": "embed_tokens.embedding",
        "norm.weight": "norm.scale",
        "mlp.gate.weight": "moe_gate.kernel",
        "o_proj": "c_proj",
    }
    for hub, there in changes.items() if backend == "sglang_jax" else ():
        name = name.replace(hub, there)
    return name


@pytest.mark.parametrize(
    ("name", "backend", "scan_layers", "parts"),
    [
        ("phi3", "vllm_jax", False, None),
        ("qwen3_moe", "vllm_jax", False, None),
        ("qwen3_moe", "vllm_jax", True, None),
        ("qwen3_moe", "sglang_jax", True, None),
        ("gemma4_text_a4b", "vllm_jax", True, 4),
    ],
)
def test_experts_fused_projections_and_stacks_arrive(load, name, backend, scan_layers, parts):
    model = load(name, layers=None, scan_layers=scan_layers)
    tables = mappings.MappingConfig.build(
        mapping_obj=None if parts is None else model.mapping_config(backend, tensor_parallel_size=parts),
        model=model,
        backend=backend,
    )
    before = "language_" if parts else ""
    expected = {
        tuple(int(step) if step.isdigit() else step for step in f"{before}{key}".split(".")): array
        for key, array in there_of(name, backend, parts or 1).items()
    }
    state = nnx.state(model, nnx.Param)
    if tables.preprocess_src_state:
        state = tables.preprocess_src_state(state)
    filled = generate_utils.transfer_state_with_mappings(
        src_state=state,
        dst_state=nnx.State.from_flat_path(
            {path: nnx.Param(jnp.zeros_like(array)) for path, array in expected.items()}
        ),
        key_mappings=tables.to_hf_mappings,
        key_mapping_hook_fns=tables.to_hf_hook_fns,
        transpose_keys=tables.to_hf_transpose_keys,
        rollout_engine=backend,
        tp_size=parts or 1,
    )
    for path, leaf in nnx.to_flat_state(filled):
        np.testing.assert_array_equal(leaf.get_value(), expected[path], err_msg=str(path))


def test_tables_that_are_told_are_those_that_a_model_is_asked_for(load):
    model = load(layers=range(1))
    tables = model.mapping_config("vllm_jax", tensor_parallel_size=2)
    told = mappings.MappingConfig.build(mapping_obj=tables)
    assert told == mappings.MappingConfig.build(model=model, backend="vllm_jax")
    # It takes what it knows, and what it knows no more would be lost without a word.
    assert {field.name for field in dataclasses.fields(told)} == set(tables)
    tables = load("gemma4_text_a4b", layers=range(1)).mapping_config("vllm_jax", tensor_parallel_size=2)
    told = mappings.MappingConfig.build(mapping_obj=tables)
    assert {name: getattr(told, name) for name in tables} == tables
    assert told.preprocess_src_state is not None


def test_names_are_found_behind_whatever_vllm_has_before_them(load):
    model = load("gemma4_text_a4b", layers=None)
    tables = mappings.MappingConfig.build(mapping_obj=model.mapping_config("vllm_jax", tensor_parallel_size=2))
    sent = {
        ".".join(map(str, path))
        for path, _ in nnx.to_flat_state(tables.preprocess_src_state(nnx.state(model, nnx.Param)))
    }
    names = [name.removeprefix("model.") for name in there_of("gemma4_text_a4b", "vllm_jax", 2)]
    for before in ("", "model.", "language_model.", "model.language_model."):
        there = [((before + name).split("."), name) for name in names]
        found = generate_utils.build_flat_dict(there, tables.to_hf_mappings)
        assert found.keys() == sent
        assert sorted(name for name, _, _ in found.values()) == sorted(names)
        assert all(path == before + name for name, path, _ in found.values())
        assert found["layers.1.attn.q_proj.kernel"][0] == "layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("backend", ["vllm_jax", "sglang_jax"])
def test_weights_arrive_in_another_programs_model(load, backend):
    mesh = automatic()
    model = with_lora(load(mesh=mesh), mesh)
    tables = mappings.MappingConfig.build(model=model, backend=backend)
    transposes = {**(tables.to_hf_transpose_keys or {}), **(tables.lora_to_hf_transpose_keys or {})}
    expected, there = {}, {}
    for path, array in arrays(model).items():
        template = ".".join("*" if step.isdigit() else step for step in path.split("."))
        target, _ = (tables.to_hf_mappings | tables.lora_to_hf_mappings)[template]
        value = np.asarray(array)
        if backend == "sglang_jax" and path == "lm_head.kernel":
            value = value.T
        if backend == "sglang_jax" and path.endswith(("lora_a", "lora_b")):
            rank = value.ndim - 1 if path.endswith("lora_a") else 0
            value = np.moveaxis(value, rank, 0 if path.endswith("lora_a") else -1)
            value = value.reshape(1, *((4, -1) if path.endswith("lora_a") else (-1, 4)))
        number = next((step for step in path.split(".") if step.isdigit()), "")
        name = tuple(int(step) if step.isdigit() else step for step in target.replace("*", number).split("."))
        expected[name] = value
        there[name] = nnx.Param(jnp.zeros(value.shape, value.dtype))
    filled = generate_utils.transfer_state_with_mappings(
        src_state=nnx.state(model, nnx.Param),
        dst_state=nnx.State.from_flat_path(there),
        key_mappings=tables.to_hf_mappings | tables.lora_to_hf_mappings,
        transpose_keys=transposes,
        rollout_engine=backend,
    )
    found = {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(filled)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=str(name))
