"""The JSON file of contributions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..device.arguments import is_whole
from ..device.files import remove_leftovers, replacing
from ..device.form import Each, Maybe, check_form, is_extent, is_real
from ..device.reading import read_json, reading
from ..errors import ContributionError
from ..training.recipe import Recipe
from .candidates import Candidate, WeightSet
from .costs import Cost
from .runs import Run
from .task import Task

FORMAT = "pock-contributions/2"

CANDIDATE = {"biases": is_extent, "weight": str, "ratio": is_real}
WEIGHT_SET = {
    "biases": is_extent,
    "weights": [
        lambda pair: isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and is_real(pair[1])
    ],
}
RUN = {"epochs": is_real, "seed": is_whole, "score": Maybe(is_real), "loss": Maybe(is_real)}
COST = {
    "memory": is_real,
    "kept": Maybe(is_real),
    "work": Maybe(Each(lambda work: isinstance(work, list) and len(work) == 3 and all(map(is_real, work)))),
    "state": Maybe(is_real),
    "gradients": Maybe(is_real),
    "scratch": Maybe(is_real),
}
CONTRIBUTIONS = {
    "task": {"model": str, "data": str, "validation": str, "recipe": dict},
    "fingerprint": Each({"shape": [is_extent], "values": str}),
    "data": str,
    "runs": [{"candidate": CANDIDATE, **RUN}],
    "costs": [{**CANDIDATE, "cost": COST}],
    "scores": [{**CANDIDATE, "score": is_real}],
    "finished": bool,
    "trials": Maybe([{"candidate": WEIGHT_SET, **RUN}]),
    "kinds": Maybe([{"candidate": WEIGHT_SET, **RUN}]),
    "rows": Maybe(Each([is_extent])),
    "eight_bits": Maybe([{"candidate": CANDIDATE, **RUN}]),
}
"""The form of a file of contributions."""


def write_contributions(path: str | os.PathLike[str], contributions: Mapping[str, Any]) -> None:
    """Write the fields of :class:`pock_tvm.Contributions` to a JSON file, atomically."""
    content = {
        "format": FORMAT,
        **contributions,
        "task": {name: value for name, value in asdict(contributions["task"]).items() if name != "trust"},
        "runs": [asdict(run) for run in contributions["runs"]],
        "costs": [asdict(each) | {"cost": asdict(cost)} for each, cost in contributions["costs"].items()],
        "scores": [asdict(each) | {"score": score} for each, score in contributions["scores"].items()],
        "trials": [asdict(run) for run in contributions["trials"]],
        "kinds": [asdict(run) for run in contributions["kinds"]],
        "eight_bits": [asdict(run) for run in contributions["eight_bits"]],
    }
    remove_leftovers(path)
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def read_contributions(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields that :func:`write_contributions` wrote.

    Raises
    ------
    ContributionError
        The file is missing, damaged or of another format.
    """
    missing = f"there is no file '{path}': 'pock analyze' makes one"
    with reading(ContributionError, f"'{path}' holds no contributions, or is damaged ({{}})", missing):
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ContributionError(
                f"'{path}' has the format {content['format']!r:.60}, and this version reads {FORMAT!r}: analyze again"
            )
        check_form(content, CONTRIBUTIONS, "contributions")
        task = content["task"]
        return {
            # A stranger's file does not say that a stranger's model is to be trusted.
            "task": Task(**task | {"recipe": Recipe(**task["recipe"]), "trust": False}),
            "fingerprint": content["fingerprint"],
            "data": content["data"],
            "runs": _runs(content["runs"]),
            "costs": {_candidate(entry): Cost(**entry["cost"]) for entry in content["costs"]},
            "scores": {_candidate(entry): entry["score"] for entry in content["scores"]},
            "finished": bool(content["finished"]),
            "trials": _runs_of_sets(content.get("trials") or []),
            "kinds": _runs_of_sets(content.get("kinds") or []),
            "rows": content.get("rows") or {},
            "eight_bits": _runs(content.get("eight_bits") or []),
        }


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    return Candidate(entry["biases"], entry["weight"], entry["ratio"])


def _runs(entries: Sequence[dict[str, Any]]) -> list[Run]:
    return [Run(**entry | {"candidate": Candidate(**entry["candidate"])}) for entry in entries]


def _runs_of_sets(entries: Sequence[dict[str, Any]]) -> list[Run]:
    def weight_set(entry: Mapping[str, Any]) -> WeightSet:
        return WeightSet(entry["biases"], tuple((weight, ratio) for weight, ratio in entry["weights"]))

    return [Run(**entry | {"candidate": weight_set(entry["candidate"])}) for entry in entries]
