"""Encrypt for the holder of an RSA key: a fresh AES-256-GCM key, itself encrypted with RSA-OAEP.

The tokens travel between hosts so, sealed for a minion's own key, and the keys of a backup lie on
disk so, sealed for the operator's. Every part of it is a pure function.

Sources: the documentation of ``cryptography`` (AESGCM, RSA encryption); RFC 8017, section 7.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
import zlib
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False


def __virtual__() -> str | tuple[bool, str]:
    if not HAS_CRYPTOGRAPHY:
        return False, "indigo_seal needs the Python package cryptography"
    return "indigo_seal"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _oaep() -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def _public(public_key: str, whose: str, remedy: str) -> rsa.RSAPublicKey:
    try:
        public = serialization.load_pem_public_key(public_key.strip().encode())
    except (ValueError, TypeError):
        raise CommandExecutionError(f"{whose} is no PEM public key; {remedy}") from None
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < 2048:
        raise CommandExecutionError(f"{whose} is not RSA with 2048 bits or more; {remedy}")
    return public


def fingerprint(public_key: str, whose: str, remedy: str) -> str:
    """Short name of a public key, whatever the spaces around it.

    Args:
        public_key: PEM, RSA.
        whose: See :func:`seal`.
        remedy: See :func:`seal`.
    """
    der = _public(public_key, whose, remedy).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()[:16]


def seal(
    header: Mapping[str, Any], payload: Any, public_key: str, whose: str, remedy: str
) -> dict[str, Any]:
    """Encrypt for the holder of a private key; the header stays readable, and cannot be changed.

    Args:
        header: What may be known of it.
        payload: Any JSON data.
        public_key: PEM, RSA.
        whose: Key, as a message names one that cannot be used.
        remedy: What to do then.

    Returns:
        ``header``, ``key``, ``nonce`` and ``data``; the last three in base64.

    Raises:
        CommandExecutionError: The key cannot be used.
    """
    public = _public(public_key, whose, remedy)
    key, nonce = AESGCM.generate_key(bit_length=256), secrets.token_bytes(12)
    data = AESGCM(key).encrypt(nonce, zlib.compress(_canonical(payload)), _canonical(header))
    return {
        "header": dict(header),
        "key": base64.b64encode(public.encrypt(key, _oaep())).decode(),
        "nonce": base64.b64encode(nonce).decode(),
        "data": base64.b64encode(data).decode(),
    }


def unseal(sealed: Mapping[str, Any], private_key: bytes, problem: str) -> Any:
    """Decrypt what :func:`seal` made.

    Args:
        sealed: Its answer.
        private_key: PEM, without a passphrase.
        problem: What to say where key, header or data are not the right ones.

    Raises:
        CommandExecutionError: With ``problem``.
    """
    try:
        private = serialization.load_pem_private_key(private_key, password=None)
        if not isinstance(private, rsa.RSAPrivateKey):
            raise ValueError("not an RSA key")
        key = private.decrypt(base64.b64decode(sealed["key"], validate=True), _oaep())
        text = AESGCM(key).decrypt(
            base64.b64decode(sealed["nonce"], validate=True),
            base64.b64decode(sealed["data"], validate=True),
            _canonical(sealed["header"]),
        )
        return json.loads(zlib.decompress(text))
    except (InvalidTag, ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise CommandExecutionError(problem) from None
