"""Trains random small networks on a GPU and on the CPU, and counts those whose losses or updates differ.

    python bench/random_networks.py [--target opencl] [--count 1000] [--first 0]

Exit code 1 if any differs or fails. Networks that the compiler refuses are counted apart.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent.parent))

import pock_tvm as pock  # noqa: E402
from tests.random_networks import compare, draw  # noqa: E402

TOLERANCE = 1e-4


def main(
    target: Annotated[str, typer.Option(help="What is compared with the host")] = "opencl",
    count: Annotated[int, typer.Option(help="Networks")] = 1000,
    first: Annotated[int, typer.Option(help="Seed of the first")] = 0,
) -> None:
    """Compare, and print what differs."""
    found: Counter[str] = Counter()
    for seed in range(first, first + count):
        drawn = draw(seed)
        try:
            difference = compare(drawn, target)
        except (pock.PockError, RuntimeError) as error:
            kind = "refused" if isinstance(error, pock.errors.PassError | pock.errors.ModelError) else "failed"
            found[kind] += 1
            print(f"{seed} {kind}: {str(error)[:300]}", flush=True)
            continue
        found["equal" if difference <= TOLERANCE else "different"] += 1
        if difference > TOLERANCE:
            print(f"{seed} differs by {difference:.1e}: {drawn.text}", flush=True)
    print(dict(found))
    raise typer.Exit(int(found["different"] + found["failed"] > 0))


if __name__ == "__main__":
    typer.run(main)
