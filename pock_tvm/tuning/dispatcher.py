"""Hands batches of schedules to devices that measure in parallel, and goes on when some of them go."""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import TracebackType

from schedules.decisions import Decisions

from ..compiler.database import Trial, text_of
from ..errors import DeviceError, PockWarning
from .measurer import LostError, Measure, MeasuringError
from .tasks import Task

PAUSE = 1.0
"""Seconds between two looks for a device that has gone."""
WAITING = 1
"""Batches that wait for each device: they are proposed while it builds the one before, and measures nothing yet."""
MOST_LOSSES = 2
"""Devices that a schedule may take with it, until it counts as failed."""


@dataclass
class Batch:
    """Schedules of a kernel that are measured one after the other."""

    task: Task
    left: list[Decisions]
    trials: list[Trial] = field(default_factory=list)
    """Trials of it so far."""


Outcome = Trial | MeasuringError | None
"""Event of a batch: a trial; its end because its kernel cannot be measured; its end."""


class Dispatcher:
    """A thread for each device, and the batches that wait for one. A context manager: the threads end with it.

    What a device that goes leaves of its batch is given to the next one that is free. When all have gone, they are
    waited for ``patience`` seconds.
    """

    def __init__(self, measures: Sequence[Measure], target: str, patience: float) -> None:
        self._target, self._patience = target, patience
        self.pending = 0
        """Batches that have not ended."""
        self._events: SimpleQueue[tuple[Batch, Outcome] | str | BaseException] = SimpleQueue()
        """Events of batches, warnings, and errors that end the search, in the order of their arrival."""
        self._changed = threading.Condition()
        """Guards what follows."""
        self._waiting: deque[Batch] = deque()
        self._losses: Counter[tuple[str, str]] = Counter()
        """Devices that went, by the kernel and the schedule that ran on them."""
        self._present, self._gone_since = len(measures), 0.0
        self._is_over = False
        for measure in measures:
            threading.Thread(target=self._serve, args=(measure,), daemon=True).start()

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def idle(self) -> int:
        """Devices that have nothing to do."""
        with self._changed:
            return max(0, self._present - self.pending)

    @property
    def wanted(self) -> int:
        """Batches that are wanted: one for each idle device, and for each device one that waits."""
        with self._changed:
            return max(0, (1 + WAITING) * self._present - self.pending)

    def submit(self, batch: Batch) -> None:
        """Give a batch to a device that has nothing to do, or to the next one that is free."""
        self.pending += 1
        with self._changed:
            self._waiting.append(batch)
            self._changed.notify()

    def next(self) -> tuple[Batch, Outcome]:
        """Wait for what happens next to a batch.

        Raises
        ------
        DeviceError
            All devices have gone, and none has come back in time.

        Warns
        -----
        PockWarning
            A device has gone.
        """
        while True:
            try:
                event = self._events.get(timeout=PAUSE)
            except Empty:
                self._check_presence()
                continue
            if isinstance(event, str):
                warnings.warn(event, PockWarning, stacklevel=2)
                continue
            if isinstance(event, BaseException):
                raise event
            if not isinstance(event[1], Trial):
                self.pending -= 1
            return event

    def _check_presence(self) -> None:
        with self._changed:
            is_late = not self._present and time.monotonic() - self._gone_since > self._patience
        if is_late:
            raise DeviceError(
                f"no device is there any more, and none came within {self._patience:g} s. All trials are kept: the "
                "same command goes on"
            )

    def _serve(self, measure: Measure) -> None:
        """Measure batches on one device, as long as it can be used."""
        while (batch := self._taken()) is not None:
            try:
                for trial in measure.measure(batch.task.record.definition, self._target, list(batch.left)):
                    batch.left.remove(trial.decisions)
                    self._events.put((batch, trial))
                self._events.put((batch, None))
            except MeasuringError as error:
                self._events.put((batch, error))
            except LostError as lost:
                self._give_back(batch, lost)
                if not self._is_back(measure):
                    return
            except BaseException as error:
                self._events.put(error)
                return

    def _taken(self) -> Batch | None:
        """Wait for a batch; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_over)
            return None if self._is_over else self._waiting.popleft()

    def _give_back(self, batch: Batch, lost: LostError) -> None:
        """Let another device go on with a batch. A schedule that was running each time that a device went fails."""
        with self._changed:
            if lost.running is not None:
                name = batch.task.key, text_of(lost.running)
                self._losses[name] += 1
                if self._losses[name] >= MOST_LOSSES:
                    batch.left.remove(lost.running)
                    self._events.put((batch, Trial(lost.running, None, None, f"its device goes: {lost}")))
            self._present -= 1
            self._gone_since = time.monotonic()
            then = "the others go on" if self._present else f"waiting for it for {self._patience:g} s"
            self._events.put(f"{lost}: {then}")
            self._waiting.appendleft(batch)
            self._changed.notify()

    def _is_back(self, measure: Measure) -> bool:
        """Wait for a device that has gone. Return False at the end, or if it is there and of no use."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_over, PAUSE):
                    return False
            try:
                measure.reach(self._target)
            except LostError:
                continue
            except BaseException as error:
                self._events.put(error)
                return False
            with self._changed:
                self._present += 1
            return True
