"""Ed25519 signatures of programs. Needs the package ``cryptography`` (the extra ``sign``)."""

from __future__ import annotations

import os
from typing import Any

from .errors import ProgramError
from .reading import MIB, read_file, reading

CONTEXT = b"pock-program signature 1\0"
"""Stands before what is signed, so that a signature of this key for something else does not count."""
HOW = "make one by: ssh-keygen -t ed25519 -N '' -f key"


def signature_of(manifest: bytes, key: str | os.PathLike[str]) -> bytes:
    """Sign the bytes of a manifest, which hold the checksums of all parts, by a private key.

    ``key`` is a file of ``ssh-keygen -t ed25519`` or ``openssl genpkey -algorithm ed25519``, without a passphrase.

    Raises
    ------
    ProgramError
        There is no such file, or it holds no such key.
    """
    serialization, private, _ = _cryptography()
    loaded = _key(key, "private", serialization.load_ssh_private_key, serialization.load_pem_private_key, None)
    if not isinstance(loaded, private):
        raise ProgramError(f"'{key}' is no Ed25519 key: {HOW}")
    return bytes(loaded.sign(CONTEXT + manifest))


def check_signature(
    path: str | os.PathLike[str], manifest: bytes, signature: bytes | None, key: str | os.PathLike[str]
) -> None:
    """Check that a manifest is signed by the private key of a public one (``key.pub``, or a PEM file).

    Raises
    ------
    ProgramError
        It is not signed, or by another key, or was changed since; or the key cannot be read.
    """
    serialization, _, public = _cryptography()
    from cryptography.exceptions import InvalidSignature

    loaded = _key(key, "public", serialization.load_ssh_public_key, serialization.load_pem_public_key)
    if not isinstance(loaded, public):
        raise ProgramError(f"'{key}' is no Ed25519 key: {HOW}")
    if signature is None:
        raise ProgramError(f"'{path}' is not signed: sign it by 'pock sign {path} --key KEY', or get a signed one")
    try:
        loaded.verify(signature, CONTEXT + manifest)
    except InvalidSignature as error:
        raise ProgramError(
            f"'{path}' is not signed by the key '{key}', or was changed since: nothing of it was run. Get it again "
            "from whom you trust"
        ) from error


def _key(path: str | os.PathLike[str], kind: str, of_ssh: Any, of_pem: Any, *password: None) -> Any:
    damaged = f"'{path}' cannot be read as a {kind} key without a passphrase ({{}}): {HOW}"
    with reading(ProgramError, damaged, f"there is no key '{path}': {HOW}"):
        data = read_file(path, MIB)
        is_ssh = data.startswith((b"ssh-", b"-----BEGIN OPENSSH"))
        return (of_ssh if is_ssh else of_pem)(data, *password)


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    except ImportError as error:
        raise ProgramError("signatures need the package cryptography: pip install 'pock-tvm[sign]'") from error
    return serialization, Ed25519PrivateKey, Ed25519PublicKey
