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
from .format_1 import FORMAT_1, upgraded
from .guards import CHECK
from .parameters import FROZEN, GRADIENT_SUM, MODEL, OPTIMIZER, PREPARED, STATISTICS, Parameter

FORMAT = "pock-program/2"
MANIFEST, LIBRARY, WEIGHTS, CONSTANTS = "manifest.json", "program.so", "weights.safetensors", "constants.safetensors"
KERNELS = "kernels.zip"

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
    (the initial weights under PyTorch's names and in its layouts), ``constants.safetensors`` and, unless it is slim,
    ``kernels.zip`` (:attr:`kernels`).
    """

    manifest: dict[str, Any]
    library: bytes
    weights: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    kernels: bytes = b""
    """A zip file with ``<kernel>.o`` (its object) and ``<kernel>.json`` (its loops before any schedule, as
    ``tvm.ir.load_json`` reads them) for each kernel: the source of bundles for other devices. Empty in a slim
    program."""

    def __repr__(self) -> str:
        manifest = self.manifest
        inputs = ", ".join(f"{spec['name']} {'x'.join(map(str, spec['shape']))}" for spec in manifest["inputs"])
        return (
            f"Program({inputs}; {len(self.trained)} of {len(self.weights)} weights trained; "
            f"{manifest['target']['triple']}; arena {self.memory()['arena'] / 2**20:.1f} MiB)"
        )

    def save(self, path: str | os.PathLike[str], *, slim: bool = False) -> None:
        """Write the program to one file; a file that is there already is replaced only when the new one is complete.

        A ``slim`` file leaves out :attr:`kernels`: a device needs no more.
        """
        require("the path of a program", path, PATH, ProgramError)
        parts = {
            LIBRARY: self.library,
            WEIGHTS: safetensors.numpy.save(_contiguous(self.weights)),
            CONSTANTS: safetensors.numpy.save(_contiguous(self.constants)),
        }
        if self.kernels and not slim:
            parts[KERNELS] = self.kernels
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
                names = [LIBRARY, WEIGHTS, CONSTANTS, *([KERNELS] if KERNELS in _parts_of(manifest) else [])]
                parts = {name: archive.read(name) for name in names}
        except FileNotFoundError as error:
            raise ProgramError(f"there is no program '{path}'") from error
        except UNREADABLE as error:
            raise ProgramError(
                f"'{path}' is no program, or is damaged ({error}): compile it again, or copy it again"
            ) from error
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found not in (FORMAT, FORMAT_1):
            raise ProgramError(
                f"'{path}' has the format {found!r}, and this version reads {FORMAT!r}: compile it again"
            )
        checksums = _parts_of(manifest)
        for name, data in parts.items():
            if hashlib.sha256(data).hexdigest() != checksums.get(name):
                raise ProgramError(
                    f"'{path}' is damaged: the checksum of {name} is wrong. Compile it again, or copy it again"
                )
        try:
            weights, constants = (safetensors.numpy.load(parts[name]) for name in (WEIGHTS, CONSTANTS))
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ProgramError(f"the weights of '{path}' cannot be read ({error}): compile it again") from error
        manifest = upgraded(manifest) if found == FORMAT_1 else manifest
        return cls(manifest, parts[LIBRARY], weights, constants, parts.get(KERNELS, b""))

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Every array that a trainer keeps beside inputs and results, by name."""
        records = self.manifest["parameters"]
        return {name: Parameter.from_json(name, record) for name, record in records.items()}

    @property
    def trained(self) -> dict[str, Any]:
        """What is trained, by parameter: ``"full"`` or ``{"axis": …, "indices": …}`` in PyTorch's layout."""
        return {
            name: parameter.trained
            for name, parameter in self.parameters.items()
            if parameter.trained not in (FROZEN, STATISTICS)
        }

    @property
    def index_limits(self) -> dict[str, tuple[int, int]]:
        """For each integer input by which something is read the lowest index, and how many positions there are."""
        return {name: (low, high) for name, (low, high) in self.manifest["index_limits"].items()}

    def tensor(self, name: str) -> tuple[tuple[int, ...], str] | None:
        """Shape and dtype of what the entry points know by a name; None where none does."""
        for entry in self.manifest["entries"].values():
            for tensor in entry["table"]:
                if tensor["name"] == name:
                    return tuple(tensor["shape"]), tensor["dtype"]
        return None

    def memory(self) -> dict[str, int]:
        """Bytes that a trainer holds.

        ``parameters``: weights as the steps read them; ``optimizer_state``; ``gradient_sums``, where steps share an
        update; ``arena``: temporaries and kept activations; ``scratch``: the part of the arena that one kernel's own
        buffers take at most; ``lower_bound``: how large the arena has to be at least.
        """
        entries = {name: entry for name, entry in self.manifest["entries"].items() if name != "prepare"}
        read = {tensor["name"] for entry in entries.values() for tensor in entry["table"]}
        sizes = dict.fromkeys((MODEL, PREPARED, OPTIMIZER, GRADIENT_SUM), 0)
        for name, parameter in self.parameters.items():
            if name in read:
                sizes[parameter.origin] += parameter.nbytes
        return {
            "parameters": sizes[MODEL] + sizes[PREPARED],
            "optimizer_state": sizes[OPTIMIZER],
            "gradient_sums": sizes[GRADIENT_SUM],
            "arena": max(entry["arena_bytes"] for entry in entries.values()),
            "scratch": max((size for entry in entries.values() for size in _scratch_of(entry)), default=0),
            "lower_bound": max(entry["arena_lower_bound"] for entry in entries.values()),
        }


def kernel_calls(entry: Mapping[str, Any]) -> list[tuple[str, list[list[int]]]]:
    """The kernels that an entry point calls, in order, each with its operands as [position in the table, bytes].

    Copies and checks are left out: their records are ``["copy", [to, from], bytes]`` and ``["check", [place], count,
    dtype, kind, name, written]``.
    """
    return [(call[0], call[1]) for call in entry["calls"] if call[0] not in ("copy", CHECK)]


def _scratch_of(entry: Mapping[str, Any]) -> list[int]:
    """The bytes of each call's scratch."""
    return [size for name, _, size, *_ in entry["arena_map"] if name == "scratch"]


def _parts_of(manifest: Any) -> Mapping[str, str]:
    """The checksums of a file's parts by their names, as far as the manifest can be read."""
    checksums = manifest.get("checksums") if isinstance(manifest, dict) else None
    return checksums if isinstance(checksums, dict) else {}


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
