"""Checkpoint files: the state of training, as safetensors with a checksum of each tensor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from . import checkpoint_1
from .checksums import crc32
from .container import MOST_BYTES
from .errors import CheckpointError, DamagedCheckpointError
from .files import followed, remove_leftovers, replacing, writing
from .form import Each, check_form
from .program import Program
from .reading import TEXT_BYTES, open_file, parse_json, read_file, reading, reason
from .state import State, TrainingState

CHECKPOINT = "pock-checkpoint/2"
SUFFIX = ".ckpt"
"""Of the files that count as checkpoints in a folder."""
HEADER_CRC, NO_CRC = "header_crc32", "00000000"
LENGTH_BYTES = 8
"""Bytes of the header's length, at the beginning of a safetensors file."""
COPIES = 8
"""How many times the bytes of a network's weights a checkpoint may have: weights, two moments and a sum are four."""
RECORDS = {
    "optimizer": dict,
    "states": Each(lambda pair: isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, str) for s in pair)),
    "trained": dict,
    "frozen": Each(str),
    "notes": dict,
}
"""The form of what the metadata has as JSON."""


@dataclass(frozen=True)
class Found:
    """A whole checkpoint, and those that were passed over because they were not."""

    path: Path
    state: TrainingState
    skipped: tuple[str, ...] = ()
    """Why newer files were not taken."""


def write_checkpoint(path: str | os.PathLike[str], state: TrainingState, keep: int = 1) -> None:
    """Write a checkpoint, and keep the ``keep - 1`` that were written to ``path`` before as ``path.1``, ``path.2``, ….

    The metadata has ``crc32.<tensor>`` for each tensor: the CRC-32 of its bytes. ``header_crc32`` is that of everything
    before the tensors, with this number as ``00000000``.

    Raises
    ------
    WriteError
        The disk is full or read-only, or the folder is missing. The old files stay.
    """
    target = followed(path)
    tensors, metadata = contents(state)
    data = memoryview(safetensors.numpy.save(tensors, metadata))
    header = bytearray(data[: _header_bytes(data)])
    header[_crc_place(header)] = crc32(header).encode()
    with writing(path):
        remove_leftovers(target)
        if keep > 1:
            _move_down(target, keep)
        with replacing(target) as file:
            file.write(header)
            file.write(data[len(header) :])
        for older in older_of(target):
            if int(older.suffix[1:]) >= keep:
                older.unlink()


def contents(state: TrainingState) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a checkpoint; the header's own checksum is still :data:`NO_CRC`."""
    tensors = {f"weight.{name}": array for name, array in state.weights.items()}
    states = {f"state.{each.slot}.{each.of}": each for each in state.states}
    tensors |= {name: each.values for name, each in states.items()}
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    metadata = {
        "format": CHECKPOINT,
        **{name: str(getattr(state, name)) for name in ("steps", "updates", "pending", "accumulate")},
        **({} if state.seed is None else {"seed": str(state.seed)}),
        "optimizer": json.dumps(state.optimizer),
        "states": json.dumps({name: [each.slot, each.of] for name, each in states.items()}),
        "trained": json.dumps({each.of: each.trained for each in state.states}),
        "frozen": json.dumps(state.frozen),
        "notes": json.dumps(state.notes),
        **{f"crc32.{name}": crc32(array) for name, array in tensors.items()},
        HEADER_CRC: NO_CRC,
    }
    return tensors, metadata


def read_checkpoint(path: str | os.PathLike[str], program: Program) -> TrainingState:
    """Read a checkpoint of any format.

    ``program`` is asked for the layouts of a file of the first format, which lacks them.

    Raises
    ------
    DamagedCheckpointError
        The file is no checkpoint, or is damaged.
    CheckpointError
        The file is missing or cannot be read, or is of the first format and belongs to another program.
    """
    data = _read(path, program)
    with reading(DamagedCheckpointError, f"'{path}' is no checkpoint, or is damaged: {{}}"):
        header, metadata = _header(data)
        tensors = safetensors.numpy.load(data)
        if metadata["format"] not in (CHECKPOINT, checkpoint_1.CHECKPOINT):
            raise CheckpointError(
                f"'{path}' has the format {metadata['format']!r:.60}, and this version reads {CHECKPOINT!r}"
            )
        if metadata["format"] == checkpoint_1.CHECKPOINT:
            return _checked(checkpoint_1.upgraded(path, tensors, metadata, program))
        _check_sums(header, metadata, tensors)
        return _checked(_state(tensors, metadata))


