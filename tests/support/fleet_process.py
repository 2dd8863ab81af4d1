"""One process of a fleet: `python -m support.fleet_process PORT COUNT INDEX DEVICES`, with a command a line of input.

A command is a JSON object:

    call         "from_pretrained" (the default), "convert", "wait" (seconds), "leave", which has no answer
    model        what is loaded
    options      further arguments of the call
    processes    whose devices the mesh has, by index; all, if there is none
    mesh         its shape, axes "fsdp" and "tp"; one axis, if there is none
    set_mesh     whether it is set, rather than given
    environment  variables while the call runs
    fault        what happens to this process: "kill", "stop" or "raise" with a stage, or with "exchange", where devices
                 are about to exchange what they have read, or with "publish"; "slow" with seconds a report; "lose" with
                 a folder: what is in there of converted checkpoints is removed before it is read
    most_bytes   what a file that this process writes may have at most
    object_bytes how large a data file in a bucket becomes
    is_impatient whether what a bucket does not answer is asked again at once
    format       another number of the entries' format

It answers with one: "error" and "message" if the call has raised, else "shards", which has of each array the place and
the SHA-256 of each of this process's shards, and the numbers of its report; in any case "seconds", and "read", the
bytes of its reads.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax import nnx

import lazyload
from lazyload import request
from lazyload.bucket import bucket
from lazyload.cache.entry import Entry
from lazyload.cache.staging import Staging
from lazyload.checkpoint import exchange, ranges, store
from lazyload.restoring import Restoring

_PLACES = {"exchange": (exchange, "_moved"), "publish": (Staging, "publish")}
"""Functions in which something can happen."""


def main(port: int, count: int, index: int, devices: int) -> None:
    """Carries out commands until there are no more."""
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # What JAX itself does about a process that is no more comes later than what is tested.
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=600)
    jax.devices()
    for line in sys.stdin:
        command = json.loads(line)
        if command.get("call") == "leave":
            return
        answer = carry_out(command)
        print(json.dumps(answer), flush=True)
    # Not by way of JAX's farewell, which waits for those that are no more.
    os._exit(0)


def carry_out(command: Mapping[str, Any]) -> dict[str, Any]:
    """One command's answer."""
    started, read = time.monotonic(), bytes_read()
    answer: dict[str, Any] = {}
    try:
        with faults(command), mock.patch.dict(os.environ, command.get("environment", {})):
            answer = called(command)
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": type(error).__name__, "message": str(error)}
    return {**answer, "seconds": time.monotonic() - started, "read": bytes_read() - read, "at": time.time()}


def called(command: Mapping[str, Any]) -> dict[str, Any]:
    """What a call gives."""
    options = {"progress": progress(command.get("fault"))} | command.get("options", {})
    match command.get("call", "from_pretrained"):
        case "wait":
            time.sleep(command["seconds"])
            return {}
        case "convert":
            return {"path": str(lazyload.convert(command["model"], **options).path)}
        case _:
            options.setdefault("layout", lazyload.MaxText())
            if command.get("set_mesh"):
                with jax.set_mesh(mesh(command)):
                    arrays = lazyload.from_pretrained(command["model"], **options)
            else:
                arrays = lazyload.from_pretrained(command["model"], mesh=mesh(command), **options)
            member = jax.process_index() in command.get("processes", range(jax.process_count()))
            return {
                "shards": dict(shards(arrays)),
                "count": len(jax.tree.leaves(arrays)),
                "remat": getattr(arrays, "remat", None),
                **(dataclasses.asdict(lazyload.last_report(), dict_factory=plain) if member else {}),
            }


def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a report that are numbers."""
    return {name: value for name, value in pairs if isinstance(value, int | float)}


def mesh(command: Mapping[str, Any]) -> jax.sharding.Mesh:
    """The mesh of a command."""
    processes = command.get("processes", range(jax.process_count()))
    devices = np.array([device for device in jax.devices() if device.process_index in processes])
    shape = command.get("mesh", [len(devices)])
    return jax.sharding.Mesh(devices.reshape(shape), ("fsdp", "tp")[: len(shape)])


def shards(arrays: Any) -> Iterator[tuple[str, list[Any]]]:
    """Place and content of what this process has of each array."""
    arrays = nnx.to_pure_dict(nnx.state(arrays)) if isinstance(arrays, nnx.Module) else arrays
    for path, array in jax.tree.leaves_with_path(arrays):
        yield (
            jax.tree_util.keystr(path),
            [
                [
                    [list(cut.indices(size)[:2]) for cut, size in zip(shard.index, array.shape, strict=True)],
                    hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest(),
                ]
                for shard in array.addressable_shards
            ],
        )


def progress(fault: list[Any] | None) -> Callable[[lazyload.Progress], None] | bool:
    """A progress function that does what is to happen, once the stage is under way."""
    if fault is None or fault[0] == "lose":
        return False
    kind, where = fault
    has_happened = False

    def function(now: lazyload.Progress) -> None:
        nonlocal has_happened
        if kind == "slow":
            time.sleep(where)
        elif now.stage == where and now.done and not has_happened:
            has_happened = True
            happen(kind)

    return function


def happen(kind: str) -> None:
    """Raises, or sends this process a signal."""
    if kind == "raise":
        raise ConnectionError("the network is gone")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])


def happening(kind: str, owner: Any, name: str) -> Any:
    """Has it happen when a function is called, before it does anything."""
    function = getattr(owner, name)

    def called(*arguments: Any, **options: Any) -> Any:
        happen(kind)
        return function(*arguments, **options)

    return mock.patch.object(owner, name, called)


@contextlib.contextmanager
def faults(command: Mapping[str, Any]) -> Iterator[None]:
    """Limits that hold while the body runs."""
    with contextlib.ExitStack() as stack:
        if number := command.get("format"):
            stack.enter_context(mock.patch.object(request, "ENTRY_FORMAT", number))
        if command.get("is_impatient"):
            stack.enter_context(asked_again_at_once())
        if nbytes := command.get("object_bytes"):
            stack.enter_context(mock.patch.object(ranges, "_OBJECT_BYTES", nbytes))
        if (command.get("fault") or [""])[0] == "lose":
            stack.enter_context(lost_before_it_is_read(command["fault"][1]))
        kind, where = command.get("fault") or ("", "")
        if where in _PLACES:
            stack.enter_context(happening(kind, *_PLACES[where]))
        if most := command.get("most_bytes"):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        yield


@contextlib.contextmanager
def asked_again_at_once() -> Iterator[None]:
    """Whoever asks a bucket waits for nothing before it asks again."""
    import gcsfs.retry

    async def at_once(seconds: float) -> None:
        """Does not wait."""

    with (
        mock.patch.object(gcsfs.retry, "asyncio", SimpleNamespace(sleep=at_once)),
        mock.patch.object(bucket, "_FIRST_WAIT_SECONDS", 0.0),
        mock.patch.dict(store._RETRIES, initial_delay="1ms", max_delay="1ms"),
    ):
        yield


def lost_before_it_is_read(cache: str) -> Any:
    """The cache loses its data when this process is about to read it."""
    of = Restoring.of

    def losing(self: Restoring, entry: Entry) -> Any:
        for folder in Path(cache).rglob("data-*"):
            shutil.rmtree(folder, ignore_errors=True)
        self._delivery = None
        return of(self, entry)

    return mock.patch.object(Restoring, "of", losing)


def bytes_read() -> int:
    """The bytes that this process has read by system calls."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
