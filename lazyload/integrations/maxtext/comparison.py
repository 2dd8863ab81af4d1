"""Whether a MaxText config and a checkpoint are of one model: compared before anything is converted, or restored."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lazyload.architecture import (
    MLP,
    Attention,
    CompressedAttention,
    DecoderConfig,
    Experts,
    GatedDeltaNet,
    LatentAttention,
)
from lazyload.bucket.path import Folder, bucket_path, is_url
from lazyload.cache.entry import read_entry
from lazyload.cache.manifest import Manifest, UnreadableManifestError
from lazyload.errors import CacheError, ConfigError
from lazyload.formats import maxtext as tables
from lazyload.formats.maxtext import MaxText
from lazyload.formats.maxtext.deepseek_v4 import compress_ratios, hash_layers
from lazyload.formats.maxtext.gemma4 import global_layers
from lazyload.formats.maxtext.llama4 import CYCLE
from lazyload.formats.maxtext.qwen3_next import cycle_of
from lazyload.formats.maxtext.tree import HEAD
from lazyload.integrations.maxtext.settings import get, is_set, scan_layers
from lazyload.request import Request
from lazyload.results import CachedCheckpoint
from lazyload.storage import Storage


def require_entry(config: Any, path: str) -> None:
    """Compares a config with the converted checkpoint that it names; other checkpoints are MaxText's to check."""
    manifest = _manifest(_folder(path))
    if manifest is None:
        return
    stored, asked = {"layout": manifest.fields.get("layout")}, {}
    # MaxText itself takes `scan_layers` from the checkpoint where nobody has set it.
    if is_set(config, "scan_layers") or stored["layout"] not in (MaxText(True).name, MaxText(False).name):
        asked["layout"] = MaxText(scan_layers(config)).name
    match manifest.arrays.get("params.params.token_embedder.embedding"):
        case {"shape": [int(rows), *_]}:
            stored["vocab_size"], asked["vocab_size"] = rows, get(config, "vocab_size")
    storage = Storage.from_fields(manifest.fields.get("storage"))
    for flag in ("ocdbt", "zarr3"):
        stored[flag] = getattr(storage, flag)
        asked[flag] = get(config, f"checkpoint_storage_use_{flag}")
    different = [name for name, value in asked.items() if value is not None and value != stored[name]]
    if different:
        raise ConfigError(
            f"the config asks for {_listed(asked, different)}, but load_parameters_path={path} is a conversion of "
            f"{manifest.model} with {_listed(stored, different)}; leave load_parameters_path empty to have it converted"
        )


def _folder(path: str) -> Folder:
    if is_url(path):
        # What no cache can be in is MaxText's to open.
        with contextlib.suppress(CacheError):
            return bucket_path(path)
    return Path(path)


def _manifest(checkpoint: Folder) -> Manifest | None:
    """The manifest of the cache's entry that a checkpoint is, directly or as the item of a composite one."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        with contextlib.suppress(UnreadableManifestError, CacheError):
            return read_entry(folder).manifest
    return None


def _listed(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names)


def require_fields(config: Any, request: Request) -> None:
    """Compares a config's architecture with `config.json`.

    Raises:
        ConfigError: They differ; all differences are listed.
    """
    problems = []
    for names, expected in _expected(request).items():
        name, value = next(((n, v) for n in names if (v := get(config, n)) is not None), ("", None))
        if value is not None and value != expected:
            problems.append(f"{name} is {value}, config.json means {expected}")
    vocab_size, rows = get(config, "vocab_size"), request.architecture.vocab_size
    if vocab_size is not None and vocab_size < rows:
        problems.append(f"vocab_size is {vocab_size}, config.json has {rows}; it can be larger, but not smaller")
    if scan_layers(config) and get(config, "param_scan_axis", 1) != 1:
        problems.append(f"param_scan_axis is {get(config, 'param_scan_axis')}, scanned layers are stored on axis 1")
    problems += _unlike_maxtext(config, request)
    if problems:
        name = get(config, "model_name")
        raise ConfigError(
            f"the MaxText config (model_name={name!r}) and {request.source.name}'s config.json are not of one model:"
            + "".join(f"\n  - {problem}" for problem in problems)
        )


def _unlike_maxtext(config: Any, request: Request) -> list[str]:
    """Settings with which MaxText's model is another, or none, whatever the sizes: sentences."""
    problems = []
    deepstack, weight_dtype = get(config, "deepstack_visual_indexes_for_vit"), get(config, "weight_dtype")
    if deepstack and scan_layers(config):
        problems.append(
            f"deepstack_visual_indexes_for_vit is {deepstack}, with which MaxText does not scan; give [], or "
            "scan_layers=False"
        )
    if str(weight_dtype).startswith("float8"):
        problems.append(
            f"weight_dtype is {weight_dtype}, for which MaxText wants codes and scales; packed weights are unpacked "
            "here: give the model_name without -fp8"
        )
    model = request.architecture
    if request.family.name == "gemma4" and (model.per_layer_embedding or model.shared_kv_layers):
        cycle, name = 5 if get(config, "model_name") == "gemma4-e2b" else 6, get(config, "model_name")
        if (first := global_layers(model)[0] + 1) != cycle:
            problems.append(
                f"model_name is {name}, whose every {cycle}th layer has full attention; config.json has every {first}th"
            )
    return problems


