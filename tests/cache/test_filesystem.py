"""What is known of the file system that the cache is on."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyload.cache import filesystem


def mounted(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home/me", "ext4"),
        ("/data", "xfs"),
        ("/data/deeper/cache", "nfs4"),
        ("/database", "ext4"),
        ("/with space/cache", "tmpfs"),
        ("/twice", "overlay"),
    ],
)
def test_the_deepest_mount_counts_and_of_two_the_last(path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(
        monkeypatch,
        "/dev/a / ext4 rw 0 0",
        "host:/x /data/deeper nfs4 rw 0 0",
        "/dev/b /data xfs rw 0 0",
        "none /with\\040space tmpfs rw 0 0",
        "none /twice tmpfs rw 0 0",
        "none /twice overlay rw 0 0",
    )
    assert filesystem.type_of(Path(path)) == kind


def test_no_list_of_mounts_is_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, **_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert filesystem.type_of(Path("/")) is None


def test_locks_are_tried_between_two_processes(tmp_path: Path) -> None:
    (tmp_path / ".locks").mkdir()
    assert filesystem.locks(tmp_path) is True
    assert list((tmp_path / ".locks").iterdir()) == []


def test_a_lock_that_keeps_nobody_out_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".locks").mkdir()

    @contextlib.contextmanager
    def idle(*_: object, **__: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(filesystem, "FileLock", idle)
    assert filesystem.locks(tmp_path) is False


def test_locks_that_the_file_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".locks").mkdir()

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert filesystem.locks(tmp_path) is False
    assert list((tmp_path / ".locks").iterdir()) == []


def test_where_nothing_can_be_written_nothing_is_tried(tmp_path: Path) -> None:
    assert filesystem.locks(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
