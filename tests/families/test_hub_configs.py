"""The `config.json` of well-known repositories on the hub is read, and describes a model of the published size."""

import math
from typing import Any

import pytest

from lazyload import families
from lazyload.architecture import DecoderConfig
from lazyload.layouts.conversion import target_axes

Values = dict[str, Any]


def read(values: Values) -> DecoderConfig:
    return families.find(values).config(values)


def count_parameters(values: Values) -> int:
    config = read(values)
    shapes = target_axes(families.find(values).huggingface(config), config).values()
    return sum(math.prod(shape) for shape, _ in shapes)


# What files carry that says nothing about the model.
BOOKKEEPING: Values = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 107],
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
}

LLAMA: Values = {
    **BOOKKEEPING,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
LLAMA_2_7B: Values = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3_8B: Values = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
}
LLAMA_3_1_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA_3_1_8B: Values = LLAMA_3_8B | {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1_ROPE}
LLAMA_3_3_70B: Values = LLAMA_3_1_8B | {
    "head_dim": 128,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
LLAMA_3_2_1B: Values = LLAMA | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": {**LLAMA_3_1_ROPE, "factor": 32.0},
    "tie_word_embeddings": True,
}
TINYLLAMA: Values = LLAMA | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
}
SMOLLM2_135M: Values = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "use_cache": True,
    "vocab_size": 49152,
}

MISTRAL_7B: Values = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
MISTRAL_7B_V3: Values = MISTRAL_7B | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768}
MISTRAL_NEMO: Values = MISTRAL_7B_V3 | {
    "head_dim": 128,
    "hidden_size": 5120,
    "max_position_embeddings": 1024000,
    "num_hidden_layers": 40,
    "vocab_size": 131072,
}
MIXTRAL_8X7B: Values = MISTRAL_7B | {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
}

QWEN: Values = {
    **BOOKKEEPING,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2_5_0_5B: Values = QWEN | {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
}
QWEN2_5_7B: Values = QWEN2_5_0_5B | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
QWEN2_5_7B_1M: Values = QWEN2_5_7B | {
    "dual_chunk_attention_config": {
        "chunk_size": 262144,
        "local_size": 8192,
        "original_max_position_embeddings": 262144,
    },
    "max_position_embeddings": 1010000,
    "rope_theta": 10000000.0,
    "sliding_window": 32768,
}
QWEN3_8B: Values = QWEN | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
DEEPSEEK_R1_0528_QWEN3_8B: Values = QWEN3_8B | {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "attn_factor": 0.8782488562869419,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "rope_type": "yarn",
    },
}
QWEN3_0_6B: Values = QWEN3_8B | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
}
QWEN3_30B_A3B: Values = QWEN | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rope_scaling": None,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
QWEN3_30B_A3B_2507: Values = QWEN3_30B_A3B | {"max_position_embeddings": 262144, "rope_theta": 10000000}
QWEN3_CODER_30B_A3B: Values = QWEN3_30B_A3B_2507 | {
    "intermediate_size": 5472,
    "max_window_layers": 28,
    "qkv_bias": False,
    "router_aux_loss_coef": 0.0,
    "shared_expert_intermediate_size": 0,
    "use_qk_norm": True,
}
QWEN3_CODER_480B_A35B: Values = QWEN3_CODER_30B_A3B | {
    "hidden_size": 6144,
    "intermediate_size": 8192,
    "max_window_layers": 62,
    "moe_intermediate_size": 2560,
    "num_attention_heads": 96,
    "num_experts": 160,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
}

GEMMA_2B: Values = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA_2_9B: Values = GEMMA_2B | {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "model_type": "gemma2",
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
}
GEMMA_2_27B: Values = GEMMA_2_9B | {
    "head_dim": 128,
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
}
GEMMA_3_1B: Values = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}
GEMMA_3_4B: Values = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
GEMMA_3_12B: Values = GEMMA_3_4B | {
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
}
GEMMA_3_27B: Values = GEMMA_3_4B | {
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
}
GEMMA_3_270M: Values = GEMMA_3_1B | {
    "_sliding_window_pattern": 6,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": ["sliding_attention" if number % 6 != 5 else "full_attention" for number in range(18)],
    "num_hidden_layers": 18,
    "use_bidirectional_attention": False,
}

