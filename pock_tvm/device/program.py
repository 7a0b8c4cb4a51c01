"""Programs: what the compiler makes, as one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from .arguments import PATH, require
from .container import CONSTANTS, KERNELS, LIBRARY, WEIGHTS, Part, read_container, write_container
from .errors import ProgramError
from .format_1 import FORMAT_1, upgraded
from .guards import CHECK
from .manifest_form import check_manifest
from .memory import drop_pages, tensors_in
from .parameters import FROZEN, GRADIENT_SUM, MODEL, OPTIMIZER, PREPARED, STATISTICS, Parameter
from .reading import reading

FORMAT = "pock-program/2"


@dataclass(frozen=True)
class Program:
    """A compiled training program: immutable. A :class:`Trainer` runs it.

    Saved, it is one zip file: ``manifest.json`` (versions, target, scheme, inputs and outputs, tables of addresses,
    checksums), ``manifest.sha256`` (its own checksum), ``program.so`` (kernels and entry points: a shared library, or
    its objects), ``weights.safetensors`` (the initial weights under PyTorch's names and in its layouts),
    ``constants.safetensors`` and, unless it is slim, ``kernels.zip`` (:attr:`kernels`). ``manifest.ed25519`` is the
    signature, if somebody signed it.
    """

    manifest: dict[str, Any]
    library: bytes
    weights: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    kernels: bytes | memoryview = b""
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

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy, or another process: the bytes themselves in place of views of the mapped file."""
        return vars(self) | {"kernels": bytes(self.kernels)}

    def save(self, path: str | os.PathLike[str], *, slim: bool = False) -> None:
        """Write the program to one file; a file that is there already is replaced only when the new one is complete.

        A ``slim`` file leaves out :attr:`kernels`: a device needs no more.
        """
        require("the path of a program", path, PATH, ProgramError)
        parts: dict[str, Part] = {
            LIBRARY: self.library,
            WEIGHTS: safetensors.numpy.save(_contiguous(self.weights)),
            CONSTANTS: safetensors.numpy.save(_contiguous(self.constants)),
        }
        if self.kernels and not slim:
            parts[KERNELS] = self.kernels
        write_container(path, self.manifest, parts)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, signature: str | os.PathLike[str] | None = None) -> Program:
        """Read a program. Nothing of it runs.

        With ``signature``, the file of an Ed25519 public key, it has to be signed by that key (``pock sign``).

        Raises
        ------
        ProgramError
            The file is missing, truncated, altered, of another format, or not signed by the key.
        """
        require("the path of a program", path, PATH, ProgramError)
        require("the key of a signature", signature, PATH.or_none(), ProgramError)
        manifest, parts = read_container(path, signature)
        found = manifest.get("format")
        if found not in (FORMAT, FORMAT_1):
            raise ProgramError(
                f"'{path}' has the format {found!r:.60}, and this version reads {FORMAT!r}: compile it again"
            )
        with reading(ProgramError, f"'{path}' is no program, or is damaged ({{}}): compile it again, or copy it again"):
            manifest = upgraded(manifest) if found == FORMAT_1 else manifest
            check_manifest(manifest)
            weights, constants = (tensors_in(memoryview(parts[name])) for name in (WEIGHTS, CONSTANTS))
        return cls(manifest, bytes(parts[LIBRARY]), weights, constants, parts.get(KERNELS, b""))

    def release(self) -> None:
        """Give back the memory of what was read from the mapped file: what is used again is read again."""
        for arrays in (self.weights, self.constants):
            if arrays:  # one stands for all: they are views of one mapping
                drop_pages(next(iter(arrays.values())))

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Every array that a trainer keeps beside inputs and results, by name."""
        records = self.manifest["parameters"]
        return {name: Parameter.from_json(name, record, self.weights.get(name)) for name, record in records.items()}

    @property
    def trained(self) -> dict[str, Any]:
        """What is trained, by parameter: ``"full"`` or ``{"axis": …, "indices": …}`` in PyTorch's layout."""
        return {
            name: parameter.trained
            for name, parameter in self.parameters.items()
            if parameter.trained not in (FROZEN, STATISTICS)
        }

    @property
    def in_eight_bits(self) -> list[str]:
        """The frozen weights that the program has in eight bits alone, as constants of its kernels. They are the
        model's own, and no part of a trainer's state."""
        return list((self.manifest.get("quantized") or {}).get("parameters", []))

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

    def constant(self, entry: str, name: str) -> np.ndarray:
        """A constant by its name in the table of an entry point."""
        # In files written before entry points shared them, each has its own.
        return self.constants[name] if name in self.constants else self.constants[f"{entry}/{name}"]

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


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
