"""Exports and evaluates a user's loss function with PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree
from tvm import relax

from relay_passes.ir import first_line, rewrite
from relay_passes.training.append_loss import LOSS

from ..device.losses import target_name
from ..errors import ModelError, OptionError
from .model import Model
from .torch_graph import prepared, summary
from .torch_translate import translate

if TYPE_CHECKING:
    from .custom_loss import CustomLoss


class _Loss(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Any, target: Any) -> Any:
        return self.function(outputs, target)


def exported_loss(model: Model, loss: CustomLoss) -> relax.Function:
    """Translate a loss function to Relax: a function of the model's outputs, then the targets.

    Raises
    ------
    OptionError
        PyTorch cannot export it, it has parameters, or operators that are not supported.
    """
    outputs = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in model.outputs]
    targets = {name: torch.from_numpy(np.array(array)) for name, array in loss.targets.items()}
    arguments = (arranged_outputs(model.source, outputs), loss.arranged(targets))
    try:
        exported = torch.export.export(_Loss(loss.function), arguments, strict=False)
    except Exception as error:  # it traces the user's code, and may raise anything
        raise OptionError(f"PyTorch cannot export the loss function: {first_line(error)}") from error
    if exported.graph_signature.parameters:
        name = exported.graph_signature.parameters[0].removeprefix("function.")
        raise OptionError(
            f"the loss function has a parameter '{name}', and a program trains the model's alone: compute that part in "
            "the model"
        )
    try:
        translation = translate(prepared(exported), {})
    except ModelError as error:
        raise OptionError(f"the loss function: {error}") from error
    if translation.obstacles:
        raise OptionError(f"the loss function: {summary(translation.obstacles)}")
    main = translation.module["main"]
    count = int(main.attrs["num_input"])
    names = [*(f"output.{spec.name}" for spec in model.outputs), *targets]
    params = [relax.Var(name, param.ty) for name, param in zip(names, main.params[:count], strict=True)]
    arrays = {param: exported.state_dict[param.name].numpy() for param in main.params[count:]}
    constants = {param: relax.const(array, str(array.dtype)) for param, array in arrays.items()}
    func = rewrite(main, params=params, env=dict(zip(main.params, params, strict=False)) | constants)
    return func.with_attrs({"global_symbol": LOSS, "num_target": len(targets)})


def arranged_outputs(source: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """Arrange a network's outputs as it returns them; those of other frameworks as one tensor or a tuple."""
    if not isinstance(source, ExportedProgram):
        return tensors[0] if len(tensors) == 1 else tuple(tensors)
    given = iter(tensors)
    leaves = [
        next(given) if isinstance(spec.arg, TensorArgument) else spec.arg.value
        for spec in source.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    return pytree.tree_unflatten(leaves, source.call_spec.out_spec)


def value_of(
    loss: CustomLoss, source: Any, outputs: Sequence[torch.Tensor], target: Any, *, precise: bool = False
) -> torch.Tensor:
    """Compute a loss with the user's own function, in float64 if ``precise``. ``target``: as ``Trainer.step`` takes
    it."""
    function = loss.function
    if precise and isinstance(function, torch.nn.Module):
        function = copy.deepcopy(function).double()
    keyed = target if isinstance(target, Mapping) else {}
    given = {
        name: torch.from_numpy(np.array(keyed.get(name.removeprefix(target_name("")), target))) for name in loss.targets
    }
    if precise:
        given = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    return function(arranged_outputs(source, outputs), loss.arranged(given))
