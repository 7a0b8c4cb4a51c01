"""Files that cannot be written: one line, before the work whose result they would hold."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from pock_tvm.device.files import WriteError, check_folder, make_folder, replacing


def test_what_can_be_written_is_not_touched(tmp_path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new", "n" * 250):
        check_folder(tmp_path / name)
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
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    for attempt in (lambda: check_folder(path), lambda: replacing(path).__enter__()):
        with pytest.raises(WriteError, match=f"'.*file' cannot be written: {os.strerror(fault)}"):
            attempt()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
