"""A few of the mutated files of ``bench/mutations.py``."""

from __future__ import annotations

from bench import mutations


def test_mutated_files_are_right_or_refused_in_one_line() -> None:
    rows = mutations.run(60)
    assert len(rows) == len(mutations.READERS)
    assert sum(sum(row.outcomes.values()) for row in rows) >= 50
    assert not [fault for row in rows for fault in row.faults]
