"""Files that are written: what is at the path is always whole, and what cannot be written is said before the work."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pock_tvm.device.errors import WriteError
from pock_tvm.device.files import check_folder, make_folder, remove_leftovers, replacing


def write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def test_what_can_be_written_is_not_touched(tmp_path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new", "n" * 250):
        check_folder(tmp_path / name)
    write(tmp_path / ("n" * 250), b"")
    (tmp_path / ("n" * 250)).unlink()
    make_folder(tmp_path / "a" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    for path, match in (
        (tmp_path / "no" / "x", "there is no folder"),
        (tmp_path / "file" / "x", "there is no folder"),
        (tmp_path, "it is a folder"),
        (Path("/proc/x"), "cannot be written"),
    ):
        with pytest.raises(WriteError, match=match) as caught:
            check_folder(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(WriteError, match="'.*file.below' cannot be written: Not a directory"):
        make_folder(tmp_path / "file" / "below")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_forbidden_folder_is_one_line(tmp_path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="Permission denied"):
        check_folder(tmp_path / "x")


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_the_system_says_is_one_line_and_the_old_file_stays(fault: int, tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(*_args: object, **_named: object) -> None:
        raise OSError(fault, os.strerror(fault))

    with pytest.raises(WriteError, match=f"'.*file' cannot be written: {os.strerror(fault)}"), replacing(path):
        refuse()
    monkeypatch.setattr(os, "open", refuse)
    for attempt in (lambda: check_folder(path), lambda: replacing(path).__enter__()):
        with pytest.raises(WriteError, match=f"'.*file' cannot be written: {os.strerror(fault)}"):
            attempt()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "fchmod", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_keeps_the_old_file_and_no_new_one(tmp_path, monkeypatch, call: str, code: int) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "a").write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(Path if call == "rename" else os, "replace" if call == "rename" else call, fails)
        with pytest.raises(WriteError) as error:
            write(tmp_path / "a", b"new")
    assert str(error.value) == f"'{tmp_path}/a' cannot be written: {os.strerror(code)}"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_an_error_while_writing_keeps_the_old_file(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyError
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    flush, rename = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        flush(handle)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), rename(self, target))[1])
    write(tmp_path / "a", b"new")
    assert done == ["file", "rename", "folder"]


def test_permissions_are_by_umask_or_those_of_the_old_file(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    (tmp_path / "a").chmod(0o600)
    write(tmp_path / "a", b"again")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_links_are_followed(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "a")
    for content in (b"one", b"two"):
        write(tmp_path / "link", content)
    assert (tmp_path / "link").is_symlink()
    assert [each.read_bytes() for each in (tmp_path / "elsewhere").iterdir()] == [b"two"]


def test_what_a_killed_writer_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path) -> None:
    code = (
        "import os, sys; from pock_tvm.device.files import replacing\n"
        "with replacing(sys.argv[1]) as file: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "a") as file:
        remove_leftovers(tmp_path / "a")
        file.write(b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
