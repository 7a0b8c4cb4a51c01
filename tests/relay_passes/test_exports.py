"""What ``relay_passes`` offers is the same for Python and for type checkers."""

from __future__ import annotations

import ast
from pathlib import Path

import relay_passes


def test_type_checkers_see_what_python_does() -> None:
    tree = ast.parse(Path(relay_passes.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert seen == relay_passes._HOME
    for name in relay_passes.__all__:
        assert getattr(relay_passes, name).__name__ == name
