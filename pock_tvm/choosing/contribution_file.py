"""The JSON file of contributions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..device.files import remove_leftovers, replacing
from ..errors import ContributionError, OptionError
from ..training.recipe import Recipe
from .candidates import Candidate, WeightSet
from .costs import Cost
from .runs import Run
from .task import Task

FORMAT = "pock-contributions/2"


def write_contributions(path: str | os.PathLike[str], contributions: Mapping[str, Any]) -> None:
    """Write the fields of :class:`pock_tvm.Contributions` to a JSON file, atomically."""
    content = {
        "format": FORMAT,
        **contributions,
        "task": asdict(contributions["task"]),
        "runs": [asdict(run) for run in contributions["runs"]],
        "costs": [asdict(each) | {"cost": asdict(cost)} for each, cost in contributions["costs"].items()],
        "scores": [asdict(each) | {"score": score} for each, score in contributions["scores"].items()],
        "trials": [asdict(run) for run in contributions["trials"]],
        "kinds": [asdict(run) for run in contributions["kinds"]],
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
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != FORMAT:
            raise ContributionError(
                f"'{path}' has the format {content['format']!r}, and this version reads {FORMAT!r}: analyze again"
            )
        task = content["task"]
        return {
            "task": Task(**task | {"recipe": Recipe(**task["recipe"])}),
            "fingerprint": content["fingerprint"],
            "data": content["data"],
            "runs": [Run(**run | {"candidate": Candidate(**run["candidate"])}) for run in content["runs"]],
            "costs": {_candidate(entry): Cost(**entry["cost"]) for entry in content["costs"]},
            "scores": {_candidate(entry): entry["score"] for entry in content["scores"]},
            "finished": bool(content["finished"]),
            "trials": _runs_of_sets(content.get("trials", [])),
            "kinds": _runs_of_sets(content.get("kinds", [])),
            "rows": content.get("rows", {}),
        }
    except FileNotFoundError as error:
        raise ContributionError(f"there is no file '{path}': 'pock analyze' makes one") from error
    except (OSError, ValueError, KeyError, TypeError, OptionError) as error:
        raise ContributionError(f"'{path}' holds no contributions, or is damaged ({error!r})") from error


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    return Candidate(entry["biases"], entry["weight"], entry["ratio"])


def _runs_of_sets(entries: Sequence[dict[str, Any]]) -> list[Run]:
    def weight_set(entry: Mapping[str, Any]) -> WeightSet:
        return WeightSet(entry["biases"], tuple((weight, ratio) for weight, ratio in entry["weights"]))

    return [Run(**entry | {"candidate": weight_set(entry["candidate"])}) for entry in entries]
