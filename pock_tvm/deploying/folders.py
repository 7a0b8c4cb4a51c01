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

    Of a bundle that is there its own files go, last of all. Other files, such as a state, stay. A crash just before
    leaves both folders whole, the old one as ``.<name>-….old`` beside the new one.

    Raises
    ------
    WriteError
        The folder cannot be written.
    PockError
        The place holds no bundle but other files, or one of the name of a new file.
    """
    target = followed(path)
    with writing(path):
        if target.exists() and any(target.iterdir()) and not (target / NAMES).is_file():
            raise PockError(f"'{path}' holds other files than a bundle's: name a new or empty folder")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
            made = Path(name) / target.name
            made.mkdir()
            yield made
            names = [each.name for each in made.iterdir()]
            (made / NAMES).write_text("\n".join([NAMES, "__pycache__", *sorted(names)]))
            own = set((target / NAMES).read_text().split("\n")) if (target / NAMES).exists() else set()
            if taken := [each for each in names if (target / each).exists() and each not in own]:
                raise PockError(f"'{path}' holds '{taken[0]}', which is no bundle's: move it, or name another folder")
            _exchange(made, target, Path(f"{name}.old"), own)


def _exchange(made: Path, target: Path, old: Path, own: set[str]) -> None:
    """Put a folder in the place of another, of which the entries ``own`` are removed."""
    if not target.exists():
        made.rename(target)
        return
    target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise
    for entry in [each for each in old.iterdir() if each.name not in own]:
        entry.rename(target / entry.name)
    for entry in old.iterdir():
        if entry.name in own:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    old.rmdir()  # refuses to lose what a program wrote there meanwhile
