"""Draws the imports between rooms, and fails on a cycle or an upward import (``make graph``).

A room is a folder or a file right inside a package. Imports inside functions count; those for type checkers do not.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORDER = {
    "schedules": [
        "emit", "extents", "kernels", "decisions", "loops", "primitives", "generic", "spaces", "target", "cpu", "gpu",
    ],
    "relay_passes": [
        "errors", "ir", "operators", "analysis", "gradients", "canonical", "training", "kernels", "memory",
    ],
    "pock_tvm": [
        "device", "errors", "quantities", "frontend", "schemes", "training", "compiler", "calibrating", "choosing",
        "deploying", "tuning", "reports", "cli", "plugin",
    ],
}  # fmt: skip
"""The rooms of each package, lowest first: each imports only what stands before it."""
SCRIPTS = ("bench", "scripts", "tests")
"""Packages that are checked for cycles alone."""


def modules(package: str) -> dict[str, Path]:
    """The files of a package by their dotted names."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules among ``known`` that a file imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{source}.{alias.name}"
                if target in known or source in known:
                    yield target if target in known else source


def room(name: str) -> str:
    """The package and room of a module; a package's own ``__init__`` has no room."""
    return ".".join(name.split(".")[:2])


def graph() -> dict[str, set[str]]:
    """Map each module of all packages to the modules that it imports."""
    known = {name: path for package in (*ORDER, *SCRIPTS) for name, path in modules(package).items()}
    return {name: {other for other in imports(name, path, known) if other != name} for name, path in known.items()}


def faults(found: dict[str, set[str]]) -> list[str]:
    """List cycles among modules, and imports of a room from a lower one."""
    # A package's __init__ and its modules import each other; these cycles are harmless.
    without_parents = {
        name: {other for other in others if not name.startswith(f"{other}.")} for name, others in found.items()
    }
    problems = []
    try:
        graphlib.TopologicalSorter(without_parents).prepare()
    except graphlib.CycleError as error:
        problems.append(f"a circle of imports: {' <- '.join(error.args[1])}")
    place = {
        f"{package}.{name}": (at, index)
        for at, package in enumerate(ORDER)
        for index, name in enumerate(ORDER[package])
    }
    for name, others in found.items():
        if name.split(".")[0] not in ORDER or name in ORDER:
            continue
        if room(name) not in place:
            problems.append(f"{name} stands in no known room: name it in ORDER of scripts/import_graph.py")
            continue
        problems += [
            f"{name} imports {other}, which stands above it"
            for other in sorted(others)
            if room(other) in place and place[room(other)] > place[room(name)]
        ]
    return problems


def draw(found: dict[str, set[str]], path: Path) -> None:
    """Write the rooms and their imports as an SVG: a column a package, lower rooms below.

    An import that others imply (a over b to c) is left out.
    """
    import matplotlib.pyplot as plt
    import networkx

    plt.rcParams |= {"svg.hashsalt": "rooms", "svg.fonttype": "none"}
    figure, axes = plt.subplots(figsize=(9, 6.5))
    columns = list(reversed(ORDER))
    at = {
        f"{package}.{name}": (column, index / max(len(ORDER[package]) - 1, 1))
        for column, package in enumerate(columns)
        for index, name in enumerate(ORDER[package])
    }
    edges = networkx.DiGraph((room(name), room(other)) for name, others in found.items() for other in others)
    edges.remove_edges_from(list(networkx.selfloop_edges(edges)))
    for source, target in sorted(networkx.transitive_reduction(edges.subgraph(at)).edges):
        (column, top), (other, bottom) = at[source], at[target]
        is_far = column == other and top - bottom > 1.5 / (len(ORDER[source.partition(".")[0]]) - 1)
        axes.annotate(
            "", at[target], at[source],
            arrowprops={"arrowstyle": "->", "color": "0.5", "shrinkA": 13, "shrinkB": 13,
                        "connectionstyle": f"arc3,rad={0.4 if is_far else 0}"},
        )  # fmt: skip
    for name, (x, y) in at.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef3fa", "edgecolor": "#4a6fa5"}
        axes.text(x, y, name.partition(".")[2], ha="center", va="center", fontsize=10, bbox=box)
    for column, package in enumerate(columns):
        axes.text(column, 1.1, package, ha="center", fontsize=12, weight="bold")
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.08, 1.15))
    axes.axis("off")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def main() -> int:
    """Check the imports; draw them if a file is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("svg", nargs="?", type=Path, help="the file to draw to")
    options = parser.parse_args()
    found = graph()
    problems = faults(found)
    for fault in problems:
        print(fault, file=sys.stderr)
    if options.svg is not None and not problems:
        draw(found, options.svg)
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
