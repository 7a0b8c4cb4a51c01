"""Fixtures of the tuner's tests."""

from __future__ import annotations

import pytest

from pock_tvm.tuning import step


@pytest.fixture(autouse=True)
def _short_comparison(monkeypatch):
    """Whole steps are compared for a moment: tests check what is made of the comparison, and steps here take microseconds."""
    monkeypatch.setattr(step, "STEPS_SECONDS", 0.1)
    monkeypatch.setattr(step, "TURNS", 2)
