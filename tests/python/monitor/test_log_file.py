# SPDX-License-Identifier: Apache-2.0
"""The log's file: whole lines, one writer, rotation, torn ends, full disks."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import types

import pytest

from distorch.tools.monitor import files
from distorch.tools.monitor.log_file import LogBusyError, LogFile


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "vram.log"


def test_lines_are_appended_to_what_is_there(path) -> None:
    path.write_text("old\n")
    log = LogFile(path)
    log.write("a\nb\n")
    assert path.read_text() == "old\na\nb\n"
    log.close()
    log.close()


def test_a_torn_line_is_ended_first(path) -> None:
    path.write_text("old\n12:00:0")
    log = LogFile(path)
    log.write("new\n")
    log.write("newer\n")
    assert path.read_text() == "old\n12:00:0\nnew\nnewer\n"
    log.close()


def test_a_header_begins_each_file_once(path) -> None:
    for text in ("1\n", "2\n"):
        log = LogFile(path, header="time,used")
        log.write(text)
        log.close()
    assert path.read_text() == "time,used\n1\n2\n"


def test_a_second_writer_is_refused_and_the_first_goes_on(path) -> None:
    log = LogFile(path)
    with pytest.raises(LogBusyError, match="another monitor writes this log"):
        LogFile(path)
    log.write("a\n")
    log.close()
    LogFile(path).close()
    assert path.read_text() == "a\n"


def second_process(path: pathlib.Path) -> str:
    code = "import sys; from distorch.tools.monitor.log_file import LogFile; LogFile(sys.argv[1])"
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_a_second_process_is_refused_also_after_rotation(path) -> None:
    log = LogFile(path, limit=20, keep=2)
    log.write("line\n")
    assert "LogBusyError" in second_process(path)
    for i in range(10):
        log.write(f"line {i}\n")
    assert "LogBusyError" in second_process(path)
    log.close()
    assert second_process(path) == ""


def test_rotation_keeps_so_many_files_and_loses_no_line_of_these(path) -> None:
    log = LogFile(path, header="h", limit=30, keep=2)
    for i in range(20):
        log.write(f"line {i:02d}\n")
    log.close()
    files = sorted(p.name for p in path.parent.iterdir())
    assert files == ["vram.log", "vram.log.1", "vram.log.2"]
    text = [(path.parent / name).read_text() for name in reversed(files)]
    assert all(len(t) <= 30 and t.startswith("h\n") for t in text)
    kept = [line for t in text for line in t.splitlines() if line != "h"]
    assert kept == [f"line {i:02d}" for i in range(20 - len(kept), 20)]
    assert len(kept) >= 7


def test_a_line_longer_than_the_limit_is_written_whole(path) -> None:
    log = LogFile(path, limit=10)
    log.write("x" * 50 + "\n")
    log.write("y" * 50 + "\n")
    log.close()
    assert path.read_text() == "y" * 50 + "\n"
    assert path.with_name("vram.log.1").read_text() == "x" * 50 + "\n"


def test_the_path_is_never_without_a_file_while_it_rotates(path) -> None:
    log = LogFile(path, limit=50, keep=1)
    stop, missing = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            if not path.exists():
                missing.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    for i in range(2000):
        log.write(f"line {i}\n")
    stop.set()
    thread.join()
    log.close()
    assert missing == []


def test_without_hard_links_it_is_rotated_by_renaming(path, monkeypatch) -> None:
    def no_links(*_args) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    log = LogFile(path, limit=10)
    log.write("12345678\n")
    log.write("abc\n")
    log.close()
    assert path.read_text() == "abc\n"
    assert path.with_name("vram.log.1").read_text() == "12345678\n"


def test_when_it_cannot_rotate_it_goes_on(path, monkeypatch) -> None:
    log = LogFile(path, limit=20, keep=50)

    def fails(*_args, **_more):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "replace", fails)
    for i in range(10):
        log.write(f"line {i}\n")
    monkeypatch.undo()
    assert path.read_text() == "".join(f"line {i}\n" for i in range(10))
    for i in range(10, 20):
        log.write(f"line {i}\n")
    log.close()
    rotated = sorted(path.parent.glob("vram.log.[0-9]*"), key=lambda p: -int(p.suffix[1:]))
    assert len(rotated) > 1
    text = "".join(p.read_text() for p in [*rotated, path])
    assert text == "".join(f"line {i}\n" for i in range(20))


def test_a_file_that_others_moved_is_made_anew(path) -> None:
    log = LogFile(path, header="h")
    log.write("a\n")
    path.rename(path.with_name("moved"))
    log.write("b\n")
    path.unlink()
    log.write("c\n")
    log.close()
    assert path.with_name("moved").read_text() == "h\na\n"
    assert path.read_text() == "h\nc\n"


def test_a_folder_that_was_away_is_an_error_only_while_it_is(tmp_path) -> None:
    """A drive that comes back: the log goes on."""
    path = tmp_path / "drive" / "vram.log"
    path.parent.mkdir()
    log = LogFile(path, header="h")
    log.write("a\n")
    shutil.rmtree(path.parent)
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            log.write("lost\n")
    path.parent.mkdir()
    log.write("b\n")
    log.close()
    assert path.read_text() == "h\nb\n"


def test_a_closed_log_is_not_opened_again(path) -> None:
    log = LogFile(path)
    log.close()
    with pytest.raises(ValueError, match="this log was closed"):
        log.write("a\n")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Neither fcntl nor renaming of open files; returns where msvcrt was asked to lock."""
    locked: list[int] = []

    def locking(descriptor: int, _mode: int, size: int) -> None:
        assert size == 1
        locked.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EACCES, "Permission denied") from None

    replace = pathlib.Path.replace

    def replace_closed(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        used = self.stat()
        for entry in pathlib.Path("/proc/self/fd").iterdir():
            try:
                found = entry.stat()
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (used.st_dev, used.st_ino):
                raise PermissionError(errno.EACCES, "it is used by another process", str(self))
        return replace(self, target)

    monkeypatch.setattr(files, "_fcntl", None)
    monkeypatch.setattr(files, "_msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(files, "RENAMES_OPEN_FILES", False)
    monkeypatch.setattr(pathlib.Path, "replace", replace_closed)
    monkeypatch.delattr(os, "pread")
    return locked


def test_on_windows_it_is_locked_and_rotated_too(windows, path) -> None:
    log = LogFile(path, header="h", limit=30, keep=2)
    for i in range(20):
        log.write(f"line {i:02d}\n")
    with pytest.raises(LogBusyError, match="another monitor writes this log"):
        LogFile(path)
    log.close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["vram.log", "vram.log.1", "vram.log.2"]
    text = [path.with_name(name).read_text() for name in ("vram.log.2", "vram.log.1", "vram.log")]
    assert all(len(t) <= 30 and t.startswith("h\n") for t in text)
    kept = [line for t in text for line in t.splitlines() if line != "h"]
    assert kept == [f"line {i:02d}" for i in range(20 - len(kept), 20)]
    assert set(windows) == {2**31 - 2}  # beyond what readers read


def test_on_windows_a_reader_puts_the_rotation_off(windows, path) -> None:
    log = LogFile(path, limit=20)
    log.write("line 1\n")
    with path.open() as reader:
        for i in range(2, 7):
            log.write(f"line {i}\n")
        assert reader.read() == "".join(f"line {i}\n" for i in range(1, 7))
    for i in range(7, 10):
        log.write(f"line {i}\n")
    log.close()
    assert path.with_name("vram.log.1").exists()
    assert path.with_name("vram.log.1").read_text() + path.read_text() == "".join(
        f"line {i}\n" for i in range(1, 10)
    )


def test_without_any_lock_it_is_written_unguarded(path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_fcntl", None)
    monkeypatch.setattr(files, "_msvcrt", None)
    first, second = LogFile(path), LogFile(path)
    first.write("a\n")
    second.write("b\n")
    first.close()
    second.close()
    assert path.read_text() == "a\nb\n"


def test_a_full_disk_is_an_error_and_the_next_line_is_whole(path, monkeypatch) -> None:
    log = LogFile(path)
    log.write("a\n")
    write = os.write
    room = [5]

    def short(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space left"):
        log.write("a line that does not fit\n")
    with pytest.raises(OSError, match="No space left"):
        log.write("nor this\n")
    monkeypatch.undo()
    log.write("b\n")
    log.close()
    assert path.read_text() == "a\na lin\nb\n"


def test_what_is_no_file_is_written_without_lock_and_rotation() -> None:
    log = LogFile("/dev/null", limit=1)
    log.write("a\n")
    log.write("b\n")
    log.close()


def test_bad_arguments_and_places(path) -> None:
    with pytest.raises(ValueError, match="one rotated file be kept"):
        LogFile(path, keep=0)
    with pytest.raises(FileNotFoundError):
        LogFile(path / "no" / "folder")
