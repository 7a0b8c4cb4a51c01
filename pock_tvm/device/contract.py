"""Contract between a library and the manifest beside it: layouts, sizes, offsets, ranges of indices, constants.

The compiler puts a digest of it into the library. A trainer that finds another one in the file runs nothing: a changed
number could send a kernel outside its arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .errors import ProgramError

WORDS = 4
"""Integers of 64 bits that a digest takes."""
PARTS = ("inputs", "outputs", "index_limits", "loss")
ENTRY_PARTS = ("table", "arena_bytes", "calls")


def contract_of(manifest: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> list[int]:
    """The digest of what a library relies on, as int64 numbers."""
    contract = {name: manifest[name] for name in PARTS}
    contract["entries"] = {name: [entry[part] for part in ENTRY_PARTS] for name, entry in manifest["entries"].items()}
    contract["kernels"] = sorted(manifest["kernels"])
    contract["constants"] = {
        name: [list(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in constants.items()
    }
    digest = hashlib.sha256(json.dumps(contract, sort_keys=True, separators=(",", ":")).encode()).digest()
    return np.frombuffer(digest, dtype="<i8").tolist()


def check_contract(manifest: Mapping[str, Any], constants: Mapping[str, np.ndarray], found: list[int] | None) -> None:
    """Compare a program with the digest in its library; ``None`` is that of a library of an older version.

    Raises
    ------
    ProgramError
        They differ; or, where there is no digest, the manifest contradicts itself.
    """
    faults = _contradictions(manifest) if found is None else iter(())
    fault = next(faults, None)
    if fault is not None or (found is not None and found != contract_of(manifest, constants)):
        what = f" ({fault})" if fault else ""
        raise ProgramError(
            f"the program was changed{what}: its library was built for other shapes, sizes, ranges or constants. "
            "Compile it again, or copy it again"
        )


def nbytes(tensor: Mapping[str, Any]) -> int:
    """Bytes of a tensor of a manifest."""
    return int(np.prod(tensor["shape"], dtype=object)) * np.dtype(tensor["dtype"]).itemsize


def _contradictions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what of a manifest contradicts its own call lists, as far as one can tell without a digest."""
    known: dict[str, tuple[list[int], str]] = {}
    records = {spec["name"]: spec for spec in manifest["inputs"]}
    for entry, description in manifest["entries"].items():
        table = description["table"]
        for tensor in table:
            name, found = tensor["name"], (list(tensor["shape"]), tensor["dtype"])
            if name.startswith(("constant.", "result.")):
                continue
            if entry != "prepare" and known.setdefault(name, found) != found:
                yield f"'{name}' has two shapes"
            if name in records and (list(records[name]["shape"]), records[name]["dtype"]) != found:
                yield f"input '{name}' has two shapes"
        sizes = [*map(nbytes, table), description["arena_bytes"]]
        for region, offset, size, *_ in description["arena_map"]:
            if min(offset, size) < 0 or offset + size > description["arena_bytes"]:
                yield f"'{region}' lies outside the arena of '{entry}'"
        for kernel, places, *size in description["calls"]:
            for position, offset in places:
                if not (0 <= position < len(sizes) and 0 <= offset <= sizes[position] - (size[0] if size else 0)):
                    yield f"a call of '{kernel}' in '{entry}' reads or writes outside its arrays"
