"""`lazyload.tokenizer`: from wherever a model comes from, with whichever package is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints
from support.hub import Hub
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

import lazyload
from lazyload.errors import ArgumentError, MissingPackageError, SourceNotFoundError

FIND_SPEC = importlib.util.find_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model with a tokenizer that knows bytes."""
    folder = checkpoints.make("qwen3", tmp_path)
    inner = Tokenizer(BPE({letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7], "pad_token_id": 3}))
    return folder


@pytest.fixture(params=["tokenizers", "transformers"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Only this package is installed."""
    if request.param == "transformers":
        pytest.importorskip("transformers", minversion="5.24")
    only(monkeypatch, request.param)
    return str(request.param)


def only(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    def find_spec(name: str, *rest: Any) -> Any:
        hidden = name in ("tokenizers", "transformers") and name not in packages
        return None if hidden else FIND_SPEC(name, *rest)

    monkeypatch.setattr("lazyload.tokenizing.importlib.util.find_spec", find_spec)


def test_texts_become_tokens_and_texts_again(folder: Path, reader: str) -> None:
    tokenizer = lazyload.tokenizer(folder)
    assert type(tokenizer.inner).__module__.split(".")[0] == reader
    tokens = tokenizer.encode("Hello, world")
    assert len(tokens) == 12
    assert tokenizer.decode(tokens) == "Hello, world"
    assert (tokenizer.eos, tokenizer.pad) == ((5, 7), 3)
    batch, mask = tokenizer.batch(["Hello", "Hi"])
    assert batch[1].tolist() == [3, 3, 3, *tokenizer.encode("Hi")]
    assert mask.tolist() == [[1] * 5, [0, 0, 0, 1, 1]]
    model = lazyload.from_pretrained(folder, cache_dir=folder / "cache")
    made = lazyload.generate(model, batch, 3, attention_mask=mask, eos=tokenizer.eos, pad=tokenizer.pad)
    assert isinstance(tokenizer.decode(made[0]), str)


def test_a_conversation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", minversion="5.24")
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    said = [{"role": "user", "content": "Hi"}]
    with pytest.raises(SourceNotFoundError, match="no chat template"):
        lazyload.tokenizer(folder).chat(said)
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = lazyload.tokenizer(folder)
    assert tokenizer.decode(tokenizer.chat(said)) == "<user>Hi>"
    only(monkeypatch, "tokenizers")
    with pytest.raises(MissingPackageError, match="written by transformers"):
        lazyload.tokenizer(folder).chat(said)


def test_from_the_hub_and_then_without_it(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "tokenizers")
    hub.add("org/model", folder)
    hub.private.add("org/model")
    with pytest.raises(SourceNotFoundError, match="if it is private"):
        lazyload.tokenizer("org/model")
    assert lazyload.tokenizer("org/model", token="hf_secret").decode([40, 41])
    hub.down = True
    assert lazyload.tokenizer("org/model", token="hf_secret", local_files_only=True).eos == (5, 7)


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="give a list"):
        lazyload.tokenizer(folder).batch("Hello")
    only(monkeypatch)
    with pytest.raises(MissingPackageError, match="pip install tokenizers"):
        lazyload.tokenizer(folder)
    only(monkeypatch, "tokenizers")
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(MissingPackageError, match="its other files need transformers"):
        lazyload.tokenizer(folder)
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(SourceNotFoundError, match="has no tokenizer"):
        lazyload.tokenizer(folder)
