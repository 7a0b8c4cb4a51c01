"""Fixtures of all tests: real networks and data, where this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["POCK_VERIFY"] = "1"  # every compile checks the module after each phase

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and data; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real networks and data in {SHARED}")
    return SHARED
