"""What a loaded decoder says of its weights' names in vLLM and SGLang; `test_tunix.py` compares with Tunix's own."""

import pytest
from support import checkpoints

import lazyload
from lazyload.errors import ArgumentError, InputError


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")

    def loaded(name, **options):
        return lazyload.from_pretrained(checkpoints.make(name, folder), layers=range(1), progress=False, **options)

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


def test_what_is_no_tensor_of_its_own_on_the_hub_has_no_name(load):
    with pytest.raises(
        InputError, match=r"no single tensor of the hub's checkpoint is layers\.\*\.attn\.k_proj\.kernel"
    ):
        load("phi3").to_hf_mappings()


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
