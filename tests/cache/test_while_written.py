"""What somebody removes or changes while a conversion writes it is not published, in any flavour."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import checkpoints

import lazyload
from lazyload.errors import CacheError

FLAVOURS = [
    lazyload.Storage(ocdbt, zarr3, compression)
    for ocdbt in (True, False)
    for zarr3 in (True, False)
    for compression in ("none", "zstd")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "shorter": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": longer,
}


# What stands behind the values of an OCDBT file is read by nobody.
CASES = [(storage, damage) for storage in FLAVOURS for damage in DAMAGES if not (storage.ocdbt and damage == "longer")]


@pytest.mark.parametrize(("storage", "damage"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_a_data_file_that_is_changed_meanwhile_keeps_all_from_being_published(
    model: Path, tmp_path: Path, storage: lazyload.Storage, damage: str
) -> None:
    damaged: list[Path] = []

    def largest() -> Path | None:
        data = re.compile(r".*/(d/[0-9a-f]{32}|[0-9.]+)")
        files = [path for path in tmp_path.glob("models--*/*/data-*/**/*") if data.fullmatch(str(path))]
        return max(filter(Path.is_file, files), key=lambda path: path.stat().st_size, default=None)

    def report(progress: lazyload.Progress) -> None:
        # Of what is converted, little is on the disk yet.
        deadline = time.monotonic() + 0.3
        is_late = progress.stage == "convert" and progress.done > progress.total / 2
        while is_late and not damaged and time.monotonic() < deadline:
            time.sleep(0.01)
            if largest():
                # That it is complete is noted by another thread.
                time.sleep(0.2)
                damaged.append(largest())
                DAMAGES[damage](damaged[0])

    with pytest.raises(CacheError, match=r"was changed while it was written|cannot be written to"):
        lazyload.convert(model, cache_dir=tmp_path, storage=storage, progress=report)
    assert damaged
    assert not list(tmp_path.glob("models--*"))
    assert lazyload.convert(model, cache_dir=tmp_path, storage=storage).converted