def require_head(config: Any, converted: CachedCheckpoint) -> None:
    """Compares the config with what is stored, which decides whether the output projection is the embedding.

    Raises:
        ConfigError: They differ.
    """
    value, expected = get(config, "logits_via_embedding"), HEAD not in converted.manifest.arrays
    if value is not None and value != expected:
        raise ConfigError(
            f"the MaxText config (model_name={get(config, 'model_name')!r}) and {converted.manifest.model} are not of "
            f"one model:\n  - logits_via_embedding is {value}, the checkpoint means {expected}"
        )


def _expected(request: Request) -> dict[tuple[str, ...], Any]:
    """By the names that MaxText has for a field, the first that a config has counting, what `config.json` says."""
    model = request.architecture
    layers = model.num_layers // tables.layers_in_one(request.family.name)
    attention, latent = model.first(Attention), model.first(LatentAttention)
    dense, experts, delta_net = model.first(MLP), model.first(Experts), model.first(GatedDeltaNet)
    expected: dict[tuple[str, ...], Any] = {
        ("emb_dim", "base_emb_dim"): model.embed_dim,
        ("num_query_heads", "base_num_query_heads"): model.num_heads,
        ("num_decoder_layers", "base_num_decoder_layers"): layers,
        ("num_experts",): experts.num_experts if experts else 1,
        # Where config.json ties them, what is stored decides (`require_head`).
        **({} if model.tied else {("logits_via_embedding",): False}),
        ("attention_bias",): bool(model.groups("attn.q.bias") or model.groups("attn.kv_a.bias")),
    }
    if dense:
        expected["mlp_dim", "base_mlp_dim"] = dense.mlp_dim
    if experts:
        expected["num_experts_per_tok",] = experts.num_selected
        expected["moe_mlp_dim", "base_moe_mlp_dim"] = experts.mlp_dim
        sparse = set(model.layers_with(Experts))
        expected["first_num_dense_layers",] = len(set(model.layers_with(MLP)) - sparse)
        # MaxText takes an MLP beside the experts for a shared expert.
        beside = sparse & set(model.layers_with(MLP))
        expected["shared_experts",] = 1 if beside else experts.shared_mlp_dim // experts.mlp_dim
    if latent:
        expected["q_lora_rank",] = latent.q_rank or 0
        expected["kv_lora_rank",] = latent.kv_rank
        expected["qk_nope_head_dim",] = latent.nope_dim
        expected["qk_rope_head_dim",] = latent.rope_dim
        expected["v_head_dim",] = latent.v_dim
        if latent.indexer is not None:
            expected["indexer_n_heads",] = latent.indexer.num_heads
            expected["indexer_head_dim",] = latent.indexer.head_dim
            expected["indexer_topk",] = latent.indexer.num_selected
    if attention:
        expected["num_kv_heads", "base_num_kv_heads"] = attention.num_kv_heads
        expected["head_dim",] = attention.head_dim
    if delta_net:
        expected["inhomogeneous_layer_cycle_interval",] = cycle_of(model)
        expected["gdn_num_key_heads",] = delta_net.num_key_heads
        expected["gdn_num_value_heads",] = delta_net.num_value_heads
        expected["gdn_key_head_dim",] = delta_net.key_dim
        expected["gdn_value_head_dim",] = delta_net.value_dim
        expected["gdn_conv_kernel_dim",] = delta_net.conv_width
    if request.family.name == "gemma4":
        expected |= _expected_of_gemma4(model)
    if request.family.name == "deepseek_v4":
        expected |= _expected_of_deepseek_v4(model)
    if request.family.name == "llama4":
        # Dense layers and those with experts follow each other by turns.
        expected.pop(("first_num_dense_layers",), None)
        expected |= _expected_of_llama4(model)
    return expected


