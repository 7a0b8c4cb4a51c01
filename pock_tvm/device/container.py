"""The zip file of a program: its parts, checksums over all of them, and a signature if somebody signed it."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any, TypeAlias

from .errors import ProgramError
from .files import replacing
from .reading import TEXT_BYTES, digest_of, map_member, open_archive, parse_json, read_member, reading

MANIFEST, LIBRARY, WEIGHTS, CONSTANTS = "manifest.json", "program.so", "weights.safetensors", "constants.safetensors"
KERNELS = "kernels.zip"
SEAL, SIGNATURE = "manifest.sha256", "manifest.ed25519"
SEALED = "sealed"
"""Entry of a manifest that says that its own checksum lies beside it: files of older versions have none."""
MOST_BYTES = 2**40
"""Most bytes of a program file."""
Part: TypeAlias = bytes | memoryview
OPTIONAL = (KERNELS, SEAL, SIGNATURE)
MAPPED = (WEIGHTS, CONSTANTS, KERNELS)


def write_container(path: str | os.PathLike[str], manifest: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Write a manifest and the parts of a program, with checksums of both, to one file."""
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    text = json.dumps({**manifest, SEALED: True, "checksums": checksums}, indent=1).encode()
    _write(path, {MANIFEST: text, SEAL: _seal(text), **parts})


def read_container(
    path: str | os.PathLike[str], signature: str | os.PathLike[str] | None = None
) -> tuple[Any, dict[str, Part]]:
    """Read a manifest and the parts of a program, and check them.

    ``signature`` is the file of a public key: then the manifest, which has the checksums of the parts, is signed by its
    private key. Weights, constants and kernels are views of the mapped file: only what is used takes memory.

    Raises
    ------
    ProgramError
        The file is missing, damaged or altered, is no program, or has no such signature.
    """
    members, digests = _members(path)
    manifest = _manifest(path, members)
    if signature is not None:
        from .signature import check_signature

        check_signature(path, bytes(members[MANIFEST]), bytes(members.get(SIGNATURE, b"")) or None, signature)
    checksums = manifest["checksums"]
    for name in (LIBRARY, WEIGHTS, CONSTANTS, *filter(checksums.__contains__, [KERNELS])):
        if digests.get(name, "") != checksums.get(name):
            raise ProgramError(_damaged(path, f"the checksum of {name} is wrong"))
    own = (MANIFEST, SEAL, SIGNATURE)
    return manifest, {name: data for name, data in members.items() if name in checksums and name not in own}


def sign_container(path: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
    """Sign a program by the private key in a file; see :func:`pock_tvm.device.signature.signature_of`.

    Raises
    ------
    ProgramError
        The program is damaged, or the key cannot be used. The file is left as it was.
    """
    from .signature import signature_of

    read_container(path)
    members, _ = _members(path)
    _write(path, {**members, SIGNATURE: signature_of(bytes(members[MANIFEST]), key)})


def _members(path: str | os.PathLike[str]) -> tuple[dict[str, Part], dict[str, str]]:
    """Read the members of a program's file, and the SHA-256 of each."""
    with (
        reading(ProgramError, _damaged(path, "{}"), f"there is no program '{path}'"),
        open_archive(path, MOST_BYTES) as archive,
    ):
        present = set(archive.namelist())
        if MANIFEST not in present:
            raise ProgramError(_damaged(path, f"it holds no {MANIFEST}, as a model that is not compiled yet"))
        members: dict[str, Part] = {MANIFEST: read_member(archive, MANIFEST, TEXT_BYTES)}
        digests = {}
        for name in (LIBRARY, WEIGHTS, CONSTANTS, *(name for name in OPTIONAL if name in present)):
            if name in MAPPED:  # its digest reads it piece by piece
                members[name], digests[name] = map_member(archive, name), digest_of(archive, name)
            else:
                members[name] = read_member(archive, name)
                digests[name] = hashlib.sha256(members[name]).hexdigest()
        return members, digests


def _manifest(path: str | os.PathLike[str], members: Mapping[str, Part]) -> dict[str, Any]:
    with reading(ProgramError, _damaged(path, "{}")):
        manifest = parse_json(bytes(members[MANIFEST]))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("checksums"), dict):
        raise ProgramError(_damaged(path, "its manifest holds no checksums"))
    sealed = SEALED in manifest or SEAL in members
    if sealed and members.get(SEAL) != _seal(bytes(members[MANIFEST])):
        raise ProgramError(_damaged(path, f"the checksum of {MANIFEST} is wrong"))
    return manifest


def _seal(manifest: bytes) -> bytes:
    return hashlib.sha256(manifest).hexdigest().encode()


def _damaged(path: str | os.PathLike[str], why: str) -> str:
    return f"'{os.fspath(path)}' is no program, or is damaged ({why}): compile it again, or copy it again"


def _write(path: str | os.PathLike[str], members: Mapping[str, Part]) -> None:
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
