"""A master's part in the exchange of keys: Secrets and tokens that must be written anew.

Which key is in use, and how far its exchange is, the token set says (``indigo_tokens.rotate``).
Nothing here returns, logs or raises a Secret: what is told is names and numbers.

Sources: Kubernetes' "Encrypting Confidential Data at Rest" (the prefix names provider and key; a
write of the unchanged object encrypts it anew), etcd's "gRPC gateway".
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from salt.exceptions import CommandExecutionError

#: How many values etcd is asked for at once: each may be a megabyte.
PAGE = 50

#: How often the whole is looked through: Secrets that were written meanwhile are found the next
#: time, and those are few.
ROUNDS = 5

#: How often one object is written when others write it, too.
TRIES = 5


def __virtual__() -> str:
    return "indigo_rotate"


# --- pure -------------------------------------------------------------------------------------


def encryption(value: bytes) -> str:
    """By what a value in etcd is encrypted: ``provider:version:key``, or ``identity``.

    Example:
        >>> encryption(b"k8s:enc:secretbox:v1:key2:...")
        'secretbox:v1:key2'
        >>> encryption(b"k8s\\x00")
        'identity'
    """
    parts = value[:200].split(b":", 5)
    if parts[:2] != [b"k8s", b"enc"] or len(parts) < 6:
        return "identity"
    return b":".join(parts[2:5]).decode("ascii", "replace")


def named(key: str, prefix: str) -> tuple[str, str]:
    """Namespace and name of the Secret that lies under a key of etcd.

    Example:
        >>> named("/registry/secrets/default/a", "/registry/secrets/")
        ('default', 'a')
    """
    namespace, _, name = key[len(prefix) :].partition("/")
    return namespace, name


# --- etcd -------------------------------------------------------------------------------------


def _view() -> Mapping[str, Any]:
    view = __pillar__.get("indigo")
    if not view or "master" not in view.get("roles", []):
        raise CommandExecutionError(
            f"{__opts__['id']} is no master by its pillar; this is asked of masters"
        )
    return view


def _prefix() -> str:
    flags = _view()["components"]["kube-apiserver"]["flags"]
    return flags.get("etcd-prefix", "/registry").rstrip("/") + "/secrets/"


def _range(body: Mapping[str, Any]) -> dict[str, Any]:
    """One question to etcd, of the first member that answers."""
    lock = _view()["lock"]
    context = ssl.create_default_context(cafile=lock["ca"])
    context.load_cert_chain(lock["cert"], lock["key"])
    problems = []
    for endpoint in lock["endpoints"]:
        asked = urllib.request.Request(  # noqa: S310 - always https
            f"{endpoint}/v3/kv/range", json.dumps(body).encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(asked, timeout=20, context=context) as answer:  # noqa: S310
                return dict(json.load(answer))
        except (OSError, ValueError, http.client.HTTPException) as err:
            problems.append(f"{endpoint}: {err}")
    raise CommandExecutionError(f"etcd does not answer: {'; '.join(problems)}")


def _stored() -> Iterator[tuple[str, str]]:
    """Key of each Secret in etcd, and by what its value is encrypted."""
    prefix = _prefix()
    start, end = prefix.encode(), (prefix[:-1] + "0").encode()
    while True:
        said = _range(
            {
                "key": base64.b64encode(start).decode(),
                "range_end": base64.b64encode(end).decode(),
                "limit": PAGE,
            }
        )
        for one in said.get("kvs", []):
            start = base64.b64decode(one["key"]) + b"\0"
            # The beginning is enough; in multiples of four characters.
            yield start[:-1].decode(), encryption(base64.b64decode(one["value"][:256]))
        if not said.get("more"):
            return


def stored() -> dict[str, int]:
    """How many Secrets lie in etcd under each key of encryption.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.stored
    """
    return dict(Counter(how for _, how in _stored()))


# --- the API ----------------------------------------------------------------------------------


class _Api:
    """The master's own API server as admin, over one connection that is kept."""

    def __init__(self) -> None:
        view = _view()
        self._url = urlsplit(view["components"]["kube-apiserver"]["url"])
        self._ca = view["paths"]["pki"] + "/ca.crt"
        token = Path(view["paths"]["tokens"], "admin").read_text("utf-8").strip()
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Accept": "application/json",
            "Content-Type": "application/json",
        }
        self._connection: http.client.HTTPSConnection | None = None

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and document of an answer."""
        kept = self._connection is not None
        try:
            return self._once(method, path, body)
        except (OSError, ValueError, http.client.HTTPException) as err:
            self.close()
            if not kept:
                raise CommandExecutionError(
                    f"{self._url.geturl()}{path} does not answer: {err}"
                ) from err
        return self.ask(method, path, body)

    def _once(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._url.hostname or "",
                self._url.port,
                timeout=20,
                context=ssl.create_default_context(cafile=self._ca),
            )
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, self._headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}"


def _write_again(api: _Api, namespace: str, name: str, change: Any = None) -> bool:
    """Write a Secret as it is, or as ``change`` makes it of itself; whether it was written."""
    path = _path(namespace, name)
    status, reason = 0, ""
    for _ in range(TRIES):
        status, found = api.ask("GET", path)
        if status == 404:
            return False
        if status == 200:
            if change is not None and not change(found):
                return False
            status, found = api.ask("PUT", path, found)
            if status == 200:
                return True
            if status == 404:
                return False
        reason = str(found.get("reason", ""))  # the message could quote the object
        if status != 409:
            break
    raise CommandExecutionError(
        f"Secret {namespace}/{name} could not be written again: {status} {reason}; see "
        f"`kubectl get secret -n {namespace} {name}` and what admission says to an update of it"
    )


def rewrite(key: str) -> dict[str, Any]:
    """Have every Secret that is not encrypted by one key written again, until all are.

    Every API server must write with that key already. What etcd says is believed, nothing else.

    Args:
        key: Name of the key in the configuration of encryption at rest.

    Returns:
        ``written``, how many were written again, and ``secrets``, how many there are.

    Raises:
        CommandExecutionError: A Secret cannot be written, or some still have another key after
            several rounds. Running it again goes on with those.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.rewrite key2
    """
    prefix, wanted = _prefix(), f"secretbox:v1:{key}"
    api = _Api()
    written = 0
    try:
        for _ in range(ROUNDS):
            found = dict(_stored())
            stale = [named(one, prefix) for one, how in found.items() if how != wanted]
            if not stale:
                return {"written": written, "secrets": len(found)}
            written += sum(_write_again(api, *one) for one in stale)
    finally:
        api.close()
    raise CommandExecutionError(
        f"after {ROUNDS} rounds {len(stale)} Secrets are not encrypted by {key}, for example "
        f"{'/'.join(stale[0])}: an API server still writes with another key. Run "
        "salt 'MASTERS' state.apply, then this again"
    )
