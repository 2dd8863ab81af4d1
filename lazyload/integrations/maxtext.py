"""MaxText: the checkpoint that a run's config asks for, converted in this process instead of by `to_maxtext`.

    config = with_checkpoint(config)        # before model_creation_utils.from_pretrained(config, ...)

What decides the checkpoint is read off the config, so that a run restores with the flags it was converted with.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lazyload.architecture import MLP, Attention, DecoderConfig, Experts, GatedDeltaNet, LatentAttention
from lazyload.bucket.path import Folder, bucket_path, is_url
from lazyload.cache.entry import read_entry
from lazyload.cache.manifest import Manifest, UnreadableManifestError
from lazyload.errors import CacheError, ConfigError
from lazyload.formats import maxtext as tables
from lazyload.formats.maxtext import MaxText
from lazyload.formats.maxtext.gemma4 import global_layers
from lazyload.formats.maxtext.llama4 import CYCLE
from lazyload.formats.maxtext.qwen3_next import cycle_of
from lazyload.formats.maxtext.tree import HEAD
from lazyload.loader import convert
from lazyload.options import DTypeOption
from lazyload.progress import ProgressOption, show_progress
from lazyload.request import Request, open_request
from lazyload.results import CachedCheckpoint
from lazyload.sources import ModelReference
from lazyload.storage import Storage

if TYPE_CHECKING:
    import os

MaxTextConfig = TypeVar("MaxTextConfig")

HUB_IDS: Mapping[str, str] = {
    "deepseek2-16b": "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek3-671b": "deepseek-ai/DeepSeek-V3",
    "deepseek3.2-671b": "deepseek-ai/DeepSeek-V3.2",
    "gemma2-2b": "google/gemma-2-2b",
    "gemma2-9b": "google/gemma-2-9b",
    "gemma2-27b": "google/gemma-2-27b",
    "gemma3-4b": "google/gemma-3-4b-it",
    "gemma3-12b": "google/gemma-3-12b-it",
    "gemma3-27b": "google/gemma-3-27b-it",
    "gemma4-26b": "google/gemma-4-26b-a4b-it",
    "gemma4-31b": "google/gemma-4-31b-it",
    "gemma4-e2b": "google/gemma-4-E2B-it",
    "gemma4-e4b": "google/gemma-4-E4B-it",
    "gpt-oss-20b": "unsloth/gpt-oss-20b-BF16",
    "gpt-oss-120b": "unsloth/gpt-oss-120b-BF16",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama3.1-8b-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.1-70b": "meta-llama/Llama-3.1-70B",
    "llama3.1-70b-Instruct": "meta-llama/Llama-3.1-70B-Instruct",
    "llama3.1-405b": "meta-llama/Llama-3.1-405B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "olmo3-7b": "allenai/Olmo-3-7B-Instruct",
    "olmo3-7b-pt": "allenai/Olmo-3-1025-7B",
    "olmo3-32b": "allenai/Olmo-3-32B-Think",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-4b-thinking-2507": "Qwen/Qwen3-4B-Thinking-2507",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B-Thinking-2507",
    "qwen3-30b-a3b-base": "Qwen/Qwen3-30B-A3B-Base",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B-Thinking-2507",
    "qwen3-480b-a35b": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    "qwen3-next-80b-a3b": "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "qwen3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3-vl-30b-a3b": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "qwen3.5-35b-a3b": "Qwen/Qwen3.5-35B-A3B",
    "qwen3.5-397b-a17b": "Qwen/Qwen3.5-397B-A17B",
}
"""MaxText's own choice for a `model_name` (`HF_IDS` in its `utils/globals.py`), where the family has a table."""


