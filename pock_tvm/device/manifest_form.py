"""The form of a program's manifest, as far as a device reads it."""

from __future__ import annotations

from typing import Any

from .arguments import is_number, is_whole
from .form import Each, Maybe, check_form, is_dtype, is_extent, is_shape
from .guards import CHECK
from .parameters import GRADIENT_SUM, MODEL, OPTIMIZER, PREPARED

TENSOR = {"name": str, "shape": is_shape, "dtype": is_dtype}


def _is_call(value: Any) -> bool:
    """Whether a value is ``[kernel, places]``, ``["copy", places, bytes]``, or a check (``guards.py``)."""
    if not (isinstance(value, list) and len(value) > 1 and isinstance(value[0], str) and isinstance(value[1], list)):
        return False
    name, places, *rest = value
    if not all(isinstance(place, list) and len(place) == 2 and all(map(is_extent, place)) for place in places):
        return False
    if name == CHECK:
        count, what, more = rest[:1], rest[1:5], rest[5:]
        are_counts = all(map(is_extent, [*count, *more])) and len(more) == len(places) - 1
        return are_counts and len(what) == 4 and all(isinstance(each, str) for each in what)
    return len(rest) < 2 and all(map(is_extent, rest))


def _is_region(value: Any) -> bool:
    """Whether a value is ``[name, offset, bytes, first call, last call]``."""
    return isinstance(value, list) and len(value) == 5 and isinstance(value[0], str) and all(map(is_extent, value[1:]))


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_whole, value))


ENTRY = {
    "table": [TENSOR],
    "arena_bytes": is_extent,
    "arena_lower_bound": is_extent,
    "calls": [_is_call],
    "arena_map": [_is_region],
}
PARAMETER = {
    "shape": is_shape,
    "dtype": is_dtype,
    "stored": Maybe({"shape": is_shape, "axes": [is_extent]}),
    "trained": object,
    "origin": Maybe((MODEL, OPTIMIZER, GRADIENT_SUM, PREPARED).__contains__),
    "of": Maybe(str),
    "slot": Maybe(str),
}
LAYER = {
    "name": str,
    "kind": str,
    "weight": str,
    "bias": str,
    "forward_flops": is_number,
    "backward_flops": is_number,
    "saved_bytes": is_number,
}
MANIFEST = {
    "target": {"triple": str, "instructions": Maybe([str])},
    "loss": {"kind": str, "output": is_extent},
    "optimizer": {"kind": str},
    "options": {"accumulate": lambda value: is_extent(value) and value > 0},
    "inputs": lambda value: isinstance(value, list) and len(value) > 0,
    "outputs": [TENSOR],
    "targets": Maybe([TENSOR]),
    "index_limits": Each(_is_range),
    "parameters": Each(PARAMETER),
    "weight_crc32": Maybe(Each(str)),
    "aliases": Each(str),
    "entries": {"train_step": dict, "predict": dict},
    "layers": [LAYER],
    "kernels": Each({"flops": is_number, "bytes": is_number}),
    "step": Maybe({"choices": Each({"default": object, "decided": object}), "gain": Maybe(is_number)}),
    "quantized": Maybe({"layers": [{"name": str, "kind": str}], "float": Each(str), "parameters": [str]}),
    "classes": Maybe([str]),
    "preprocessing": Maybe({"mean": [is_number], "std": [is_number]}),
}


def check_manifest(manifest: Any) -> None:
    """Check the form of a program's manifest.

    Raises
    ------
    ValueError
        Names the entry that has another form.
    """
    check_form(manifest, MANIFEST, "its manifest")
    check_form(manifest["inputs"], [TENSOR], "inputs")
    check_form(manifest["entries"], Each(ENTRY), "entries")
    loss, outputs = manifest["loss"], manifest["outputs"]
    if loss["output"] >= len(outputs) or (
        loss["kind"] in ("cross_entropy", "causal_lm") and len(outputs[loss["output"]]["shape"]) < 2
    ):
        raise ValueError("its loss reads an output that there is not")
    for name, entry in manifest["entries"].items():
        for region in entry["arena_map"]:
            if not 0 <= region[3] <= region[4] < len(entry["calls"]):
                raise ValueError(f"'{region[0]:.40}' in '{name:.40}' lives at no call")
