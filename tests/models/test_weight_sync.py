"""What a loaded decoder says of its weights' names in vLLM and SGLang; `test_tunix.py` compares with Tunix's own."""

import re

import numpy as np
import pytest
from flax import nnx
from support import checkpoints

import lazyload
from lazyload.errors import ArgumentError, InputError


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")

    def loaded(name, **options):
        source = folder / name if (folder / name).exists() else checkpoints.make(name, folder)
        return lazyload.from_pretrained(source, progress=False, **{"layers": range(1), **options})

    return loaded


def test_names_are_the_hubs_and_what_is_split_is_heads_widths_and_vocabulary(load):
    model = load("qwen3")
    table = model.to_hf_mappings("vllm_jax")
    assert table["layers.*.attn.o_proj.kernel"] == ("model.layers.*.self_attn.o_proj.weight", ("model", None, None))
    assert table["lm_head.kernel"] == ("lm_head.weight", (None, "model"))
    assert table["layers.*.attn.q_norm.scale"] == ("model.layers.*.self_attn.q_norm.weight", (None,))
    lora = model.lora_to_hf_mappings("sglang_jax")
    assert lora["layers.*.mlp.up_proj.kernel_lora_b"] == ("model.layers.*.mlp.up_proj.B_buffer", (None, "tensor"))
    assert model.to_hf_transpose_keys("sglang_jax") == {"lm_head.kernel": (1, 0)}
    assert model.to_hf_transpose_keys() is model.to_hf_hook_fns() is model.preprocess_src_state() is None
    # Tunix puts LoRA's table into this one.
    assert load("llama3_tied").to_hf_transpose_keys("sglang_jax") == {}


def test_what_the_hub_has_in_one_tensor_has_the_usual_names(load):
    model = load("phi3")
    table = model.to_hf_mappings()
    assert table["layers.*.attn.k_proj.kernel"] == ("model.layers.*.self_attn.k_proj.weight", (None, "model", None))
    assert table["layers.*.mlp.up_proj.kernel"] == ("model.layers.*.mlp.up_proj.weight", (None, "model"))
    lora = model.lora_to_hf_mappings()
    assert lora["layers.*.attn.v_proj.kernel_lora_a"] == ("model.layers.*.self_attn.v_proj.weight_lora_a", (None, None))


def test_experts_are_one_array_of_all_of_a_layer(load):
    model = load("qwen3_moe")
    table = model.to_hf_mappings("vllm_jax")
    experts = "model.layers.*.mlp.experts"
    assert table["layers.*.moe.gating_einsum"][0] == f"{experts}.kernel_gating_upproj_EDF"
    assert table["layers.*.moe.down_proj.kernel"] == (f"{experts}.kernel_down_proj_EFD", (None, "model", None))
    assert not {"layers.*.moe.gate_proj.kernel", "layers.*.moe.up_proj.kernel"} & set(table)
    there = model.to_hf_mappings("sglang_jax")
    assert there["layers.*.moe.gate_proj.kernel"] == ("model.layers.*.mlp.wi_0", (None, None, "tensor"))
    assert there["layers.*.moe.router.kernel"][0] == "model.layers.*.moe_gate.kernel"
    assert there["layers.*.attn.o_proj.kernel"][0] == "model.layers.*.self_attn.c_proj.weight"
    assert model.preprocess_src_state("sglang_jax") is None
    state = nnx.to_flat_state(model.preprocess_src_state()(nnx.state(model, nnx.Param)))
    assert {".".join("*" if isinstance(step, int) else step for step in path) for path, _ in state} == set(table)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_tensor_parallelism_interleaves_is_in_its_order(load, scan_layers):
    model = load("gemma4_text_a4b", layers=None, scan_layers=scan_layers)
    for ask in (model.to_hf_mappings, model.preprocess_src_state, model.mapping_config):
        with pytest.raises(
            InputError, match=r"are one array there, mlp\.gate_up_proj, .*=model\.mapping_config\('vllm_"
        ):
            ask("vllm_jax")
    for parts, message in ((5, "does not divide the model's width of "), (0, "over how many devices vllm_jax splits")):
        with pytest.raises(InputError, match=message):
            model.mapping_config(tensor_parallel_size=parts)
    tables = model.mapping_config(tensor_parallel_size=2)
    place = "layers.0" if scan_layers else "layers.*"
    name, split = tables["to_hf_mappings"][f"{place}.mlp.gate_up_proj.kernel"]
    # As versions of vLLM have it, with images and without.
    for before in ("model", "language_model", "model.language_model"):
        assert re.fullmatch(name, f"{before}.layers.0.mlp.gate_up_proj.weight")
    assert split[-2:] == (None, "model")
    before = nnx.state(model, nnx.Param)
    state = dict(nnx.to_flat_state(tables["preprocess_src_state"](before)))
    sent = {
        ".".join("*" if isinstance(step, int) and not scan_layers else str(step) for step in path) for path in state
    }
    assert sent == set(tables["to_hf_mappings"])
    mlp = model.layers[0].mlp
    halves = [np.split(np.asarray(getattr(mlp, each).kernel[...]), 2, axis=-1) for each in ("gate_proj", "up_proj")]
    expected = np.concatenate([half for device in zip(*halves, strict=True) for half in device], axis=-1)
    np.testing.assert_array_equal(state["layers", 0, "mlp", "gate_up_proj", "kernel"][...], expected)
    # SGLang has them apart, and nothing of what vLLM asks for is asked for there.
    assert "layers.*.mlp.gate_proj.kernel" in load("gemma4_text_31b").to_hf_mappings("sglang_jax")