def with_checkpoint(
    config: MaxTextConfig,
    *,
    model: "str | os.PathLike[str] | None" = None,
    revision: str | None = None,
    dtype: DTypeOption = "bfloat16",
    cache_dir: "str | os.PathLike[str] | None" = None,
    local_files_only: bool = False,
    keep_source: bool = True,
    progress: ProgressOption = None,
) -> MaxTextConfig:
    """Fills in `load_parameters_path` with a converted checkpoint, where a config asks for conversion.

    That is where `convert_checkpoint_if_possible` is set and `load_parameters_path` is not; every other config comes
    back as it is. Layout and storage are those of the config: `scan_layers`, `vocab_size`,
    `checkpoint_storage_use_ocdbt` and `checkpoint_storage_use_zarr3`; the hub token is its `hf_access_token`.

    Args:
        config: MaxText's `HyperParameters`, one of its pydantic configs, or a mapping of their fields.
        model: A hub id, folder or URL; None for what MaxText itself takes for `model_name`, else for the
            config's `tokenizer_path`.
        revision: A branch, tag or commit; None for a field of this name, else for `main`.
        dtype: What weights are stored in. MaxText casts to its own `weight_dtype` as it restores.
        cache_dir: The cache's root.
        local_files_only: Whether the hub must not be asked.
        keep_source: Whether what is downloaded from the hub stays in the hub's cache.
        progress: How progress is shown; see `lazyload.from_pretrained`.

    Returns:
        The config, of the type it was given in.

    Raises:
        ConfigError: The config describes another model than `config.json` does, which is said field by field; or its
            `load_parameters_path` is a converted checkpoint of another layout than it asks for.
        LazyLoadError: The checkpoint cannot be had; see `lazyload.convert`.

    Example:
        >>> with_checkpoint({"model_name": "qwen3-8b", "convert_checkpoint_if_possible": False})
        {'model_name': 'qwen3-8b', 'convert_checkpoint_if_possible': False}
    """
    if path := _get(config, "load_parameters_path"):
        _check_entry(config, _folder(path))
        return config
    if not _get(config, "convert_checkpoint_if_possible"):
        return config
    reference = ModelReference(
        model or _model(config),
        revision or _get(config, "revision"),
        token=_get(config, "hf_access_token") or None,
        local_files_only=local_files_only,
    )
    storage = _storage(config)
    with (
        show_progress(progress, reference.name) as shown,
        open_request(reference, dtype, "nnx", storage, cache_dir, family=None, progress=shown) as request,
    ):
        _check_fields(config, request)
        commit = request.source.identity.get("commit")
    converted = convert(
        reference.model,
        revision=commit or reference.revision,
        dtype=dtype,
        layout=MaxText(_scan_layers(config), _get(config, "vocab_size")),
        storage=storage,
        cache_dir=cache_dir,
        token=reference.token,
        local_files_only=local_files_only,
        keep_source=keep_source,
        progress=progress,
    )
    _check_head(config, converted)
    filled: MaxTextConfig = _replaced(config, load_parameters_path=str(converted.path))
    return filled


def _get(config: Any, name: str, default: Any = None) -> Any:
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


def _replaced(config: Any, **fields: Any) -> Any:
    """The config with other values, of the same type."""
    if isinstance(config, Mapping):
        return {**config, **fields}
    inner = _pydantic_of(config)
    changed = inner.model_copy(update=fields)
    return changed if inner is config else type(config)(changed)


def _pydantic_of(config: Any) -> Any:
    """The pydantic model that holds a config's fields.

    MaxText 0.2.5 keeps it in a private attribute of `HyperParameters`, which can be made of one; its other configs are
    pydantic models themselves.
    """
    return getattr(config, "_pydantic_config", config)


def _scan_layers(config: Any) -> bool:
    return bool(_get(config, "scan_layers", True))


def _storage(config: Any) -> Storage:
    return Storage(
        ocdbt=_get(config, "checkpoint_storage_use_ocdbt", None),
        zarr3=_get(config, "checkpoint_storage_use_zarr3", None),
    )


def _model(config: Any) -> str:
    """The checkpoint that a config means."""
    name, tokenizer = _get(config, "model_name"), _get(config, "tokenizer_path")
    if name in HUB_IDS:
        return HUB_IDS[name]
    if tokenizer:
        return str(tokenizer)
    raise ConfigError(f"model_name={name!r} does not say which checkpoint is meant; give model=, a hub id or a folder")


def _folder(path: str) -> Folder:
    if is_url(path):
        # What no cache can be in is MaxText's to open.
        with contextlib.suppress(CacheError):
            return bucket_path(path)
    return Path(path)


