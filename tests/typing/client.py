# pyright: strict
"""What users write. A type checker rejects the lines that end in `# rejected: <error code>`, and accepts the others.

Never run: `test_typing.py` gives it to mypy, whose error codes these are, and `with_pyright.py` to pyright.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lazyload

# Of these two functions of JAX pyright does not know all.
mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))  # pyright: ignore[reportUnknownMemberType]
tokens = jnp.zeros((1, 8), jnp.int32)  # pyright: ignore[reportUnknownMemberType]

# What is returned follows the layout.
model = lazyload.from_pretrained("Qwen/Qwen3-8B")
assert_type(model, lazyload.Decoder)
assert_type(model.config, lazyload.DecoderConfig)
assert_type(lazyload.from_pretrained(pathlib.Path("model"), layout="nnx", mesh=mesh, dtype="float32"), lazyload.Decoder)
assert_type(lazyload.from_pretrained("m", layout=lazyload.MaxText(scan_layers=True)), dict[str, Any])
assert_type(lazyload.from_pretrained("m", layout=lazyload.Layout({"table": "embed : vocab embed"})), dict[str, Any])
logits, cache = model(tokens)
assert_type(logits, jax.Array)
module: nnx.Module = model
model.typo()  # rejected: attr-defined
model("tokens")  # rejected: arg-type
print(model.config.num_layer)  # rejected: attr-defined
print(lazyload.from_pretrained("m", layout=lazyload.MaxText()).config)  # rejected: attr-defined


class Bigrams(nnx.Module):
    def __init__(self, vocab: int) -> None:
        self.vocab = vocab


def build(config: Any, arrays: Mapping[str, jax.Array]) -> Bigrams:
    return lazyload.fill(nnx.eval_shape(lambda: Bigrams(config.vocab_size)), arrays)


target = lazyload.Target(lazyload.Layout({"table": "embed : vocab embed"}), build)
own = lazyload.from_pretrained("m", layout=target, rules={"vocab": None})
assert_type(own, Bigrams)
own.typo()  # rejected: attr-defined
assert_type(lazyload.fill(own, {"table": tokens}), Bigrams)
lazyload.Target(lazyload.Layout({}), build=7)  # rejected: arg-type
lazyload.Layout({"table": 7})  # rejected: dict-item

# A module that exists is filled, and is what it was.
config = lazyload.config("m", revision="v1", layers=range(0, 8))
assert_type(config, lazyload.DecoderConfig)
assert_type(config.num_layers, int)
empty = lazyload.Decoder(config, rngs=None)
assert_type(lazyload.from_pretrained("m", into=empty, mesh=mesh), lazyload.Decoder)
assert_type(lazyload.from_pretrained("m", layout=target.layout, into=own, dtype="float32"), Bigrams)
lazyload.from_pretrained("m", layout=lazyload.MaxText(), into=empty)  # rejected: call-overload
lazyload.from_pretrained("m", layout=target, into=own)  # rejected: call-overload
lazyload.from_pretrained("m", into="module")  # rejected: call-overload
lazyload.config("m", mesh=mesh)  # rejected: call-overload
lazyload.config("m", layers=8)  # rejected: call-overload
family = lazyload.Family("mine", ("mine",), lambda values: config, lambda config: target.layout)
assert_type(lazyload.config("m", family=family), Any)

# Dtypes are a few names, or what JAX takes for a dtype.
lazyload.from_pretrained("m", dtype="bfloat16")
lazyload.from_pretrained("m", dtype=jnp.bfloat16)
lazyload.from_pretrained("m", dtype=np.float32)
lazyload.convert("m", dtype=np.dtype("float16"))
lazyload.plan("m", dtype=tokens)
lazyload.from_pretrained("m", dtype="auto")
lazyload.convert("m", dtype="bf16")
lazyload.from_pretrained("m", dtype={"*norm*": "float32", "router": jnp.float32, "*": "auto"})
lazyload.plan("m", dtype={"*norm*": "float33"})  # rejected: dict-item
lazyload.from_pretrained("m", dtype="bf17")  # rejected: call-overload
lazyload.convert("m", dtype="bf17")  # rejected: arg-type
lazyload.plan("m", dtype=16)  # rejected: arg-type

# Layers are a range.
lazyload.from_pretrained("m", layers=range(0, 8))
lazyload.convert("m", layers=8)  # rejected: arg-type

# Layouts are one name, or values.
lazyload.convert("m", layout="nnx")
lazyload.convert("m", layout=target)
lazyload.from_pretrained("m", layout="nnxx")  # rejected: call-overload
lazyload.convert("m", layout="nnxx")  # rejected: arg-type
lazyload.plan("m", layout=lazyload.MaxText)  # rejected: arg-type
lazyload.MaxText(scan_layers=1.5)  # rejected: arg-type

# Rules go to mesh axes.
lazyload.from_pretrained("m", rules={"embed": "fsdp", "mlp": ("fsdp", "tp"), "vocab": None})
lazyload.from_pretrained("m", rules=[("embed", "fsdp"), ("mlp", ["fsdp", "tp"])])
lazyload.from_pretrained("m", rules={"embed": 3})  # rejected: dict-item
lazyload.from_pretrained("m", rules=[("embed", 3)])  # rejected: list-item

# Everything else that a call takes.
lazyload.from_pretrained("m", revision="v1", token=False, local_files_only=True, force_convert=True, cache_dir="c")
lazyload.from_pretrained("m", storage=lazyload.Storage(ocdbt=False), progress=print)
lazyload.from_pretrained("m", progress=lambda progress: print(progress.stage.upper(), progress.done / progress.total))
lazyload.convert("m", progress="tqdm")  # rejected: arg-type
lazyload.from_pretrained(7)  # rejected: call-overload
lazyload.from_pretrained("m", mesh="fsdp=8")  # rejected: call-overload
lazyload.from_pretrained("m", meshes=mesh)  # rejected: call-overload
lazyload.convert("m", mesh=mesh)  # rejected: call-arg
lazyload.from_pretrained("m", torch_dtype="bfloat16")  # rejected: call-overload
lazyload.convert("m", torch_dtype="bfloat16")  # rejected: call-arg
lazyload.plan("m", device_map="auto")  # rejected: call-arg
lazyload.from_pretrained("m", subfolder="text", variant="fp16", storage={"ocdbt": False}, config={"field": None})
lazyload.from_pretrained("m", strict="yes")  # rejected: call-overload
lazyload.Storage(ocdbt="yes")  # rejected: arg-type
lazyload.from_pretrain("m")  # rejected: attr-defined

# What comes back besides models.
converted = lazyload.convert("m")
assert_type(converted.path, pathlib.Path | lazyload.BucketPath)
assert_type(converted.manifest, lazyload.Manifest)
plan = lazyload.plan("m")
assert_type(plan, lazyload.Plan)
assert_type(plan.parameters, Mapping[str, lazyload.Parameter])
assert_type(lazyload.last_report(), lazyload.LoadReport)
assert_type(lazyload.Cache().entries(), list[lazyload.Entry])
assert_type(lazyload.Cache("cache").prune(older_than=86400.0), list[lazyload.Removal])
assert_type(lazyload.verify("m", cache_dir="cache"), list[lazyload.Verification])
plan.nbytes = 0  # rejected: misc
print(plan.parameters["embed.embedding"].shap)  # rejected: attr-defined
lazyload.Cache().prune(older_than="30d")  # rejected: arg-type