def test_it_is_told_where_vllm_runs_its_pytorch_model(load, caplog):
    load("qwen3").to_hf_mappings("vllm_jax")
    assert not caplog.records
    load("gemma3_text").to_hf_mappings("vllm_jax")
    assert "no model of family 'gemma3' in JAX that Tunix can fill" in caplog.text
    assert "lazyload.save_pretrained" in caplog.text


def test_layers_in_stacks_are_told_by_their_numbers(load):
    model = load("gemma3_text", layers=range(5), scan_layers=True)
    table = model.to_hf_mappings()
    names = [table[f"layers.{number}.attn.q_proj.kernel"][0] for number in range(len(model.layers))]
    stacks = [re.search(r"\((.*)\)", name)[1].split("|") for name in names]
    assert sorted(int(number) for stack in stacks for number in stack) == list(range(5))
    assert max(map(len, stacks)) > 1
    name, split = table["layers.0.mlp.down_proj.kernel"]
    assert name.endswith(r"\.mlp\.down_proj\.weight")
    assert split == ("layer", "model", None)
    lora = model.lora_to_hf_mappings()
    assert lora["layers.0.attn.q_proj.kernel_lora_a"] == (names[0] + "_lora_a", ("layer", None, None))
    assert lora["layers.0.attn.q_proj.kernel_lora_b"] == (names[0] + "_lora_b", ("layer", None, "model", None))
    transposed = model.lora_to_hf_transpose_keys("sglang_jax")
    assert transposed[r"layers\.0\.attn\.q_proj\.kernel_lora_b"] == (0, 2, 3, 1)


@pytest.mark.parametrize(
    ("name", "backend", "missing"),
    [
        # The hub has one tensor for several parts, and no model there has them by these names.
        ("granitemoehybrid", "vllm_jax", r"layers\.\*\.mamba\.conv_b\.kernel"),
        # These have names of their own there.
        ("gpt_oss", "vllm_jax", r"layers\.\*\.moe\.gating_einsum"),
        ("llama4_text", "vllm_jax", r"layers\.\*\.moe\.gating_einsum"),
        # Nothing is known of these.
        ("mixtral", "sglang_jax", r"layers\.\*\.moe\.down_proj\.kernel"),
        ("deepseek_v3", "vllm_jax", r"layers\.\*\.attn\.kv_b_proj\.kernel"),
    ],
)
def test_what_is_no_array_there_is_refused(load, name, backend, missing):
    with pytest.raises(InputError, match=f"{backend}: there is no array there, by any name known here, .*{missing}"):
        load(name).to_hf_mappings(backend)


def test_adapters_of_what_has_no_name_there_are_refused(load):
    model = load("granitemoehybrid")
    assert not any("mamba.in_proj_z" in path for path in model.lora_to_hf_mappings())
    projection = model.layers[0].mamba.in_proj_z
    projection.kernel_lora_a = nnx.LoRAParam(np.zeros((*projection.kernel.shape[:1], 2)))
    with pytest.raises(
        InputError, match=r"no array there for the LoRA factors layers\.\*\.mamba\.in_proj_z\.kernel_lora_a"
    ):
        model.lora_to_hf_mappings()
    model = load("qwen3")
    model.lm_head.kernel_lora_b = nnx.LoRAParam(np.zeros((2, *model.lm_head.kernel.shape[1:])))
    with pytest.raises(InputError, match=r"no array there for the LoRA factors lm_head\.kernel_lora_b"):
        model.lora_to_hf_mappings("sglang_jax")


def test_other_backends_are_refused(load):
    with pytest.raises(InputError, match="backend 'vllm_torch' is not known; there are vllm_jax, sglang_jax"):
        load("qwen3").to_hf_mappings("vllm_torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_dtype": "auto"}, "compute_dtype='auto': give bfloat16, float16, float32"),
        ({"compute_dtype": "bfloat16", "layout": lazyload.MaxText()}, "no decoder of this library is built"),
    ],
)
def test_a_dtype_to_compute_in_is_that_of_a_decoder(load, options, message):
    with pytest.raises(ArgumentError, match=message):
        load("qwen3", **options)


def test_what_is_computed_in_another_dtype_is_the_same_entry(load):
    model = load("qwen3", dtype="float32")
    other = load("qwen3", dtype="float32", compute_dtype="bfloat16")
    assert lazyload.last_report().hit
    assert (model.compute_dtype, other.compute_dtype.name) == (None, "bfloat16")