def _check_entry(config: Any, path: Folder) -> None:
    """Compares a config with the converted checkpoint that it names; other checkpoints are MaxText's to check."""
    manifest = _manifest(path)
    if manifest is None:
        return
    stored, asked = {"layout": manifest.fields.get("layout")}, {}
    # MaxText itself takes `scan_layers` from the checkpoint where nobody has set it.
    if _is_set(config, "scan_layers") or stored["layout"] not in (MaxText(True).name, MaxText(False).name):
        asked["layout"] = MaxText(_scan_layers(config)).name
    match manifest.arrays.get("params.params.token_embedder.embedding"):
        case {"shape": [int(rows), *_]}:
            stored["vocab_size"], asked["vocab_size"] = rows, _get(config, "vocab_size")
    storage = Storage.from_fields(manifest.fields.get("storage"))
    for flag in ("ocdbt", "zarr3"):
        stored[flag] = getattr(storage, flag)
        asked[flag] = _get(config, f"checkpoint_storage_use_{flag}")
    different = [name for name, value in asked.items() if value is not None and value != stored[name]]
    if different:
        raise ConfigError(
            f"the config asks for {_listed(asked, different)}, but load_parameters_path={path} is a conversion of "
            f"{manifest.model} with {_listed(stored, different)}; leave load_parameters_path empty to have it converted"
        )


def _manifest(checkpoint: Folder) -> Manifest | None:
    """The manifest of the cache's entry that a checkpoint is, directly or as the item of a composite one."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        with contextlib.suppress(UnreadableManifestError, CacheError):
            return read_entry(folder).manifest
    return None


def _is_set(config: Any, name: str) -> bool:
    """Whether somebody chose the value; MaxText's configs remember what came from its own files instead."""
    if isinstance(config, Mapping):
        return name in config
    return name in getattr(_pydantic_of(config), "model_fields_set", (name,))


def _listed(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names)


def _check_fields(config: Any, request: Request) -> None:
    """Compares a config's architecture with `config.json`.

    Raises:
        ConfigError: They differ; all differences are listed.
    """
    problems = []
    for names, expected in _expected(request).items():
        name, value = next(((n, v) for n in names if (v := _get(config, n)) is not None), ("", None))
        if value is not None and value != expected:
            problems.append(f"{name} is {value}, config.json means {expected}")
    vocab_size, rows = _get(config, "vocab_size"), request.architecture.vocab_size
    if vocab_size is not None and vocab_size < rows:
        problems.append(f"vocab_size is {vocab_size}, config.json has {rows}; it can be larger, but not smaller")
    if _scan_layers(config) and _get(config, "param_scan_axis", 1) != 1:
        problems.append(f"param_scan_axis is {_get(config, 'param_scan_axis')}, scanned layers are stored on axis 1")
    problems += _unlike_maxtext(config, request)
    if problems:
        name = _get(config, "model_name")
        raise ConfigError(
            f"the MaxText config (model_name={name!r}) and {request.source.name}'s config.json are not of one model:"
            + "".join(f"\n  - {problem}" for problem in problems)
        )


def _unlike_maxtext(config: Any, request: Request) -> list[str]:
    """Settings with which MaxText's model is another, or none, whatever the sizes: sentences."""
    problems = []
    deepstack, weight_dtype = _get(config, "deepstack_visual_indexes_for_vit"), _get(config, "weight_dtype")
    if deepstack and _scan_layers(config):
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
        cycle, name = 5 if _get(config, "model_name") == "gemma4-e2b" else 6, _get(config, "model_name")
        if (first := global_layers(model)[0] + 1) != cycle:
            problems.append(
                f"model_name is {name}, whose every {cycle}th layer has full attention; config.json has every {first}th"
            )
    return problems


def _check_head(config: Any, converted: CachedCheckpoint) -> None:
    """Compares the config with what is stored, which decides whether the output projection is the embedding.

    Raises:
        ConfigError: They differ.
    """
    value, expected = _get(config, "logits_via_embedding"), HEAD not in converted.manifest.arrays
    if value is not None and value != expected:
        raise ConfigError(
            f"the MaxText config (model_name={_get(config, 'model_name')!r}) and {converted.manifest.model} are not of "
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
        # Where config.json ties them, what is stored decides (`_check_head`).
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
    if request.family.name == "llama4":
        # Dense layers and those with experts follow each other by turns.
        expected.pop(("first_num_dense_layers",), None)
        expected |= _expected_of_llama4(model)
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
