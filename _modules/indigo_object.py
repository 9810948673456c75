"""Objects of the Kubernetes API that must be there: read, compared, and applied where they differ.

One GET tells whether an object is as declared; nothing is sent otherwise. Writing is a
server-side apply under the field manager ``indigo``, so that what others added stays.

Source: kubernetes.io "Server-Side Apply"; it is on by itself since 1.16.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

MANAGER = "indigo"

#: Kinds that can be declared: name in URLs, and whether they live in a namespace.
KINDS: Mapping[str, tuple[str, bool]] = {
    "ClusterRole": ("clusterroles", False),
    "ClusterRoleBinding": ("clusterrolebindings", False),
    "Role": ("roles", True),
    "RoleBinding": ("rolebindings", True),
    "Namespace": ("namespaces", False),
    "ServiceAccount": ("serviceaccounts", True),
    "ConfigMap": ("configmaps", True),
    "Secret": ("secrets", True),
    "Node": ("nodes", False),
}


def __virtual__() -> str:
    return "indigo_object"


def path(manifest: Mapping[str, Any]) -> str:
    """Path of an object in the API.

    Raises:
        CommandExecutionError: A kind that is not in :data:`KINDS`.

    Example:
        >>> path({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        ...       "metadata": {"name": "indigo:x"}})
        '/apis/rbac.authorization.k8s.io/v1/clusterroles/indigo%3Ax'
    """
    kind = str(manifest.get("kind"))
    if kind not in KINDS:
        raise CommandExecutionError(
            f"kind {kind!r} cannot be declared here; expected one of {', '.join(KINDS)}"
        )
    plural, namespaced = KINDS[kind]
    version, metadata = str(manifest["apiVersion"]), manifest["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    if namespaced:
        root += f"/namespaces/{metadata['namespace']}"
    return f"{root}/{plural}/{quote(metadata['name'], safe='')}"


def holds(live: Any, declared: Any) -> bool:
    """Whether a live object says all that is declared; it may say more.

    Lists must be equal in length and order, element by element.

    Example:
        >>> holds({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"c": 2}]})
        True
        >>> holds({"b": [1, 2]}, {"b": [1]})
        False
    """
    if isinstance(declared, Mapping):
        return isinstance(live, Mapping) and all(
            key in live and holds(live[key], value) for key, value in declared.items()
        )
    if isinstance(declared, (list, tuple)):
        return (
            isinstance(live, list)
            and len(live) == len(declared)
            and all(holds(*pair) for pair in zip(live, declared, strict=True))
        )
    return bool(live == declared)


#: Answers of an API server that has lost a member of etcd, or is stopping: the next try is
#: answered by what is left. All requests here may be repeated.
_TRANSIENT = frozenset([429, 500, 502, 503, 504])
_TRIES = 4


def _ask(
    method: str,
    url: str,
    authority: str,
    token_file: str,
    body: Mapping[str, Any] | None = None,
    content: str = "application/apply-patch+yaml",
) -> dict[str, Any] | None:
    """One request with a bearer token over verified TLS, again where that helps; None for 404."""
    headers = {"Accept": "application/json"}
    try:
        token = Path(token_file).read_text(encoding="utf-8").strip()
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise CommandExecutionError(
            f"{url} cannot be asked: {error}. Run salt-run state.orchestrate indigo.deploy, "
            "which brings tokens and certificates"
        ) from error
    headers["Authorization"] = f"Bearer {token}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = content
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
    for left in reversed(range(_TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404 and method == "GET":
                return None
            said = error.read(500).decode(errors="replace").strip()
            if not left or error.code not in _TRANSIENT:
                raise CommandExecutionError(
                    f"{method} {url} answered {error.code}: {said}"
                ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not left:
                raise CommandExecutionError(f"{method} {url} failed: {error}") from error
        time.sleep(0.5)
    return None  # not reached: the last try returns or raises


def difference(
    manifest: Mapping[str, Any], server: str, authority: str, token_file: str
) -> str | None:
    """Why an object must be applied, or None when it is as declared.

    Args:
        manifest: The declared object.
        server: Base URL of the API.
        authority: File with the authority of the server's certificate.
        token_file: File with the bearer token to send.

    Raises:
        CommandExecutionError: The API does not answer, or refuses.
    """
    live = _ask("GET", server + path(manifest), authority, token_file)
    if live is None:
        return "absent"
    return None if holds(live, manifest) else "differs"


def apply(manifest: Mapping[str, Any], server: str, authority: str, token_file: str) -> None:
    """Make an object what is declared; the arguments are those of :func:`difference`.

    Raises:
        CommandExecutionError: The API does not answer, or refuses.
    """
    url = f"{server}{path(manifest)}?fieldManager={MANAGER}&force=true"
    _ask("PATCH", url, authority, token_file, manifest)


def tls_secret(name: str, certificate: str, key: str) -> dict[str, Any]:
    """The Secret that holds a certificate and its key, from their files.

    Args:
        name: ``namespace/name``.
        certificate: Path of the certificate, PEM.
        key: Path of its key, PEM.

    Returns:
        A manifest of type ``kubernetes.io/tls``, which holds the key: for :func:`apply` alone.

    Raises:
        CommandExecutionError: A file cannot be read.
    """
    namespace, _, short = name.partition("/")
    try:
        data = {
            field: base64.b64encode(Path(path_).read_bytes()).decode()
            for field, path_ in (("tls.crt", certificate), ("tls.key", key))
        }
    except OSError as error:
        raise CommandExecutionError(
            f"Secret {name} cannot be made: {error}; state.apply common.certificates issues it"
        ) from error
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": short, "namespace": namespace},
        "data": data,
    }


def labels_to_change(
    live: Mapping[str, str], wanted: Mapping[str, str], ours: Iterable[str]
) -> dict[str, str | None]:
    """Labels that an object must get or, with None, lose.

    Args:
        live: What it has.
        wanted: What it is to have, beside others'.
        ours: Names of those that we gave it before.

    Example:
        >>> labels_to_change({"a": "1", "b": "2", "c": "3"}, {"a": "0"}, ["a", "b", "d"])
        {'a': '0', 'b': None}
    """
    found: dict[str, str | None] = {
        name: value for name, value in wanted.items() if live.get(name) != value
    }
    return found | {name: None for name in ours if name in live and name not in wanted}


def _node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def labels(
    name: str, server: str, authority: str, token_file: str, timeout: float = 60
) -> dict[str, str]:
    """Labels of a node; its kubelet may be about to register it.

    Args:
        name: Of the Node object.
        server: As of :func:`difference`, like the next two.
        authority: See there.
        token_file: See there.
        timeout: Seconds to wait for the node, and for the API.

    Raises:
        CommandExecutionError: There is no such node, or no API.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            live = _ask("GET", server + path(_node(name)), authority, token_file)
            if live is not None:
                return dict(live["metadata"].get("labels") or {})
            problem = "the API knows no such node: see journalctl -u kubelet there"
        except CommandExecutionError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise CommandExecutionError(f"node {name}: {problem}")
        time.sleep(0.5)


def label(
    name: str,
    changes: Mapping[str, str | None],
    server: str,
    authority: str,
    token_file: str,
) -> None:
    """Give a node labels and take others away, as :func:`labels_to_change` has them.

    Raises:
        CommandExecutionError: The API does not answer, or refuses.
    """
    body = {"metadata": {"labels": dict(changes)}}
    _ask(
        "PATCH",
        server + path(_node(name)),
        authority,
        token_file,
        body,
        "application/merge-patch+json",
    )
