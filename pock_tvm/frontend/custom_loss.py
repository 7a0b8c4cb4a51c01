"""A loss of the user's own: a function of outputs and target, compiled with the network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from relay_passes.ir import dtype_of, shape_of, update_function
from relay_passes.training.append_loss import LOSS

from ..device.arrays import as_array
from ..device.losses import TARGET, target_name
from ..errors import OptionError
from .model import Model, TensorSpec


@dataclass(frozen=True, eq=False)
class CustomLoss:
    """A loss that a function computes.

    ``function`` is a Python callable or an ``nn.Module`` of (outputs, target) that returns a single number. It gets the
    outputs as the network returns them. ``target`` is an example of the target, of which shapes and types count: a
    tensor, or a list, tuple or dictionary of tensors, each with a name or number by which ``Trainer.step`` takes it.

    Raises
    ------
    OptionError
        One of them is something else.
    """

    function: Callable[[Any, Any], Any]
    target: Any

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise OptionError("CustomLoss: function is a callable of (outputs, target), or an nn.Module")
        if not self.targets:
            raise OptionError("CustomLoss: target is an example of what a step is given, and this one is empty")

    @functools.cached_property
    def targets(self) -> dict[str, np.ndarray]:
        """The tensors of the example, by the names of the program's inputs."""
        if isinstance(self.target, Mapping):
            return {target_name(key): as_array(f"target '{key}'", each) for key, each in self.target.items()}
        if self._is_sequence:
            return {target_name(at): as_array(f"target {at}", each) for at, each in enumerate(self.target)}
        return {TARGET: as_array("target", self.target)}

    @property
    def _is_sequence(self) -> bool:
        return isinstance(self.target, tuple | list) and all(hasattr(each, "shape") for each in self.target)

    def value(self, source: Any, outputs: Sequence[np.ndarray], target: Any) -> float:
        """Compute the loss by the function itself. ``source``: the network, whose outputs these are; ``target``: as
        ``Trainer.step`` takes it."""
        import torch

        from .torch_loss import value_of

        return float(value_of(self, source, [torch.from_numpy(np.array(each)) for each in outputs], target))

    def arranged(self, tensors: Mapping[str, Any]) -> Any:
        """Arrange tensors, by the names of ``targets``, as the function takes them."""
        if isinstance(self.target, Mapping):
            return {key: tensors[target_name(key)] for key in self.target}
        if self._is_sequence:
            return type(self.target)(tensors[name] for name in self.targets)
        return tensors[TARGET]

    @property
    def specs(self) -> list[TensorSpec]:
        """Name, shape and element type of each target."""
        return [TensorSpec(name, array.shape, str(array.dtype)) for name, array in self.targets.items()]


def with_custom_loss(model: Model, loss: CustomLoss) -> Model:
    """Add a loss to a model: its module gets a function ``loss`` of the outputs, then the targets.

    Raises
    ------
    OptionError
        PyTorch cannot export the function, it gives no single number, or it has parameters.
    """
    if model.custom_loss is loss:  # it is compiled again, for a check
        return model
    from .torch_loss import exported_loss

    func = exported_loss(model, loss)
    if shape_of(func.body) != () or not dtype_of(func.body).startswith("float"):
        raise OptionError(
            f"the loss function gives {dtype_of(func.body)} {list(shape_of(func.body))}: a loss is a single "
            "floating-point number, such as a mean"
        )
    return replace(model, module=update_function(model.module, LOSS, func), custom_loss=loss)


def custom_loss(loss: Any, batch: Sequence[Any] | None) -> CustomLoss | None:
    """Return the loss that a user gives as a function; None for one of ours. ``batch``: x and y to check with.

    Raises
    ------
    OptionError
        A bare function, and no batch that shows its target.
    """
    if isinstance(loss, CustomLoss) or not callable(loss):
        return loss if isinstance(loss, CustomLoss) else None
    if batch is None:
        raise OptionError(
            "what the target of a loss function looks like is not known: give an example, "
            "loss=pock.CustomLoss(function, target), or a batch, check_with=(x, y)"
        )
    return CustomLoss(loss, batch[1])
