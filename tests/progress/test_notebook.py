"""What is shown in a notebook: a real kernel, and every message that it sends for its cells' outputs."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from support import checkpoints
from support.hub import Hub, running

import lazyload

MODEL = "org/qwen"
HEAD = f"{MODEL}: 189,120 parameters, 378.2 kB of bfloat16, "

CELLS = {
    "slow": "import os, signal, threading, lazyload, support.slow",
    "first": f"model = lazyload.from_pretrained('{MODEL}')",
    "hit": f"converted = lazyload.convert('{MODEL}')",
    "silent": f"converted = lazyload.convert('{MODEL}', force_convert=True, progress=False)",
    "function": f"""
seen = []
converted = lazyload.convert('{MODEL}', force_convert=True, progress=seen.append)
print({{progress.stage for progress in seen}})""",
    "threads": f"""
def load(dtype):
    lazyload.convert('{MODEL}', dtype=dtype)
threads = [threading.Thread(target=load, args=[dtype]) for dtype in ("float16", "float32")]
for thread in threads: thread.start()
for thread in threads: thread.join()""",
    "interrupted": f"""
support.slow.SECONDS = 0.3
threading.Timer(1.7, os.kill, [os.getpid(), signal.SIGINT]).start()
converted = lazyload.convert('{MODEL}', force_convert=True)""",
}


class Recorder(NotebookClient):
    """Executes a notebook, and keeps what its cells showed one after the other."""

    def __init__(self, notebook: Any, **options: Any):
        super().__init__(notebook, **options)
        self.shown: dict[int, list[dict[str, str]]] = defaultdict(list)

    def process_message(self, message: Any, cell: Any, index: int) -> Any:
        if message["header"]["msg_type"] in ("display_data", "update_display_data"):
            self.shown[index].append(message["content"]["data"])
        return super().process_message(message, cell, index)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[list[Any], list[dict[str, str]]]]]:
    """By a cell's name, its outputs in the end, and what was shown on the way."""
    folder = tmp_path_factory.mktemp("notebook")
    hub: Hub = running()
    hub.add(MODEL, checkpoints.make("qwen3", folder))
    hub.faults.append((r"GET .*\.safetensors$", lambda handler: bool(hub.ended.wait(1))))
    places = [Path(lazyload.__file__).parents[1], Path(__file__).parents[1]]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "LAZYLOAD_CACHE": str(folder / "cache"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    notebook = new_notebook(cells=[new_code_cell(code) for code in CELLS.values()])
    client = Recorder(notebook, timeout=300, kernel_name="python3", allow_errors=True)
    client.execute(env=environment)
    yield {
        name: (cell.outputs, client.shown[index])
        for index, (name, cell) in enumerate(zip(CELLS, notebook.cells, strict=True))
    }
    hub.reset()


def texts(outputs: list[Any]) -> list[str]:
    """What a cell's outputs say; what is no text of the line itself fails."""
    assert {output["output_type"] for output in outputs} <= {"display_data"}, outputs
    return [output["data"]["text/plain"] for output in outputs]


Executed = dict[str, tuple[list[Any], list[dict[str, str]]]]


def test_one_output_becomes_each_stage_and_ends_as_a_sentence(executed: Executed) -> None:
    outputs, shown = executed["first"]
    (sentence,) = texts(outputs)
    assert outputs[0]["data"].keys() == {"text/plain"}
    assert re.fullmatch(
        re.escape(HEAD) + r"converted, and restored onto 8 devices \(cpu\) in (\d+ ms|\d+\.\d s)", sentence
    )
    words = [data["text/plain"].split()[0] for data in shown[:-1]]
    # Restoring takes no time, as the devices have been given their shards meanwhile.
    assert list(dict.fromkeys(words))[:2] == ["downloading", "converting"]
    for data in shown[:-1]:
        assert re.search(rf"^\w+ing {MODEL}: +\d+%\|.*\| .*B/s\]$", data["text/plain"])
        form = r"\w+ing {}: <progress value='\d+' max='\d+'></progress> \d+%, \S+B of \S+B, \S+B/s, \S+ left"
        assert re.fullmatch(form.format(MODEL), data["text/html"])
    amount, unit = sentence.split()[-2:]
    seconds = float(amount) / (1000 if unit == "ms" else 1)
    assert len(shown) < 12 * seconds + 5


def test_what_takes_no_time_is_one_sentence(executed: Executed) -> None:
    outputs, shown = executed["hit"]
    assert len(shown) == 1
    assert re.fullmatch(re.escape(HEAD) + r"in the cache already, looked up in \d+ ms", texts(outputs)[0])


def test_silence_is_silent(executed: Executed) -> None:
    assert executed["slow"] == ([], [])
    assert executed["silent"] == ([], [])


def test_a_function_is_called_and_nothing_shown(executed: Executed) -> None:
    outputs, shown = executed["function"]
    assert shown == []
    assert [output["text"] for output in outputs] == ["{'convert'}\n"]


def test_loads_of_several_threads_have_an_output_each(executed: Executed) -> None:
    sentences = texts(executed["threads"][0])
    assert sorted(re.findall(r"of (\w+), converted into the cache", "\n".join(sentences))) == ["float16", "float32"]
    assert len(sentences) == 2


def test_an_interrupted_cell_says_how_far_it_came(executed: Executed) -> None:
    line, error = executed["interrupted"][0]
    assert re.fullmatch(rf"converting {MODEL}: stopped at \d+%", line["data"]["text/plain"])
    assert error["ename"] == "KeyboardInterrupt"
