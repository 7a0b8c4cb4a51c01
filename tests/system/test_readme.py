"""The README's examples do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_examples_run(number: int, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[number]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_plain_tvm_build_never_names_this_package() -> None:
    example = next(text for text in EXAMPLES if "pock_train" in text)
    assert "pock_tvm" not in example
    code = example + "\nimport sys\nfirst = float(loss.numpy())\nprint(first)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2


def test_one_example_of_each_kind() -> None:
    text = "\n".join(EXAMPLES)
    assert "pock.compile(" in text
    assert "relax.get_pipeline(" in text
    assert "from relay_passes import Backward" in text
