"""A tenth of the mutated states of ``bench/deploy_mutations.py``."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
def test_mutated_states_are_refused_or_right():
    command = [sys.executable, str(BENCH / "deploy_mutations.py"), "--count", "1000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1000 mutated states" in done.stdout
