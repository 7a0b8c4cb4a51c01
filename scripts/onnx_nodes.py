"""Runs ONNX's own node tests through the ONNX front end: each is right, or refused by name.

The suite comes with the ``onnx`` package: one small model a test, with inputs and outputs. Only tests whose inputs and
outputs are numeric run; the forward module is legalised by TVM. Prints a line for each test that is wrong or crashes,
and a tally; exits with 1 if there is such a test.

    python scripts/onnx_nodes.py [PATTERN]
"""

from __future__ import annotations

import re
import signal
import sys
import warnings
from collections import Counter
from typing import Any

import numpy as np
import tvm
from onnx.backend.test.loader import load_model_tests
from tvm import relax

from pock_tvm.errors import PockError
from pock_tvm.frontend.onnx_file import import_onnx

SECONDS = 120
"""Seconds after which a test counts as crashed."""


def run(model: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Import a model and compute its outputs."""
    feeds = {value.name: array for value, array in zip(model.graph.input, inputs, strict=False)}
    imported = import_onnx(
        model, batch=None, shapes={name: array.shape for name, array in feeds.items()}, any_shape=False
    )
    compiled = tvm.compile(relax.transform.LegalizeOps()(imported.module), target="llvm")
    values = [feeds.get(param.name, imported.weights.get(param.name)) for param in imported.module["main"].params]
    results = relax.VirtualMachine(compiled, tvm.cpu())["main"](*[tvm.runtime.tensor(np.array(v)) for v in values])
    results = [results] if isinstance(results, tvm.runtime.Tensor) else list(results)
    return [result.numpy() for result in results]


def agree(ours: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    """Whether outputs have the same shapes and values."""
    return len(ours) == len(wanted) and all(
        a.shape == b.shape and np.allclose(a.astype("float64"), b.astype("float64"), 1e-3, 1e-5, equal_nan=True)
        for a, b in zip(ours, wanted, strict=True)
    )


def outcome(case: Any, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> tuple[str, str]:
    """Run a test: ``right``, ``wrong``, ``refused`` or ``crashed``, and why."""
    signal.alarm(SECONDS)
    try:
        ours = run(case.model, inputs)
    except PockError as error:
        return "refused", str(error)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return ("right", "") if agree(ours, outputs) else ("wrong", f"{[array.shape for array in ours]}")


def main() -> int:
    """Run every test whose name matches; return 1 if one is wrong or crashes."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    pattern = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    tally: Counter[str] = Counter()
    for case in load_model_tests(kind="node"):
        try:
            inputs, outputs = ([np.asarray(array) for array in arrays] for arrays in case.data_sets[0])
        except (TypeError, ValueError):  # sequences, optionals
            continue
        if not pattern.search(case.name) or any(array.dtype.kind not in "fiub" for array in [*inputs, *outputs]):
            continue
        kind, why = outcome(case, inputs, outputs)
        tally[kind] += 1
        if kind in ("wrong", "crashed"):
            print(f"{kind:8} {case.name:60} {' '.join(why.split())[:200]}")
    print(", ".join(f"{tally[kind]} {kind}" for kind in ("right", "refused", "wrong", "crashed")))
    return 1 if tally["wrong"] or tally["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
