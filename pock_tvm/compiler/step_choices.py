"""Choices above kernels: how a training step is made of kernels.

The pipeline asks each of them here, by name, with its options and the default, as a schedule asks
:class:`schedules.decisions.Choices`. A choice that a network does not have is not asked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tvm import IRModule

from relay_passes.ir.trained_part import TrainedPart
from relay_passes.kernels.fuse_groups import LENGTHS
from relay_passes.kernels.name_kernels import structural_hash
from relay_passes.kernels.pack_weights import LARGE, LITTLE
from relay_passes.kernels.winograd import Extents
from schedules.decisions import DEFAULTS, Choice, Choices, Decisions, Option
from schedules.extents import divisors

from .training_options import Training

OFF, BY_SIZE, ALWAYS = 0, 1, 2
PACKING = {OFF: (math.inf, math.inf), BY_SIZE: (LITTLE, LARGE), ALWAYS: (0.0, 0.0)}
"""Sizes up to which weights are not packed, by option."""
MOST_SLICES = 16


class StepChoices:
    """Decisions for one step, and a record of the choices that it offers."""

    def __init__(self, decisions: Decisions = DEFAULTS) -> None:
        self._choices = Choices(decisions)

    @property
    def offered(self) -> dict[str, Choice]:
        """The choices so far, by name."""
        return self._choices.offered

    def close(self) -> None:
        """Raise :class:`schedules.decisions.DecisionError` if a decision names a choice that the step did not offer."""
        self._choices.close()

    def attention(self) -> bool:
        """Whether attention is one kernel, and not products and a softmax."""
        return self._flag("attention")

    def joined_attention(self) -> bool:
        """Whether the gradients of queries, keys and values are one kernel."""
        return self._flag("joined_attention")

    def without_winograd(self, convolutions: Collection[Extents]) -> list[Extents]:
        """Return those of the convolutions that Winograd's transforms suit that are computed without them."""
        names = {each: "winograd_{}x{}x{}x{}".format(*each) for each in sorted(convolutions)}
        return [each for each, name in names.items() if not self._flag(name)]

    def slices(self, batch: int) -> int | None:
        """Return the number of slices of the batch that the start of the forward pass runs in: None for as few as lower
        the peak."""
        offered = [0, *(count for count in divisors(batch) if count <= MOST_SLICES)]
        return (self._choices.choose("slices", offered, 0) if batch > 1 else 0) or None

    def sliced_chains(self) -> bool:
        """Whether chains of kernels with large values run slice by slice (:class:`relay_passes.SliceKernels`)."""
        return self._flag("sliced_chains")

    def unpacked(self) -> tuple[float, float]:
        """Return the sizes up to which frozen weights are not packed (:class:`relay_passes.PackWeights`)."""
        return PACKING[self._choices.choose("packing", list(PACKING), BY_SIZE)]

    def copies(self, default: int) -> int:
        """Return how many copies of a frozen weight are kept (:attr:`Training.copies`)."""
        return self._choices.choose("copies", (1, 2), default)

    def longest_group(self) -> int:
        """Return the most kernels that are fused into one."""
        return self._choices.choose("fused", (LENGTHS[0], 2, 1), LENGTHS[0])

    def recomputed(self) -> bool:
        """Whether values that are cheap to compute and long-lived are computed twice."""
        return self._flag("recomputed")

    def _flag(self, name: str) -> bool:
        return self._choices.choose(name, (False, True), True)


def record_of(offered: Mapping[str, Choice]) -> dict[str, Any]:
    """Return choices for the manifest: ``options``, ``default`` and ``decided`` of each, by name."""
    return {name: {**vars(choice), "options": list(choice.options)} for name, choice in offered.items()}


def decided(record: Mapping[str, Any]) -> dict[str, Option]:
    """Return the decisions that differ from the defaults, of choices in a manifest."""
    return {name: each["decided"] for name, each in record.items() if each["decided"] != each["default"]}


def step_key(module: IRModule, training: Training) -> str:
    """Return the hash of a forward module and of how it is trained: what choices above kernels hold for.

    Which channels are trained does not matter, but how many.
    """
    options = vars(training) | {"trained": {name: _extent(part) for name, part in training.trained.items()}}
    text = json.dumps(options, sort_keys=True, default=lambda number: number.item())  # NumPy's numbers
    return hashlib.sha256(f"{structural_hash(module):016x} {text}".encode()).hexdigest()[:16]


def kernels_key(entries: Mapping[str, Any]) -> str:
    """Return the hash of the kernels that a program's entry points call, in order: what decisions led to."""
    calls = {name: [call[0] for call in entry["calls"]] for name, entry in entries.items()}
    return hashlib.sha256(json.dumps(calls, sort_keys=True).encode()).hexdigest()[:16]


def _extent(part: TrainedPart | None) -> Sequence[int] | None:
    return None if part is None else (part.axis, len(part.indices))
