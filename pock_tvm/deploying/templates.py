"""Texts of a bundle: files of the folders beside this one; those that end in ``.in`` have places to fill in
(``$name``)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

RUNTIME, BOARDS, ANDROID, IOS, LIBC, HEXAGON = "runtime", "boards", "android", "ios", "libc", "hexagon"
HEADERS = ("math.h", "string.h")
"""Of a C library, for compilers that lack the target's."""


def text_of(name: str, folder: str = RUNTIME) -> str:
    """A file of a folder of texts."""
    return (resources.files(__package__) / folder / name).read_text()


def filled(name: str, folder: str = RUNTIME, **values: object) -> str:
    """The file ``<name>.in`` of a folder of texts with its places filled in."""
    return Template(text_of(f"{name}.in", folder)).substitute(values)


def libc_texts() -> dict[str, str]:
    """The headers of a C library that a bundle includes, by name."""
    return {name: text_of(name, LIBC) for name in HEADERS}


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts by their paths in a folder."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