PHI_3_MINI: Values = {
    "_name_or_path": "Phi-3-mini-4k-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2",
    "use_cache": True,
    "vocab_size": 32064,
}
PHI_3_5_MINI: Values = PHI_3_MINI | {
    "max_position_embeddings": 131072,
    "rope_scaling": {"long_factor": [1.08, 64] * 24, "short_factor": [1.0, 2.8] * 24, "type": "longrope"},
    "sliding_window": 262144,
}
PHI_3_MINI_128K: Values = PHI_3_5_MINI | {"rope_scaling": PHI_3_5_MINI["rope_scaling"] | {"type": "su"}}
PHI_4: Values = PHI_3_MINI | {
    "auto_map": {},
    "bos_token_id": 100257,
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "rope_theta": 250000,
    "sliding_window": None,
    "vocab_size": 100352,
}
PHI_4_MINI: Values = PHI_3_5_MINI | {
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}

OLMO_2_7B: Values = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "use_cache": False,
    "vocab_size": 100352,
}
OLMO_3_7B: Values = OLMO_2_7B | {
    "architectures": ["Olmo3ForCausalLM"],
    "dtype": "bfloat16",
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 8,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "sliding_window": 4096,
    "vocab_size": 100278,
}
SMOLLM3_3B: Values = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128004,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0.dev0",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
GRANITE_3_3_2B: Values = {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.015625,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.49.0",
    "use_cache": True,
    "vocab_size": 49159,
}

GPT_OSS_20B: Values = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}
GPT_OSS_120B: Values = GPT_OSS_20B | {
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
}

DEEPSEEK_V2_LITE: Values = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV2Config",
        "AutoModel": "modeling_deepseek.DeepseekV2Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
DEEPSEEK_V2: Values = DEEPSEEK_V2_LITE | {
    "ep_size": 1,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}
DEEPSEEK_V3: Values = DEEPSEEK_V2 | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rope_scaling": DEEPSEEK_V2["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
MOONLIGHT: Values = DEEPSEEK_V3 | {
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "quantization_config": None,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "topk_group": 1,
    "vocab_size": 163840,
}

# With the number of parameters; of tied embeddings one counts, of Gemma 3 the text model.
PUBLISHED: dict[str, tuple[Values, int]] = {
    "meta-llama/Llama-2-7b-hf": (LLAMA_2_7B, 6_738_415_616),
    "meta-llama/Meta-Llama-3-8B": (LLAMA_3_8B, 8_030_261_248),
    "meta-llama/Llama-3.1-8B": (LLAMA_3_1_8B, 8_030_261_248),
    "meta-llama/Llama-3.2-1B": (LLAMA_3_2_1B, 1_235_814_400),
    "meta-llama/Llama-3.3-70B-Instruct": (LLAMA_3_3_70B, 70_553_706_496),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (TINYLLAMA, 1_100_048_384),
    "HuggingFaceTB/SmolLM2-135M": (SMOLLM2_135M, 134_515_008),
    "mistralai/Mistral-7B-v0.1": (MISTRAL_7B, 7_241_732_096),
    "mistralai/Mistral-7B-v0.3": (MISTRAL_7B_V3, 7_248_023_552),
    "mistralai/Mistral-Nemo-Base-2407": (MISTRAL_NEMO, 12_247_782_400),
    "mistralai/Mixtral-8x7B-v0.1": (MIXTRAL_8X7B, 46_702_792_704),
    "Qwen/Qwen2.5-0.5B": (QWEN2_5_0_5B, 494_032_768),
    "Qwen/Qwen2.5-7B": (QWEN2_5_7B, 7_615_616_512),
    "Qwen/Qwen2.5-7B-Instruct-1M": (QWEN2_5_7B_1M, 7_615_616_512),
    "Qwen/Qwen3-0.6B": (QWEN3_0_6B, 596_049_920),
    "Qwen/Qwen3-8B": (QWEN3_8B, 8_190_735_360),
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": (DEEPSEEK_R1_0528_QWEN3_8B, 8_190_735_360),
    "Qwen/Qwen3-30B-A3B": (QWEN3_30B_A3B, 30_532_122_624),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": (QWEN3_30B_A3B_2507, 30_532_122_624),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": (QWEN3_CODER_30B_A3B, 30_532_122_624),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (QWEN3_CODER_480B_A35B, 480_154_875_392),
    "google/gemma-2b": (GEMMA_2B, 2_506_172_416),
    "google/gemma-2-9b": (GEMMA_2_9B, 9_241_705_984),
    "google/gemma-2-27b": (GEMMA_2_27B, 27_227_128_320),
    "google/gemma-3-270m": (GEMMA_3_270M, 268_098_176),
    "google/gemma-3-1b-it": (GEMMA_3_1B, 999_885_952),
    "google/gemma-3-4b-it": (GEMMA_3_4B, 3_880_263_168),
    "google/gemma-3-12b-it": (GEMMA_3_12B, 11_766_034_176),
    "google/gemma-3-27b-it": (GEMMA_3_27B, 27_009_346_304),
    "microsoft/Phi-3-mini-4k-instruct": (PHI_3_MINI, 3_821_079_552),
    "microsoft/Phi-3-mini-128k-instruct": (PHI_3_MINI_128K, 3_821_079_552),
    "microsoft/Phi-3.5-mini-instruct": (PHI_3_5_MINI, 3_821_079_552),
    "microsoft/phi-4": (PHI_4, 14_659_507_200),
    "microsoft/Phi-4-mini-instruct": (PHI_4_MINI, 3_836_021_760),
    "allenai/OLMo-2-1124-7B": (OLMO_2_7B, 7_298_617_344),
    "allenai/Olmo-3-1025-7B": (OLMO_3_7B, 7_298_011_136),
    "HuggingFaceTB/SmolLM3-3B": (SMOLLM3_3B, 3_075_098_624),
    "ibm-granite/granite-3.3-2b-instruct": (GRANITE_3_3_2B, 2_533_539_840),
    "openai/gpt-oss-20b": (GPT_OSS_20B, 20_914_757_184),
    "openai/gpt-oss-120b": (GPT_OSS_120B, 116_829_156_672),
    "deepseek-ai/DeepSeek-V2-Lite": (DEEPSEEK_V2_LITE, 15_706_484_224),
    "deepseek-ai/DeepSeek-V2": (DEEPSEEK_V2, 235_741_434_880),
    "deepseek-ai/DeepSeek-V3": (DEEPSEEK_V3, 671_026_419_200),
    "moonshotai/Moonlight-16B-A3B": (MOONLIGHT, 15_960_110_208),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_real_file_describes_a_model_of_its_size(name: str) -> None:
    values, parameters = PUBLISHED[name]
    assert count_parameters(values) == parameters


def test_what_a_gemma_3_file_leaves_out_is_as_in_transformers() -> None:
    config = read(GEMMA_3_4B)
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262_208, 8, 4, 256)
    assert config.tied
    assert config.query_scale == 256**-0.5
    local, full = config.layers[0], config.layers[5]
    assert local.window == 1024
    assert local.rope is not None
    assert (local.rope.kind, local.rope.theta) == ("default", 1e4)
    assert full.window is None
    assert full.rope is not None
    assert (full.rope.kind, full.rope.theta, full.rope.factor) == ("linear", 1e6, 8.0)


