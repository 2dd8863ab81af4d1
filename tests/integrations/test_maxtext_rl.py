"""`examples/maxtext_rl.py`: MaxText's real `train_rl`, to its end, on a checkpoint from the cache.

Needs MaxText and Tunix in this environment, or in the one whose interpreter `LAZYLOAD_MAXTEXT_PYTHON` names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import checkpoints
from support.hub import Hub
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = os.environ.get("LAZYLOAD_MAXTEXT_PYTHON") or (sys.executable if importlib.util.find_spec("maxtext") else None)
HAS_TUNIX = "LAZYLOAD_MAXTEXT_PYTHON" in os.environ or importlib.util.find_spec("tunix") is not None
pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="MaxText is not installed"),
    pytest.mark.skipif(not HAS_TUNIX, reason="Tunix is not installed"),
    pytest.mark.xdist_group("maxtext"),
]

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SETTINGS = {
    "model_name": "qwen3-0.6b",
    "override_model_config": True,
    "base_emb_dim": 64,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 2,
    "base_mlp_dim": 96,
    "base_num_decoder_layers": 4,
    "head_dim": 16,
    "vocab_size": 512,
    "logits_via_embedding": False,
    "rope_max_timescale": 10000,
    "normalization_layer_epsilon": 1e-6,
    "run_name": "run",
    "hardware": "cpu",
    "log_config": False,
    "skip_jax_distributed_system": True,
    "use_pathways": False,
    "hf_subset": "",
    "num_batches": 2,
    "batch_size": 4,
    "num_test_batches": 0,
    "max_target_length": 576,
    "max_prefill_predict_length": 512,
    # What rl.yml keeps on the host's memory, which the CPU has not apart.
    "decoder_layer_input": "remat",
    "query_proj": "remat",
    "key_proj": "remat",
    "value_proj": "remat",
}


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of 500 tokens, with a chat template, beside a model's weights."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(
        ["What is 2 plus 3? The answer is 5. <reasoning> </reasoning> <answer>"] * 50, trainer
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_train_rl_runs_to_its_end_and_nobody_is_asked_for_a_token(tmp_path: Path, hub: Hub) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    write_tokenizer(folder)
    hub.add("Qwen/Qwen3-0.6B", folder)
    (tmp_path / "gsm8k").mkdir()
    questions = [{"question": f"What is {n} plus {n + 1}?", "answer": f"#### {2 * n + 1}"} for n in range(64)]
    (tmp_path / "gsm8k" / "train.jsonl").write_text("\n".join(map(json.dumps, questions)))
    settings = {
        **SETTINGS,
        "dataset_name": tmp_path / "gsm8k",
        "tokenizer_path": folder,
        "base_output_directory": tmp_path / "out",
    }
    words = [f"{name}={value}" for name, value in settings.items()]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LAZYLOAD_CACHE": str(tmp_path / "cache"),
        "LAZYLOAD_LOG": "info",
    }
    environment |= {
        "HF_HOME": str(tmp_path / "hub"),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }
    command = [str(PYTHON), str(HERE / "without_vllm.py"), str(ROOT / "examples" / "maxtext_rl.py"), *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "RL Training Completed Successfully!" in done.stderr
    # The reference is converted, the policy is a hit; rl.yml turns both flags of storage off, for Pathways.
    loads = [line for line in done.stderr.splitlines() if "Qwen/Qwen3-0.6B: miss (" in line or "6B: hit (" in line]
    assert ["miss" in line for line in loads] == [True, False]
    assert "Qwen/Qwen3-0.6B: hit (" in done.stdout
    [path] = (tmp_path / "cache").rglob("items")
    assert list(path.rglob(".zarray"))
    assert not (path / "manifest.ocdbt").exists()
    assert hub.told == []
