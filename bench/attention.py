"""Times attention and its gradients on this CPU, beside PyTorch's, in turns.

    python bench/attention.py [--rounds 5] [--json attention.json]

GFLOP/s count two products forward and five backward, and half of them where a causal mask hides half.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from schedules.kernels import attention as kernels  # noqa: E402
from tests.schedules.kernels import HOST, built, defined, noise  # noqa: E402

SIZES = [
    (12, 128, 64, False),
    (12, 197, 64, False),
    (12, 256, 64, True),
    (12, 512, 64, False),
    (96, 128, 64, False),
    (12, 2048, 64, False),
]
"""Heads of all samples, tokens, width, and whether a token sees only those before it."""
Side = Callable[[], Any]
SECONDS = 0.4
"""Seconds of a round of one side. The other side's threads are asleep when its clock starts."""


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each side, in turns")] = 3,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the rows")] = None,
) -> None:
    """Measure, and print a table."""
    torch.set_num_threads(HOST.traits.cores)
    table = Table(*("heads", "tokens", "causal", "part", "ms", "GFLOP/s", "PyTorch ms", "x PyTorch"))
    rows = []
    for heads, tokens, width, causal in SIZES:
        for part, products, ours, theirs in sides(heads, tokens, width, causal):
            times: tuple[list[float], list[float]] = [], []
            for _ in range(rounds):
                for side, taken in zip((ours, theirs), times, strict=True):
                    taken.append(median(side))
            one, other = map(statistics.median, times)
            flops = products * 2 * heads * tokens**2 * width / (2 if causal else 1)
            rows.append([heads, tokens, causal, part, 1e3 * one, flops / one / 1e9, 1e3 * other, other / one])
            table.add_row(*(f"{each:.2f}" if isinstance(each, float) else str(each) for each in rows[-1]))
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(rows))


def sides(
    heads: int, tokens: int, width: int, causal: bool
) -> list[tuple[str, int, Callable[[], Any], Callable[[], Any]]]:
    """Forward and backward: name, number of products, ours and PyTorch's."""
    shape = (1, heads, tokens, width)
    q, k, v, grad, out, *gradients = noise("attention", *[shape] * 8)
    (statistics_,) = noise("statistics", (1, heads, tokens, 2))
    options = {"scale": width**-0.5, "masked": -np.inf, "causal": causal}

    def forward(q: Any, k: Any, v: Any) -> Any:
        return kernels.attention(q, k, v, [], **options, safe=False)

    def backward(q: Any, k: Any, v: Any, statistics: Any, grad: Any) -> Any:
        return kernels.attention_gradients(q, k, v, [], statistics, grad, **options)

    run_forward = built(HOST.schedule(defined(forward, q, k, v)))
    run_backward = built(HOST.schedule(defined(backward, q, k, v, statistics_, grad)))
    tensors = [torch.tensor(each, requires_grad=True) for each in (q, k, v)]
    attention = torch.nn.functional.scaled_dot_product_attention
    result, incoming = attention(*tensors, is_causal=causal), torch.tensor(grad)
    return [
        ("forward", 2, lambda: run_forward(q, k, v, out, statistics_), lambda: attention(*tensors, is_causal=causal)),
        (
            "backward",
            5,
            lambda: run_backward(q, k, v, statistics_, grad, *gradients),
            lambda: torch.autograd.grad(result, tensors, incoming, retain_graph=True),
        ),
    ]


def median(side: Callable[[], Any]) -> float:
    """Median seconds of a call."""
    time.sleep(SECONDS)
    side()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        side()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    typer.run(main)
