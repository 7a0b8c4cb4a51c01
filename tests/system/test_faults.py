"""A tenth of the faults of bench/faults.py: nothing lost, nothing wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_kills_and_failing_disks_cost_no_state(tmp_path) -> None:
    command = [sys.executable, BENCH / "faults.py", "--tenth", "--only", "state", "--json", tmp_path / "faults.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {record["fault"]: record["made"] for record in json.loads((tmp_path / "faults.json").read_text())}
    assert list(made.values()) == [18, 2, 2, 2]
