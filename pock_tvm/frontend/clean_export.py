"""Cleans a ``.pt2`` file of unknown origin, so that ``torch.export.load`` runs nothing of it.

PyTorch's reader unpickles some members, evaluates symbolic expressions as Python, imports modules that a file names,
loads compiled code, and puts names into the Python code that it generates for a graph. The clean copy holds what an
exported program needs and no more: the graph, raw weights and constants. Whatever else PyTorch writes is left out (the
sample inputs, guards, compiled code) or, where the program needs it, refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..device.form import Each, Maybe, check_form, is_extent
from ..device.reading import TEXT_BYTES, open_archive, parse_json, read_member
from ..errors import ModelError
from .symbolic import checked_expression

MODEL = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version")
"""Members of a few letters, which PyTorch compares."""
PAYLOADS = {"weight": "data/weights/", "constant": "data/constants/"}
PICKLED = ("custom_obj_", "opaque_obj_")
"""Prefixes of the members that hold objects other than tensors."""
MOST_BYTES = 2**40
COPIED_BYTES = 2**20
"""Bytes that are copied at a time."""
SPARE_ELEMENTS = 2**24
"""Elements of a tensor that may have more of them than its storage has bytes, since it is expanded."""
NEWEST = 100_000
"""Highest number of a symbol: PyTorch counts up to it."""

IDENTIFIER = re.compile(r"[A-Za-z_]\w*|", re.ASCII)
PATH = re.compile(r"[\w.\-/:+@$ \[\]]*")
"""Names of parameters and modules: PyTorch quotes them in the code that it generates."""
SYMBOL = re.compile(r"[A-Za-z_]+(\d{0,5})", re.ASCII)
TARGET = re.compile(
    r"torch\.ops\.(?!higher_order\.)\w+\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|map_impl|scan"
    r"|associative_scan|flex_attention|checkpoint|tag_activation_checkpoint|wrap)"
    r"|torch\.(sym_\w+|_sym_\w+)|_operator\.\w+|math\.\w+",
    re.ASCII,
)
"""Permitted targets of a node: operators, and the control flow that calls nothing but its own subgraphs."""
READS_FILES = re.compile(r"torch\.ops\.aten\.from_file\b")
MAPS = frozenset(
    ["tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values", "custom_obj_values", "range_constraints"]
    + ["opset_version", "treespec_namedtuple_fields", "as_string_to_argument"]
)
"""Entries of a graph's description whose own entries have names of the model's."""
PAYLOAD = {
    "config": Each(
        {
            "path_name": str,
            "use_pickle": bool,
            "tensor_meta": Maybe({"sizes": [{"as_int": is_extent}]}),
        }
    )
}


class Unclean(ModelError):
    """A file holds what cannot be read without running code that lies in it."""


def clean_copy(path: str | os.PathLike[str], folder: Path) -> Path:
    """Write a clean copy of a ``.pt2`` file into a folder, and return its path.

    Raises
    ------
    Unclean
        The program needs something that would run code: a pickled weight, an object, an expression that is no
        arithmetic. The message names it.
    OSError, ValueError, KeyError, zipfile.BadZipFile
        The file is damaged.
    """
    copy = folder / "model.pt2"
    with open_archive(path, MOST_BYTES, expansion=1.5) as archive, zipfile.ZipFile(copy, "w") as cleaned:
        members = _members(archive)
        for name in filter(members.__contains__, PLAIN):
            cleaned.writestr(f"model/{name}", read_member(archive, members[name], 100))
        cleaned.writestr(f"model/{SAMPLES}", b"")
        cleaned.writestr(f"model/{MODEL}", _clean_model(_json(archive, members, MODEL)))
        for kind, place in PAYLOADS.items():
            config = f"{place}model_{kind}s_config.json"
            content = _json(archive, members, config)
            cleaned.writestr(f"model/{config}", json.dumps(content))
            for name in dict.fromkeys(_payloads(kind, content, archive, members)):
                with archive.open(members[name]) as source, cleaned.open(f"model/{name}", "w", force_zip64=True) as to:
                    while data := source.read(COPIED_BYTES):
                        to.write(data)
    return copy


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Map the names that PyTorch reads to those in the archive, which stand in one folder."""
    names = archive.namelist()
    root = names[0].partition("/")[0] if names else ""
    if any("serialized_state_dict" in name for name in names):
        raise _unclean("its weights are pickled, as PyTorch wrote them before version 2.8", "export it again")
    members = {name.removeprefix(f"{root}/"): name for name in names if name.startswith(f"{root}/")}
    if MODEL not in members:
        raise ValueError("it holds no exported program")
    for place in PAYLOADS.values():
        if f"{place}model.pt" in members:
            raise _unclean(f"'{place}model.pt' is pickled: the file has an old form", "export it again")
    return members


def _json(archive: zipfile.ZipFile, members: Mapping[str, str], name: str) -> Any:
    return parse_json(read_member(archive, members[name], TEXT_BYTES))


