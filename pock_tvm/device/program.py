"""Programs: what the compiler makes, as one file."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .arguments import PATH, require
from .errors import ProgramError
from .files import replacing

FORMAT = "pock-program/1"
MANIFEST, LIBRARY, WEIGHTS, CONSTANTS = "manifest.json", "program.so", "weights.safetensors", "constants.safetensors"

UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What Python raises of a damaged zip file or of damaged JSON: unknown compression and encryption among it."""


@dataclass(frozen=True)
class Program:
    """A compiled training program: immutable. A :class:`Trainer` runs it.

    Saved, it is one zip file: ``manifest.json`` (versions, target, scheme, inputs and outputs, tables of addresses,
    checksums), ``program.so`` (kernels and entry points: a shared library, or its objects), ``weights.safetensors``
    (the initial weights under PyTorch's names and in its layouts) and ``constants.safetensors``.
    """

    manifest: dict[str, Any]
    library: bytes
    weights: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to one file; a file that is there already is replaced only when the new one is complete."""
        require("the path of a program", path, PATH, ProgramError)
        parts = {
            LIBRARY: self.library,
            WEIGHTS: safetensors.numpy.save(_contiguous(self.weights)),
            CONSTANTS: safetensors.numpy.save(_contiguous(self.constants)),
        }
        manifest = self.manifest | {
            "checksums": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
        }
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
            for name, data in parts.items():
                archive.writestr(name, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read a program.

        Raises
        ------
        ProgramError
            The file is missing, truncated, altered, or of another format.
        """
        require("the path of a program", path, PATH, ProgramError)
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(archive.read(MANIFEST))
                parts = {name: archive.read(name) for name in (LIBRARY, WEIGHTS, CONSTANTS)}
        except FileNotFoundError as error:
            raise ProgramError(f"there is no program '{path}'") from error
        except UNREADABLE as error:
            raise ProgramError(
                f"'{path}' is no program, or is damaged ({error}): compile it again, or copy it again"
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise ProgramError(
                f"'{path}' has the format {found!r}, and this version reads {FORMAT!r}: compile it again"
            )
        checksums = manifest.get("checksums")
        checksums = checksums if isinstance(checksums, dict) else {}
        for name, data in parts.items():
            if hashlib.sha256(data).hexdigest() != checksums.get(name):
                raise ProgramError(
                    f"'{path}' is damaged: the checksum of {name} is wrong. Compile it again, or copy it again"
                )
        try:
            weights, constants = (safetensors.numpy.load(parts[name]) for name in (WEIGHTS, CONSTANTS))
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ProgramError(f"the weights of '{path}' cannot be read ({error}): compile it again") from error
        return cls(manifest, parts[LIBRARY], weights, constants)

    @property
    def trained(self) -> dict[str, Any]:
        """What is trained, by parameter: ``"full"`` or ``{"axis": …, "indices": …}`` in PyTorch's layout."""
        return {
            name: entry["trained"]
            for name, entry in self.manifest["weights"].items()
            if entry["trained"] not in ("frozen", "statistics")
        }

    @property
    def index_limits(self) -> dict[str, tuple[int, int]]:
        """For each integer input by which something is read the lowest index, and how many positions there are."""
        limits = self.manifest["index_limits"]  # in older programs the rows of a table alone
        return {name: (0, found) if isinstance(found, int) else tuple(found) for name, found in limits.items()}

    def memory(self) -> dict[str, int]:
        """Bytes that a trainer holds.

        ``parameters``: weights as the steps read them; ``optimizer_state``; ``gradient_sums``, where steps share an
        update; ``arena``: temporaries and kept activations; ``lower_bound``: how large the arena has to be at least.
        """
        entries = self.manifest["entries"]
        tensors = {tensor["name"]: tensor for entry in entries.values() for tensor in entry["table"]}
        in_steps = {tensor["name"] for name, entry in entries.items() if name != "prepare" for tensor in entry["table"]}
        sizes = {name: _bytes(tensors[name]) for name in in_steps}
        kinds = {name: _kind(name, self.manifest["weights"]) for name in in_steps}

        def total(kind: str) -> int:
            return sum(size for name, size in sizes.items() if kinds[name] == kind)

        steps = [entry for name, entry in entries.items() if name != "prepare"]
        return {
            "parameters": total("parameter"),
            "optimizer_state": total("state"),
            "gradient_sums": total("gradient_sum"),
            "arena": max(entry["arena_bytes"] for entry in steps),
            "lower_bound": max(entry["arena_lower_bound"] for entry in steps),
        }


def _kind(name: str, weights: Mapping[str, Any]) -> str:
    """What a tensor of a table is for."""
    if name in weights or name.startswith("prepared."):
        return "parameter"
    prefix, _, rest = name.partition(".")
    if rest in weights:
        return "gradient_sum" if prefix == "gradient_sum" else "state"
    return "other"


def _bytes(tensor: Mapping[str, Any]) -> int:
    return int(np.prod(tensor["shape"], dtype=np.int64)) * np.dtype(tensor["dtype"]).itemsize


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
