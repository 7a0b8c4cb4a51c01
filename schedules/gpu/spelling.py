"""Names and numbers as every dialect takes them: TVM's generators print both as they are."""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

import tvm
from tvm import tirx

NO_NAME = re.compile(r"\W+|_{2,}|_+$")
INTEGERS = {"float32": ("uint32", "<f", "<I"), "float64": ("uint64", "<d", "<Q")}
"""The integer type as wide as a floating-point type, and both types' formats in ``struct``."""


def with_names(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Give variables names that every dialect takes: those of the network's values hold dots, and may begin with a
    digit. Start each operand at its pointer: TVM's kernels that are written as loops (sort, scatter, scan) declare
    buffers with symbolic offsets."""
    buffers = {
        param: tirx.decl_buffer(param.shape, str(param.ty.dtype), param.name, layout=None) for param in func.params
    }
    graph = json.loads(tvm.ir.save_json(func.specialize(buffers)))
    nodes = graph["nodes"]
    for node in [node for node in nodes if node["type"] == "ir.Var"]:
        name = nodes[node["data"]["name"]]["data"]
        node["data"]["name"] = _added(nodes, "ffi.String", f"v_{NO_NAME.sub('_', name)}")
    return tvm.ir.load_json(json.dumps(graph))


def with_bits(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Write constants as their bits where seven digits, which is what most generators print, are not exact."""
    graph = json.loads(tvm.ir.save_json(func))
    nodes = graph["nodes"]
    for node in [node for node in nodes if node["type"] == "ir.FloatImm"]:
        dtype, value = nodes[node["data"]["ty"]]["data"]["dtype"], float(node["data"]["value"])
        if dtype not in INTEGERS or not math.isfinite(value):
            continue
        integer, real, bits = INTEGERS[dtype]
        exact = struct.pack(real, value)
        if exact == struct.pack(real, float(f"{value:e}")):
            continue
        number = _added(nodes, "int", struct.unpack(bits, exact)[0])
        kind = _added(nodes, "ir.PrimType", {"span": 0, "dtype": integer})
        constant = _added(nodes, "ir.IntImm", {"span": 0, "ty": kind, "value": number})
        node["type"] = "ir.Call"
        node["data"] |= {
            "op": _added(nodes, "ir.Op", "tirx.reinterpret"),
            "args": _added(nodes, "ffi.Array", [constant]),
            "attrs": 0,
            "ty_args": _added(nodes, "ffi.Array", []),
        }
        del node["data"]["value"]
    return tvm.ir.load_json(json.dumps(graph))


def _added(nodes: list[dict[str, Any]], kind: str, data: Any) -> int:
    """Add a node to a graph as ``tvm.ir.save_json`` writes it, and return its index."""
    nodes.append({"type": kind, "data": data})
    return len(nodes) - 1
