"""Texts of a bundle: files of ``runtime/``; those that end in ``.in`` have places to fill in (``$name``)."""

from __future__ import annotations

from importlib import resources
from string import Template


def text_of(name: str) -> str:
    """A file of ``runtime/``."""
    return (resources.files(__package__) / "runtime" / name).read_text()


def filled(name: str, **values: object) -> str:
    """The file ``<name>.in`` of ``runtime/`` with its places filled in."""
    return Template(text_of(f"{name}.in")).substitute(values)
