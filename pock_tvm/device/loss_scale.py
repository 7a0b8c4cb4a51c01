"""The scale of the loss for gradients in float16."""

from __future__ import annotations

LOSS_SCALE = "loss_scale"
"""Name of the input that takes it (``relay_passes.ScaleLoss``)."""
FIRST, MOST = 2.0**16, 2.0**24
GROWTH = 2000
"""Steps without an overflow after which it doubles."""


class LossScale:
    """A power of two by which a step multiplies its loss, and divides its gradients.

    It is halved when a gradient overflows, and the step is taken again. It doubles after ``GROWTH`` steps. First value
    and growth are those of ``torch.amp.GradScaler``, which leaves out the steps that overflow.
    """

    def __init__(self) -> None:
        self.value = FIRST
        self._good = 0

    def lower(self) -> bool:
        """Halve the scale; return False if it is 1."""
        self._good = 0
        if self.value <= 1:
            return False
        self.value /= 2
        return True

    def count(self) -> None:
        """Count a step without an overflow."""
        self._good += 1
        if self._good == GROWTH:
            self.value, self._good = min(2 * self.value, MOST), 0
