"""Fixtures of all tests: real networks and data, where this machine has them; operators without a gradient."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import relay_passes.gradients  # noqa: F401  registers the rules
from relay_passes.operators.record import open_record

os.environ["POCK_VERIFY"] = "1"  # every compile checks the module after each phase

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and data; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real networks and data in {SHARED}")
    return SHARED


@pytest.fixture
def without_gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that takes the gradient rules of operators away for the time of a test."""

    def forget(*operators: str) -> None:
        for operator in operators:
            monkeypatch.setattr(open_record(operator), "gradients", {})

    return forget


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes (``-n``, ``--dist loadgroup``) one runs all tests that share what takes long to make: those
    of a file, or of a folder whose files share it."""
    for item in items:
        parts = item.path.relative_to(TESTS).parts
        if parts[0] == "pock_tvm":
            item.add_marker(pytest.mark.xdist_group("choosing" if "choosing" in parts else "/".join(parts)))