def test_llama_3_1_stretches_its_rotary_embedding() -> None:
    rope = read(LLAMA_3_1_8B).layers[0].rope
    assert rope is not None
    assert (rope.kind, rope.theta, rope.factor, rope.original_max_position) == ("llama3", 5e5, 8.0, 8192)


@pytest.mark.parametrize("values", [PHI_3_MINI_128K, PHI_3_5_MINI])
def test_both_names_of_phi_3_s_rotary_embedding_mean_longrope(values: Values) -> None:
    rope = read(values).layers[0].rope
    assert rope is not None
    assert (rope.kind, rope.original_max_position, rope.factor) == ("longrope", 4096, 32.0)
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


def test_phi_4_mini_rotates_three_quarters_of_a_head() -> None:
    config = read(PHI_4_MINI)
    assert config.head_dim == 128
    assert config.layers[0].rope is not None
    assert config.layers[0].rope.dim == 96


def test_olmo_3_stretches_full_attention_only() -> None:
    layers = read(OLMO_3_7B).layers
    kinds = [(layer.window, layer.rope.kind if layer.rope else None) for layer in layers[:4]]
    assert kinds == [(4096, "default")] * 3 + [(None, "yarn")]


def test_every_fourth_layer_of_smollm_3_has_no_rotary_embedding() -> None:
    layers = read(SMOLLM3_3B).layers
    assert [layer.rope is None for layer in layers] == [False, False, False, True] * 9


def test_windows_that_are_switched_off_count_for_nothing() -> None:
    assert {layer.window for layer in read(QWEN2_5_7B).layers} == {None}
    assert {layer.window for layer in read(MISTRAL_7B).layers} == {4096}


def test_deepseek_v3_has_three_dense_layers_and_chooses_among_groups() -> None:
    config = read(DEEPSEEK_V3)
    assert config.dense_layers == (0, 1, 2)
    experts = config.experts
    assert experts is not None
    assert (experts.num_groups, experts.num_selected_groups, experts.num_selected, experts.scale) == (8, 4, 8, 2.5)
    assert config.query_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def test_moonlight_s_norms_have_an_epsilon_of_their_own() -> None:
    assert read(MOONLIGHT).norm_eps == 1e-5