def newest_checkpoint(path: str | os.PathLike[str], program: Program) -> Found:
    """Read the newest whole checkpoint of a file and those kept beside it, or of a folder (``*.ckpt``).

    Raises
    ------
    CheckpointError
        There is none, or it cannot be read.
    """
    place = followed(path)
    if place.is_dir():
        candidates = sorted(_in_folder(place), key=lambda each: (-_steps(each), each.name))
        if not candidates:
            raise CheckpointError(f"there is no checkpoint in '{path}': no file of it ends in {SUFFIX}")
    else:
        candidates = [place, *older_of(place)]
        if len(candidates) == 1 and not place.exists():
            raise CheckpointError(f"there is no checkpoint '{path}'")
    skipped: list[str] = []
    for candidate in candidates:
        try:
            return Found(candidate, read_checkpoint(candidate, program), tuple(skipped))
        except DamagedCheckpointError as error:
            skipped.append(str(error))
    rest = f" ({len(skipped) - 1} older ones neither)" if len(skipped) > 1 else ""
    raise DamagedCheckpointError(skipped[0] + rest)


def older_of(path: Path) -> list[Path]:
    """The checkpoints that were kept when newer ones were written to a path, the newest first."""
    pattern = re.compile(re.escape(path.name) + r"\.[1-9][0-9]*")
    found = path.parent.iterdir() if path.parent.is_dir() else ()
    return sorted((each for each in found if pattern.fullmatch(each.name)), key=lambda each: int(each.suffix[1:]))


def _move_down(target: Path, keep: int) -> None:
    """Give the checkpoint a second name, ``path.1``, after those that had been kept have moved on by one.

    At each moment ``path`` is there: a kill in between costs nothing.
    """
    if not target.exists():
        return
    older = [target.with_name(f"{target.name}.{number}") for number in range(1, keep)]
    if older[0].exists() and older[0].samefile(target):
        return  # the last save failed after this point
    for newer, place in reversed(list(zip(older, older[1:], strict=False))):
        if newer.exists():
            newer.replace(place)
    with contextlib.suppress(FileNotFoundError):
        older[0].unlink()
    try:
        os.link(target, older[0])
    except OSError:  # a file system without links, such as FAT
        with target.open("rb") as content, replacing(older[0]) as file:
            shutil.copyfileobj(content, file)


def _read(path: str | os.PathLike[str], program: Program) -> bytes:
    size = sum(array.nbytes for array in program.weights.values())
    try:
        return read_file(path, COPIES * size + TEXT_BYTES)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"there is no checkpoint '{path}'") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {reason(error)}") from error


def _header_bytes(data: bytes | memoryview) -> int:
    return LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")


def _header(data: bytes) -> tuple[bytearray, Mapping[str, str]]:
    """Everything before the tensors, and the metadata that it holds."""
    size = _header_bytes(data)
    if size > TEXT_BYTES:
        raise ValueError("its header is too large")
    header = bytearray(data[:size])
    return header, parse_json(bytes(header[LENGTH_BYTES:])).get("__metadata__", {})


def _crc_place(header: bytearray) -> slice:
    """Where the header has its own checksum. A quote within a name is escaped, so no name looks like this."""
    key = f'"{HEADER_CRC}":"'.encode()
    start = header.index(key) + len(key)
    return slice(start, start + len(NO_CRC))


def _check_sums(header: bytearray, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> None:
    header[_crc_place(header)] = NO_CRC.encode()
    if crc32(header) != metadata[HEADER_CRC]:
        raise ValueError("the checksum of its header is wrong")
    for name, array in tensors.items():
        if crc32(array) != metadata[f"crc32.{name}"]:
            raise ValueError(f"the checksum of '{name}' is wrong")


def _state(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> TrainingState:
    records = {name: parse_json(metadata[name]) for name in RECORDS}
    check_form(records, RECORDS, "its metadata")
    states = tuple(
        State(slot, of, records["trained"][of], tensors[name]) for name, (slot, of) in records["states"].items()
    )
    weights = {name.removeprefix("weight."): array for name, array in tensors.items() if name not in records["states"]}
    numbers = {name: int(metadata[name]) for name in ("steps", "updates", "pending", "accumulate")}
    seed = int(metadata["seed"]) if "seed" in metadata else None
    return TrainingState(
        weights, states, dict(records["frozen"]), dict(records["optimizer"]), **numbers, seed=seed,
        notes=dict(records["notes"]),
    )  # fmt: skip


def _checked(state: TrainingState) -> TrainingState:
    counts = (state.steps, state.updates, state.pending)
    if min(*counts, state.seed or 0) < 0 or state.pending >= state.accumulate:
        raise ValueError("it has {} steps, {} updates and {} steps since the last".format(*counts))
    return state


def _in_folder(folder: Path) -> list[Path]:
    return [
        each for each in folder.iterdir() if each.is_file() and re.search(rf"{re.escape(SUFFIX)}(\.\d+)?$", each.name)
    ]


def _steps(path: Path) -> float:
    """How many steps are behind a checkpoint; infinitely many where it cannot be told, so that it is tried, and named
    when it turns out to be damaged."""
    try:
        with reading(DamagedCheckpointError, "{}"), open_file(path, MOST_BYTES) as file:
            length = file.read(LENGTH_BYTES)
            rest = file.read(min(_header_bytes(length), TEXT_BYTES))
            return int(_header(length + rest)[1]["steps"])
    except DamagedCheckpointError:
        return float("inf")