def _payloads(kind: str, content: Any, archive: zipfile.ZipFile, members: Mapping[str, str]) -> Iterator[str]:
    """Yield the members that hold the raw bytes of weights or constants."""
    check_form(content, PAYLOAD, f"the list of {kind}s")
    for name, payload in content["config"].items():
        _path(name)
        if payload["path_name"].startswith(PICKLED):
            raise _unclean(f"{kind} '{name}' is an object, not a tensor", "export the model without it")
        if payload["use_pickle"]:
            raise _unclean(f"{kind} '{name}' is pickled", "export the model with plain tensors")
        member = PAYLOADS[kind] + payload["path_name"]
        _named(payload["path_name"])
        stored = archive.getinfo(members[member]).file_size
        elements = math.prod(size["as_int"] for size in payload["tensor_meta"]["sizes"])
        if elements > (max(stored, SPARE_ELEMENTS) if stored else 0):
            raise ValueError(f"{kind} '{name}' has {elements} elements, and the file {stored} bytes of it")
        yield member


# ---- the graph -------------------------------------------------------------------------------------------------------


def _clean_model(model: Any) -> bytes:
    """Check everything in a graph's description that PyTorch does more with than to store it; return what is left."""
    check_form(model, {"graph_module": dict, "range_constraints": dict}, "the graph")
    model["guards_code"] = []  # Python that checks inputs, which programs do themselves
    for name in model["range_constraints"]:
        found = SYMBOL.fullmatch(name)
        if found is None or int(found[1] or 0) > NEWEST:
            raise _unclean(f"{name!r:.100} is no name of a dimension")
    for entry in model["graph_module"].get("module_call_graph", []):
        for kind in ("in_spec", "out_spec") if entry.get("signature") else ():
            entry["signature"][kind] = _clean_spec(kind, entry["signature"][kind])
    pending: list[Any] = [model]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            for key, child in value.items():
                if key in RULES:
                    value[key] = RULES[key](child)
                pending.extend(child.values() if key in MAPS and isinstance(child, dict) else [value[key]])
    return json.dumps(model).encode()


def _named(name: Any) -> Any:
    """A name of a value, which PyTorch writes into Python code."""
    if isinstance(name, str):
        _check_name(name, IDENTIFIER)
    return name


def _path(name: Any) -> Any:
    """A name of a parameter or a module, which PyTorch writes into Python code in quotes."""
    if isinstance(name, str):
        _check_name(name, PATH)
    return name


def _target(target: Any) -> Any:
    """Target of a node."""
    if isinstance(target, str) and (not TARGET.fullmatch(target) or READS_FILES.match(target)):
        raise _unclean(f"the graph calls {target!r:.100}, which is no plain operator", "export the model without it")
    return target


def _symbolic(expression: Any) -> str:
    """A symbolic expression, which PyTorch evaluates as Python."""
    try:
        return checked_expression(expression)
    except ValueError as error:
        raise _unclean(f"the expression {expression!r:.100} is more than arithmetic ({error})") from error


def _object(found: Any) -> Any:
    """An object that is no tensor, which PyTorch unpickles."""
    if found:
        raise _unclean("the graph uses objects that are no tensors", "export the model without them")
    return found


def _metadata(metadata: Any) -> dict[str, str]:
    """Of a node's metadata what is plain text, and tells which layer it belongs to."""
    kept = ("nn_module_stack", "torch_fn")
    return {name: metadata[name] for name in kept if isinstance(metadata, dict) and name in metadata}


RULES: dict[str, Callable[[Any], Any]] = {
    "name": _named,
    "as_name": _named,
    "user_input_name": _named,
    "forward_arg_names": lambda names: names and [_named(name) for name in names],
    "parameter_name": _path,
    "buffer_name": _path,
    "tensor_constant_name": _path,
    "fqn": _path,
    "target": _target,
    "as_operator": _target,
    "expr_str": _symbolic,
    "as_custom_obj": _object,
    "custom_obj": _object,
    "custom_obj_values": _object,
    "metadata": _metadata,
}
"""Cleaners of the entries of a graph's description, by their names in PyTorch's schema."""


def _clean_spec(kind: str, text: str) -> str:
    """A description of the containers of inputs or outputs.

    PyTorch imports the modules that it may name, and writes the names of keyword arguments into Python code.
    """
    content = parse_json(text)
    check_form(content, list, kind)
    pending = content[1:]
    while pending:
        node = pending.pop()
        check_form(node, {"type": Maybe(str), "context": object, "children_spec": [dict]}, kind)
        pending.extend(node["children_spec"])
        for key in _plain_keys(kind, node):
            _path(key)
    if kind == "in_spec":
        for keywords in content[1]["children_spec"][1:2]:
            for key in _plain_keys(kind, keywords):
                _named(key)
    return json.dumps(content)


def _plain_keys(kind: str, node: Mapping[str, Any]) -> list[Any]:
    """The keys of a container: those of a dictionary, or the name of a class."""
    context = node["context"]
    if isinstance(context, str):
        with contextlib.suppress(json.JSONDecodeError):  # a class's name
            context = parse_json(context)
    found, pending = [], [context]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            raise _unclean(f"its {kind.replace('_spec', 'put')}s are described by more than plain keys")
        pending.extend(value if isinstance(value, list) else [])
        found += [] if isinstance(value, list) else [value]
    return found


def _check_name(name: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(name):
        raise _unclean(f"the name {name!r:.100} could be code")


def _unclean(what: str, otherwise: str = "") -> Unclean:
    also = f", or {otherwise}" if otherwise else ""
    return Unclean(
        f"{what}: reading it could run code that lies in the file. If you trust where it comes from, take "
        f"trust=True{also}"
    )
