"""Dispatches a user's model to its front end."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..device.arguments import FLAG, Kind, described, is_whole, require, whole
from ..device.reading import open_file, reading
from ..errors import ModelError
from .clean_export import clean_copy
from .model import Model

Shapes = Mapping[str, Sequence[int]]


ONNX_BYTES = 2**31 - 1
"""Most bytes of an ONNX file: what protobuf reads."""
BATCH = whole("a number of samples, at least 1", 1)
SHAPES = Kind("a mapping of input names to shapes, such as {'input_ids': (8, 128)}", lambda value: _are_shapes(value))


def _are_shapes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(shape, Sequence)
        and all(is_whole(extent) and extent > 0 for extent in shape)
        for name, shape in value.items()
    )


def load_model(
    model: Any,
    *,
    batch: int | None = None,
    shapes: Shapes | None = None,
    any_shape: bool = False,
    dropout: bool | None = None,
    trust: bool = False,
) -> Model:
    """Import a model for training.

    Parameters
    ----------
    model : torch.export.ExportedProgram, onnx.ModelProto, or the path of a ``.pt2`` or ``.onnx`` file
        A Model is returned unchanged.
    batch : int, optional
        Size of the dynamic batch: the first dimension of the first input, and dimensions that depend on it.
    shapes : mapping of input name to shape, optional
        Sizes of further dynamic dimensions, such as a sequence length.
    any_shape : bool
        Bind remaining dynamic dimensions to any size that the model allows, for queries that do not depend on it.
    dropout : bool, optional
        Whether training drops values. By default where the model does: exported in training mode.
    trust : bool
        Read a ``.pt2`` file as it is: PyTorch then runs code that lies in it. By default a cleaned copy is read
        (:mod:`pock_tvm.frontend.clean_export`).

    Raises
    ------
    ModelError
        The file cannot be read without running code that lies in it, or at all; a dynamic dimension stays unbound; or
        the model has unsupported operators.
    """
    require("batch", batch, BATCH.or_none())
    require("shapes", shapes, SHAPES.or_none())
    require("trust", trust, FLAG)
    if isinstance(model, Model):
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # PyTorch warns of its own programs
        return _load(model, trust, batch=batch, shapes=shapes or {}, any_shape=any_shape, dropout=dropout)


def _load(model: Any, trust: bool, **options: Any) -> Model:
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        model = _read(path, trust=trust)
        with reading(ModelError, f"'{path}' cannot be imported ({{}}): export or copy it again"):
            return _imported(model, **options)
    return _imported(model, **options)


def _imported(model: Any, *, dropout: bool | None, **options: Any) -> Model:
    kind = type(model).__module__.split(".")[0]
    if kind == "torch" and type(model).__name__ == "ExportedProgram":
        from .torch_export import import_exported_program

        return import_exported_program(model, dropout=dropout, **options)
    if kind == "onnx" and type(model).__name__ == "ModelProto":
        from .onnx_file import import_onnx

        return import_onnx(model, dropout=dropout, **options)
    what = "a model is a torch.export.ExportedProgram, an ONNX model, or the path of a .pt2 or .onnx file, not"
    if hasattr(model, "named_parameters") and not isinstance(model, type):
        raise ModelError(f"{what} an nn.Module: take torch.export.export(model.eval(), (example_input,))")
    raise ModelError(f"{what} {described(model)}")


def _read(path: Path, *, trust: bool) -> Any:
    readers: dict[str, Callable[[Path], Any]] = {
        ".onnx": _read_onnx,
        ".pt2": lambda path: _read_exported(path, trust=trust),
    }
    if path.suffix not in readers:
        _refuse_kind(path)
    damaged = f"'{path}' cannot be read as a {path.suffix} model, or is damaged ({{}}): export or copy it again"
    with reading(ModelError, damaged, f"there is no model file '{path}'"):
        try:
            return readers[path.suffix](path)
        except ImportError as error:
            raise ModelError(
                f"reading '{path.name}' needs the package '{error.name}': pip install "
                f"'pock-tvm[{path.suffix[1:].replace('pt2', 'torch')}]'"
            ) from error


def _refuse_kind(path: Path) -> NoReturn:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder: name the .pt2 or .onnx file itself")
    if not path.is_file():
        raise ModelError(f"there is no model file '{path}'")
    if path.suffix in (".pt", ".pth"):
        raise ModelError(
            f"'{path}' is neither a .pt2 nor a .onnx file; torch.save keeps weights, not the network: write "
            "torch.export.save(torch.export.export(model.eval(), (example_input,)), 'net.pt2')"
        )
    raise ModelError(f"'{path}' is neither a .pt2 file (torch.export.save) nor a .onnx file")


def _read_onnx(path: Path) -> Any:
    import onnx

    with open_file(path, ONNX_BYTES) as file:
        model = onnx.load_model_from_string(file.read())
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _read_exported(path: Path, *, trust: bool) -> Any:
    """Load an ExportedProgram, without the traceback that PyTorch logs before it raises on a damaged file."""
    import torch
    import torch.ao.quantization.fx._decomposed  # noqa: F401 - registers the operators of quantised programs

    logger = logging.getLogger("torch.export")
    kept, logger.disabled = logger.disabled, True
    try:
        if trust:
            return torch.export.load(path)
        with tempfile.TemporaryDirectory() as folder:
            return torch.export.load(clean_copy(path, Path(folder)))
    finally:
        logger.disabled = kept