def _expected_of_deepseek_v4(model: DecoderConfig) -> dict[tuple[str, ...], Any]:
    """What `config.json` says of a DeepSeek V4 beyond what other families have."""
    mixer, streams = model.first(CompressedAttention), model.streams
    assert mixer is not None  # the family has no other
    assert streams is not None
    expected: dict[tuple[str, ...], Any] = {
        ("num_kv_heads", "base_num_kv_heads"): mixer.num_kv_heads,
        ("head_dim",): mixer.head_dim,
        ("q_lora_rank",): mixer.q_rank,
        ("o_groups",): mixer.num_groups,
        ("o_lora_rank",): mixer.o_rank,
        ("sliding_window_size",): mixer.window,
        ("mhc_expansion_rate",): streams.num_streams,
        ("first_num_hash_layers",): hash_layers(model),
        ("compress_ratios",): compress_ratios(model),
    }
    if mixer.rope is not None:
        expected["qk_rope_head_dim",] = mixer.rope.dim
    for indexer in {layer.mixer.indexer for layer in model.layers if isinstance(layer.mixer, CompressedAttention)}:
        if indexer is not None:
            expected["indexer_n_heads",] = indexer.num_heads
            expected["indexer_head_dim",] = indexer.compressor.dim
            expected["indexer_topk",] = indexer.num_selected
    return expected


def _expected_of_llama4(model: DecoderConfig) -> dict[tuple[str, ...], Any]:
    """What `config.json` says of a Llama 4 beyond what other families have."""
    mixers = [layer.mixer for layer in model.layers if isinstance(layer.mixer, Attention)]
    return {
        ("inhomogeneous_layer_cycle_interval",): CYCLE,
        ("interleave_moe_layer_step",): next(iter(model.layers_with(Experts)), model.num_layers) + 1,
        ("nope_layer_interval",): next((n for n, mixer in enumerate(mixers, 1) if mixer.rope is None), -1),
        ("chunk_attn_window_size",): next((mixer.chunk for mixer in mixers if mixer.chunk), 0),
        ("temperature_tuning",): any(mixer.temperature for mixer in mixers),
        ("use_qk_norm",): any(mixer.qk_norm for mixer in mixers),
    }


def _expected_of_gemma4(model: DecoderConfig) -> dict[tuple[str, ...], Any]:
    """What `config.json` says of a Gemma 4 beyond what other families have."""
    inputs, last = model.per_layer_embedding, model.layers[-1]
    sharing = sum(model.kv_layer(number) != number for number in range(model.num_layers))
    expected: dict[tuple[str, ...], Any] = {
        ("num_kv_shared_layers",): sharing,
        ("hidden_size_per_layer_input",): inputs.dim if inputs else 0,
    }
    if inputs:
        expected["vocab_size_per_layer_input",] = inputs.vocab_size
    if sharing:
        expected["use_double_wide_mlp",] = last.feed_forward != model.layers[0].feed_forward
    if isinstance(last.mixer, Attention):
        expected["global_head_dim",] = last.mixer.head_dim
        expected["share_kv_projections",] = last.mixer.v_from_k
        if last.mixer.num_kv_heads != model.num_kv_heads:
            expected["global_num_kv_heads",] = last.mixer.num_kv_heads
    return expected
