"""Mutations of files: some of their bytes, or what they hold under fitting checksums (``bench/mutations.py``)."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut a file short."""
    return data[: rng.randrange(len(data))]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a part by zeros, or by 0xFF."""
    start = rng.randrange(len(data))
    count = rng.randint(1, 200)
    return data[:start] + bytes([rng.choice((0, 255))]) * len(data[start : start + count]) + data[start + count :]


def doubled(data: bytes, rng: random.Random) -> bytes:
    """Repeat a part, or leave one out."""
    start, count = rng.randrange(len(data)), rng.randint(1, 300)
    return data[: start + count] + data[start:] if rng.random() < 0.5 else data[:start] + data[start + count :]


def spliced(data: bytes, rng: random.Random, originals: Path) -> bytes:
    """Put the beginning of one file before the end of another."""
    other = rng.choice(sorted(path for path in originals.iterdir() if path.is_file())).read_bytes()
    first, second = (data, other) if rng.random() < 0.5 else (other, data)
    return first[: rng.randrange(len(first))] + second[rng.randrange(len(second)) :]


ODD = (
    0, 1, -1, 2**31, 2**63, 10**30, -(2**40), 1e308, float("nan"), True, None, "", "x" * 1000, [], {}, [[]], "../../x",
    "torch.hub.load", "__import__('os').abort()", "Pow(10,10**9)", "float64", "copy",
)  # fmt: skip
"""Values that a field may not expect."""


def changed_json(value: Any, rng: random.Random) -> Any:
    """Change some entries of a JSON value: to odd values, to those of a neighbour; remove or repeat them."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        node, places = value, []
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            places.append((node, key))
            node = node[key]
            if rng.random() < 0.1:
                break
        if not places:
            continue
        parent, key = rng.choice(places[-3:])
        what = rng.random()
        if what < 0.15:
            del parent[key]
        elif what < 0.3 and isinstance(parent, list):
            parent.insert(key, parent[rng.randrange(len(parent))])
        elif what < 0.4:
            parent[key] = rng.choice(list(parent.values() if isinstance(parent, dict) else parent))
        elif what < 0.6 and isinstance(parent[key], int | float):
            parent[key] = parent[key] * rng.choice((2, 0.5, -1, 1000)) + rng.choice((0, 1, -1))
        else:
            parent[key] = rng.choice(ODD)
    return value


def bombs(rng: random.Random) -> bytes:
    """A text that is nested deeply, or has many values."""
    texts = (b"[" * 500_000, b'{"a":' * 100_000, b"[" + b"{}," * 1_000_000 + b"{}]", b"[" + b"0," * 5_000_000 + b"0]")
    return rng.choice(texts)


def bomb_archive(names: list[str], rng: random.Random) -> bytes:
    """A zip file whose members grow a thousandfold."""
    packed, method = io.BytesIO(), rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name in names:
            archive.writestr(name, bytes(rng.choice((2**20, 2**25))))
    return packed.getvalue()


def rewritten_archive(data: bytes, rng: random.Random) -> bytes:
    """Change members of a zip file, under fitting CRCs."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    members[name] = _changed_member(name, members[name], rng)
    return _zipped(members)


def _changed_member(name: str, data: bytes, rng: random.Random) -> bytes:
    if name.endswith(".json") and rng.random() < 0.8:
        return json.dumps(changed_json(json.loads(data), rng)).encode()
    if rng.random() < 0.05:
        return bombs(rng)
    return rng.choice((flipped, cut, zeroed, doubled))(data, rng) if data else b"\0"


def _zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def rechecked_program(path: Path, rng: random.Random, *, library: bool) -> bytes:
    """Change manifest, weights or constants of a program, under fitting checksums; or its library alone."""
    from pock_tvm.device.container import (
        CONSTANTS,
        KERNELS,
        LIBRARY,
        SIGNATURE,
        WEIGHTS,
        read_container,
        write_container,
    )
    from pock_tvm.device.program import FORMAT

    manifest, found = read_container(path)
    parts = {name: bytes(data) for name, data in found.items()}
    signature = b""
    if library:
        parts[LIBRARY] = flipped(parts[LIBRARY], rng)
        with zipfile.ZipFile(path) as archive:
            signature = archive.read(SIGNATURE)
    elif rng.random() < 0.7 or manifest["format"] != FORMAT:  # an old library has no word of its constants
        manifest = changed_json(manifest, rng)
    else:
        name = rng.choice([name for name in (WEIGHTS, CONSTANTS, KERNELS) if name in parts])
        parts[name] = _changed_tensors(parts[name], rng) if name != KERNELS else flipped(parts[name], rng)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "p.pock"
        write_container(target, manifest if isinstance(manifest, dict) else {"manifest": manifest}, parts)
        if signature:
            with zipfile.ZipFile(target, "a") as archive:
                archive.writestr(SIGNATURE, signature)
        return target.read_bytes()


def _changed_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, or its bytes."""
    if rng.random() < 0.4:
        return rng.choice((flipped, cut, zeroed, doubled))(data, rng)
    count = int.from_bytes(data[:8], "little")
    head = json.dumps(changed_json(json.loads(data[8 : 8 + count]), rng)).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + count :]


def mutated(kind: str, path: Path, rng: random.Random) -> tuple[str, bytes]:
    """Return the name of a mutation, and the bytes of the mutated file."""
    data = path.read_bytes()
    choices = ["flipped", "cut", "zeroed", "doubled", "spliced"]
    if zipfile.is_zipfile(path):
        choices += ["rewritten", "rewritten", "bomb"]
    if "program" in kind:
        choices += ["rechecked library"] * 3 if kind == "signed program" else ["rechecked"] * 6
    if path.suffix == ".json":
        choices += ["changed", "changed", "changed", "bomb"]
    if kind == "checkpoint":
        choices += ["changed tensors", "changed tensors"]
    choice = rng.choice(choices)
    if choice == "spliced":
        return choice, spliced(data, rng, path.parent)
    if choice == "rewritten":
        return choice, rewritten_archive(data, rng)
    if choice == "bomb":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return choice, bomb_archive(archive.namelist()[:8], rng)
        return choice, bombs(rng)
    if choice.startswith("rechecked"):
        return choice, rechecked_program(path, rng, library=choice.endswith("library"))
    if choice == "changed":
        return choice, json.dumps(changed_json(json.loads(data), rng)).encode()
    if choice == "changed tensors":
        return choice, _changed_tensors(data, rng)
    return choice, {"flipped": flipped, "cut": cut, "zeroed": zeroed, "doubled": doubled}[choice](data, rng)
