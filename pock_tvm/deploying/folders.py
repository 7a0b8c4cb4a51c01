"""Replaces the folder of a bundle as a whole: an error or a crash leaves the old one or the new one, and no mix."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..device.files import followed, writing
from ..errors import PockError

NAMES = ".pock-bundle"
"""File that lists what of its folder is the bundle's own."""


@contextlib.contextmanager
def new_bundle(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of ``path`` when the block ends.

    Of a bundle that is there its own files go, last of all. Other files, such as a state, stay. A crash while they
    change places leaves the old folder as ``.<name>.old`` beside the new one; the next call ends what it began.

    Raises
    ------
    WriteError
        The folder cannot be written.
    PockError
        The place holds no bundle but other files, or one of the name of a new file, or of a file in such an old folder.
    """
    target = followed(path)
    with writing(path):
        old = target.with_name(f".{target.name}.old")
        if (old / NAMES).is_file():
            _end(old, target)
        if target.exists() and any(target.iterdir()) and not (target / NAMES).is_file():
            raise PockError(f"'{path}' holds other files than a bundle's: name a new or empty folder")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
            made = Path(name) / target.name
            made.mkdir()
            yield made
            names = [each.name for each in made.iterdir()]
            (made / NAMES).write_text("\n".join([NAMES, "__pycache__", *sorted(names)]))
            if taken := [each for each in names if (target / each).exists() and each not in _own(target)]:
                raise PockError(f"'{path}' holds '{taken[0]}', which is no bundle's: move it, or name another folder")
            if not target.exists():
                made.rename(target)
                return
            target.rename(old)
            try:
                made.rename(target)
            finally:
                _end(old, target)


def _own(folder: Path) -> set[str]:
    """The entries of a folder that are its bundle's."""
    return set((folder / NAMES).read_text().split("\n")) if (folder / NAMES).exists() else set()


def _end(old: Path, target: Path) -> None:
    """End an exchange: a folder comes back if no other took its place; else what is no bundle's moves there."""
    if not target.exists():
        old.rename(target)
        return
    own = _own(old)
    others = [entry for entry in old.iterdir() if entry.name not in own]
    if taken := [entry for entry in others if (target / entry.name).exists()]:
        raise PockError(f"'{taken[0]}' was left there by a crash, and '{target}' has another: move one of them away")
    for entry in others:
        entry.rename(target / entry.name)
    for entry in old.iterdir():
        if entry.name in own and entry.name != NAMES:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (old / NAMES).unlink(missing_ok=True)  # last: it tells a bundle's files from others
    old.rmdir()  # refuses to lose what a program wrote there meanwhile
