"""The private key that the inventory names for a login, read without paramiko's own parser.

paramiko refuses some sound keys with "Invalid key curve identifier": `_unpad_openssh` cuts everything away
where the file's last block needs no padding and the comment is empty (paramiko issue 2445, still so in
5.1). About half of all ECDSA keys made with `ssh-keygen -C ""` are hit. cryptography reads them all.
"""

from __future__ import annotations

import io
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from workers.connection.errors import KeyFileProblem


def read_key(path: Path) -> paramiko.PKey:
    """The key of `path` with the certificate beside it (`-cert.pub`), where there is one.

    Raises KeyFileProblem, and paramiko.PasswordRequiredException for an encrypted key: there are no
    passwords here.
    """
    try:
        key = _parse(path.read_bytes())
        certificate = path.with_name(path.name + "-cert.pub")
        if certificate.exists():
            key.load_certificate(str(certificate))
        return key
    except OSError as error:
        raise KeyFileProblem(f"the private key {path} cannot be read: {error.strerror}") from error
    except TypeError as error:  # cryptography's answer to an encrypted key without a password
        raise paramiko.PasswordRequiredException(f"the private key {path} is encrypted") from error
    except (ValueError, UnsupportedAlgorithm, paramiko.SSHException) as error:
        raise KeyFileProblem(f"{path} is not a private key that can be used: {error}") from error


def _parse(data: bytes) -> paramiko.PKey:
    try:
        key: object = serialization.load_ssh_private_key(data, password=None)
    except ValueError:
        key = serialization.load_pem_private_key(data, password=None)
    if isinstance(key, RSAPrivateKey):
        return paramiko.RSAKey(key=key)
    if isinstance(key, EllipticCurvePrivateKey):
        return paramiko.ECDSAKey(vals=(key, key.public_key()))
    if isinstance(key, Ed25519PrivateKey):
        # paramiko takes no ready key here. Written anew without a comment it always has padding.
        text = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        return paramiko.Ed25519Key.from_private_key(io.StringIO(text.decode()))
    raise ValueError(f"keys of this type cannot be used ({type(key).__name__})")
