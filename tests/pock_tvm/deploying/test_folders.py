"""Folders of bundles, replaced as a whole."""

from pathlib import Path

import pytest

from pock_tvm import PockError
from pock_tvm.deploying.folders import new_bundle
from pock_tvm.device.errors import WriteError


def write(folder, *names):
    with new_bundle(folder) as made:
        for name in names:
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(name)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_earlier_bundle_goes_and_other_files_stay(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    write(folder, "pock.c", "weights.bin", "kernels/one.o")
    (folder / "state").write_text("mine")
    (folder / "build").mkdir()
    (folder / "build" / "cache").write_text("mine")
    write(folder, "pock.c", "weights.c", "kernels/two.o")
    assert files(folder) == [".pock-bundle", "build/cache", "kernels/two.o", "pock.c", "state", "weights.c"]
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_what_is_no_bundle_is_left(tmp_path):
    folder = tmp_path / "net"
    write(folder, "pock.c")
    (folder / "main").write_text("mine")
    with pytest.raises(PockError, match="holds 'main', which is no bundle's"):
        write(folder, "pock.c", "main")
    with pytest.raises(PockError, match="holds other files than a bundle's"):
        write(tmp_path, "pock.c")
    with pytest.raises(WriteError, match="cannot be written: Not a directory"):
        write(folder / "main", "pock.c")
    with pytest.raises(WriteError, match="cannot be written: there is no folder '.*/no'"):
        write(tmp_path / "no" / "net", "pock.c")
    assert files(tmp_path) == ["net/.pock-bundle", "net/main", "net/pock.c"]


@pytest.mark.parametrize("renames", [0, 1])
def test_errors_leave_the_old_one(tmp_path, monkeypatch, renames):
    folder, done, rename = tmp_path / "net", [], Path.rename

    def failing(path, place):
        done.append(path)
        if len(done) == renames + 1:
            raise OSError(28, "No space left on device")
        return rename(path, place)

    write(folder, "pock.c")
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(WriteError, match="No space left"):
        write(folder, "pock.h")
    assert files(tmp_path) == ["net/.pock-bundle", "net/pock.c"]


class Killed(BaseException):
    """End of a process that has no time to clean up."""


@pytest.mark.parametrize("renames", range(4))
def test_a_crash_is_made_good_by_the_next_call(tmp_path, monkeypatch, renames):
    """Two folders and two other files are renamed. Whatever a crash leaves, nothing is lost."""
    folder, count, rename = tmp_path / "net", iter(range(9)), Path.rename

    def killed(path, place):
        if next(count) >= renames:
            raise Killed
        return rename(path, place)

    write(folder, "pock.c", "old.c")
    (folder / "state").write_text("mine")
    (folder / "notes").write_text("mine, too")
    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(Path, "rename", killed)
        write(folder, "pock.c", "new.c")
    write(folder, "pock.c", "newest.c")
    assert files(tmp_path) == [f"net/{name}" for name in (".pock-bundle", "newest.c", "notes", "pock.c", "state")]
    assert (folder / "state").read_text() == "mine"


def test_two_states_after_a_crash(tmp_path):
    folder, old = tmp_path / "net", tmp_path / ".net.old"
    write(folder, "pock.c")
    write(old, "pock.c")
    for place in (old, folder):
        (place / "state").write_text(place.name)
    with pytest.raises(PockError, match=r"\.net\.old/state' was left there by a crash"):
        write(folder, "pock.c")
    (folder / "state").unlink()
    write(folder, "pock.c")
    assert files(tmp_path) == ["net/.pock-bundle", "net/pock.c", "net/state"]
    assert (folder / "state").read_text() == old.name
