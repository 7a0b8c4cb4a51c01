"""The numbers that references draw in the place of a program: a self-check runs both on the same step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..device import random


@dataclass
class Draws:
    """The numbers that operators of a reference draw."""

    training: bool = False
    """Whether dropout is on."""
    step: int = 0
    seed: int = 0

    def words(self) -> np.ndarray:
        """Make the input of a program's step that draws the same numbers."""
        return random.words_of(self.seed, self.step)


DRAWS = Draws()
