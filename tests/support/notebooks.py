"""The notebooks of `examples/`, executed as a reader would: in a kernel of this Python, with a home of its own.

    PYTHONPATH=tests python -m support.notebooks [NAME...]                     # in place: the outputs that are kept
    PYTHONPATH=tests python -m support.notebooks --narrow --into FOLDER [NAME...]      # as the tests execute them

There is no network: a hub on loopback serves the published models that the notebooks name, with random weights. The
outputs that are kept are of the published shapes (it takes 5 GB of disk and 7 GB of memory for a while); the tests do
with narrower models of as many layers and heads, of which the same is said with other numbers.
"""

import argparse
import html.parser
import json
import os
import re
import string
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jupyter_client
import ml_dtypes
import nbclient
import nbconvert
import nbformat
import numpy as np
from jupyter_client.kernelspec import KernelSpecManager
from safetensors.numpy import save_file

from support.hub import running
from support.large import shapes_of

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
HUB_CONFIGS = Path(__file__).parents[1] / "families" / "hub_configs"
PUBLISHED = ("Qwen3-0.6B", "SmolLM2-135M")
WITH_UNUSED_HEAD = ("Qwen3-0.6B",)
"""Models whose files have an output projection although their `config.json` ties it to the embedding."""

IGNORED = "nbval-ignore-output"
"""The tag of cells whose output says something else each time, by the name that nbval gave it."""


def execute(path: Path, home: Path) -> nbformat.NotebookNode:
    """Executes a notebook in a kernel whose home folder, caches and all, is `home`; the hub must be serving its models.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    work = home / "work"
    work.mkdir(parents=True)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        km=_kernel_manager(home),
        resources={"metadata": {"path": str(work)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=_environment(home))
    return _as_kept(notebook, home)


def _kernel_manager(home: Path) -> jupyter_client.AsyncKernelManager:
    """Starts kernels of this Python, whatever kernels the user has installed."""
    kernels = home / "kernels"
    (kernels / "python3").mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    (kernels / "python3" / "kernel.json").write_text(json.dumps(spec))
    return jupyter_client.AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels)])
    )


def _environment(home: Path) -> dict[str, str]:
    """A reader's environment: nothing in the caches, nobody logged in, the command on PATH."""
    foreign = ("LAZYLOAD_", "HF_", "XDG_", "JUPYTER_", "XLA_FLAGS", "VIRTUAL_ENV", "COLUMNS", "FORCE_COLOR", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "HOME": str(home),
        "IPYTHONDIR": str(home / ".ipython"),
        "HF_ENDPOINT": running().endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # The hub hashes large files each time it is asked for them.
        "HF_HUB_ETAG_TIMEOUT": "600",
        "HF_HUB_DOWNLOAD_TIMEOUT": "600",
        "JAX_PLATFORMS": "cpu",
        # Eight devices share few cores, and XLA ends a process in which some wait for the others for too long.
        "XLA_FLAGS": "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=900",
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "PYTHONWARNINGS": "ignore",
        "TERM": "xterm-256color",
    }


def _as_kept(notebook: nbformat.NotebookNode, home: Path) -> nbformat.NotebookNode:
    """A notebook without what is particular to this run: its work folder is that of Colab, its home is nobody's."""
    notebook.metadata.language_info = {"name": "python"}
    text = nbformat.writes(notebook)
    for folder in {home, home.resolve()}:
        for path, name in ((folder / "work", "/content"), (folder, "~")):
            text = text.replace(str(path), name).replace(str(path).replace("/", "--"), name.replace("/", "--"))
    return nbformat.reads(text, as_version=4)


def as_page(notebook: nbformat.NotebookNode, *, dark: bool = False) -> str:
    """A notebook as a page of HTML that looks like JupyterLab and needs nothing from elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exporter = nbconvert.HTMLExporter(
            template_name="lab", theme="dark" if dark else "light", mathjax_url="", require_js_url=""
        )
        page, _ = exporter.from_notebook_node(notebook)
    return str(page)


def serve_models(folder: Path, *, narrow: bool) -> None:
    """Writes the models that notebooks name, and serves them on the hub of this process."""
    for name in PUBLISHED:
        published = json.loads((HUB_CONFIGS / f"{name}.json").read_text())
        config = published["config"]
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        if narrow:
            factor = config["head_dim"] // 8  # the same for all sizes, so that they compare as the published ones do
            sizes = ("head_dim", "hidden_size", "intermediate_size", "vocab_size")
            config |= {size: config[size] // factor for size in sizes}
        _write_model(folder / name, config, with_unused_head=name in WITH_UNUSED_HEAD)
        running().add(published["model"], folder / name)


def _write_model(folder: Path, config: Mapping[str, Any], *, with_unused_head: bool) -> None:
    """Writes a model of random weights, which generates printable characters, and a tokenizer of single bytes."""
    block = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(ml_dtypes.bfloat16)
    ones = np.ones(1, ml_dtypes.bfloat16)
    tensors = {
        name: np.resize(ones if len(shape) == 1 else block, shape)  # those of norms are vectors
        for name, shape in shapes_of(config).items()
    }
    vocabulary = _byte_vocabulary()
    tensors["model.embed_tokens.weight"][len(string.ascii_letters + string.digits + string.punctuation) :] = 0
    if with_unused_head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": bytewise,
        "post_processor": None,
        "decoder": bytewise,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for file in folder.iterdir():
        os.utime(file, (0, 0))  # the hub's commits, and with them keys, are the same each time


def _byte_vocabulary() -> dict[str, int]:
    """The 256 tokens that a vocabulary of the form of GPT-2 begins with: printable bytes, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
    return {character: token for token, character in enumerate(shown)}


def says(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """For each cell its id and what its outputs are: kinds, and texts without numbers; no texts of ignored cells."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ignored = IGNORED in cell.metadata.get("tags", ())
            yield cell.id, [(kind, "" if ignored else _masked(text)) for kind, text in _outputs(cell.outputs)]


def _outputs(outputs: Sequence[nbformat.NotebookNode]) -> Iterator[tuple[str, str]]:
    for output in outputs:
        if output.output_type == "stream":
            yield output.name, output.text
        elif output.output_type in ("display_data", "execute_result"):
            for mime, data in sorted(output.data.items()):
                yield mime, _visible(data) if mime in ("text/html", "image/svg+xml") else str(data)
        else:
            yield output.output_type, "\n".join(output.traceback)


class _Texts(html.parser.HTMLParser):
    """Collects the texts of a page, but for what is not shown."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 0
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.texts.append(data)


def _visible(markup: str) -> str:
    parser = _Texts()
    parser.feed(markup)
    return " ".join(parser.texts)


def _masked(text: str) -> str:
    """A text without what differs from run to run and from model to model: numbers with their units, keys, widths."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{6,}\b", "#", text)
    text = re.sub(r"[-+]?\d[\d,.:e-]*(\s?([kKMGT]?B|[KMBT]|million|billion|ms|s|min|h|%)(?!\w))?", "#", text)
    text = re.sub(r"([^\w\s#])\1+", r"\1", text)
    return " ".join(re.sub(r"#(\s*#)+", "#", text).split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--narrow", action="store_true", help="with models that are narrower than the published ones")
    parser.add_argument("--into", type=Path, help="where to write what was executed; default: in place")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        serve_models(Path(temporary) / "models", narrow=arguments.narrow)
        for name in arguments.names or NAMES:
            executed = execute(EXAMPLES / name, Path(temporary) / name.removesuffix(".ipynb"))
            nbformat.write(executed, (arguments.into or EXAMPLES) / name)


if __name__ == "__main__":
    main()
