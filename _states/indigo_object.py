"""Objects of the Kubernetes API, as declared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_object.apply" not in __salt__:
        return False, "indigo_object states need the execution module indigo_object"
    return True


def present(
    name: str,
    objects: Iterable[Mapping[str, Any]],
    server: str,
    authority: str,
    token_file: str,
) -> dict[str, Any]:
    """Every object is in the API and says at least what is declared.

    Args:
        name: A plain English sentence.
        objects: Manifests.
        server: Base URL of the API, ``https://host:port``.
        authority: File with the authority of the server's certificate.
        token_file: File with the bearer token to send.

    Returns:
        A state result; ``changes`` maps ``Kind name`` to ``created`` or ``updated``.

    Example:
        .. code-block:: yaml

            The roles exist:
              indigo_object.present:
                - objects: {{ indigo.rbac | tojson }}
                - server: https://10.0.0.3:6443
                - authority: /etc/kubernetes/pki/ca.crt
                - token_file: /etc/kubernetes/tokens/admin
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    access = (server, authority, token_file)
    test = bool(__opts__.get("test"))
    wanted = {f"{one['kind']} {one['metadata']['name']}": one for one in objects}
    done = {"absent": "created", "differs": "updated"}
    try:
        for title, manifest in wanted.items():
            found = __salt__["indigo_object.difference"](manifest, *access)
            if found is None:
                continue
            if not test:
                __salt__["indigo_object.apply"](manifest, *access)
            ret["changes"][title] = done[found]
    except CommandExecutionError as error:
        if not test:
            return {**ret, "result": False, "comment": str(error)}
        comment = f"The API cannot be asked yet; would be checked: {', '.join(wanted)}"
        return {**ret, "result": None, "changes": {}, "comment": comment}
    if not ret["changes"]:
        return {**ret, "comment": f"{len(wanted)} objects are as declared"}
    verb = "Would be" if test else "Were"
    told = ", ".join(f"{title} {what}" for title, what in ret["changes"].items())
    return {**ret, "result": None if test else True, "comment": f"{verb}: {told}"}


def certificate(
    name: str, certificate: str, key: str, server: str, authority: str, token_file: str
) -> dict[str, Any]:
    """A Secret holds a certificate and its key as their files do.

    Args:
        name: ``namespace/name`` of the Secret.
        certificate: Path of the certificate.
        key: Path of its key.
        server: As of :func:`present`, like the next two.
        authority: See there.
        token_file: See there.

    Returns:
        A state result; ``changes`` say that it was created or updated, and not what is in it.

    Example:
        .. code-block:: yaml

            The certificate of ingress is in the cluster:
              indigo_object.certificate:
                - name: ingress/indigo-ingress
                - certificate: /etc/kubernetes/pki/ingress.crt
                - key: /etc/kubernetes/pki/ingress.key
                - server: https://10.0.0.3:6443
                - authority: /etc/kubernetes/pki/ca.crt
                - token_file: /etc/kubernetes/tokens/admin
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    access = (server, authority, token_file)
    test = bool(__opts__.get("test"))
    try:
        manifest = __salt__["indigo_object.tls_secret"](name, certificate, key)
        found = __salt__["indigo_object.difference"](manifest, *access)
        if found is None:
            return {**ret, "comment": f"Secret {name} is as its files are"}
        if not test:
            __salt__["indigo_object.apply"](manifest, *access)
    except CommandExecutionError as error:
        if test:
            return {**ret, "result": None, "comment": f"Cannot be told yet: {error}"}
        return {**ret, "result": False, "comment": str(error)}
    done = "created" if found == "absent" else "updated"
    verb = "would be" if test else "was"
    ret["changes"] = {f"Secret {name}": done}
    return {**ret, "result": None if test else True, "comment": f"Secret {name} {verb} {done}"}


def labelled(
    name: str,
    labels: Mapping[str, str],
    record: str,
    server: str,
    authority: str,
    token_file: str,
) -> dict[str, Any]:
    """A node has labels, and none any more that it had from here before.

    Its own kubelet's token may do this, for its own node. A host that has and had none asks nobody.

    Args:
        name: Of the Node object.
        labels: What it is to have; what others gave it stays.
        record: File that names those that it has from here.
        server: As of :func:`present`, like the next two.
        authority: See there.
        token_file: See there.

    Returns:
        A state result; ``changes`` maps each label to ``old`` and ``new``.

    Example:
        .. code-block:: yaml

            The node has its labels:
              indigo_object.labelled:
                - name: node1
                - labels: {role: loadbalancer}
                - record: /var/lib/kubelet/indigo-labels.json
                - server: https://10.0.0.10:8443
                - authority: /etc/kubernetes/pki/ca.crt
                - token_file: /etc/kubernetes/tokens/kubelet
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    test = bool(__opts__.get("test"))
    access = (server, authority, token_file)
    file = Path(record)
    ours = set(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else set()
    if not labels and not ours:
        return {**ret, "comment": "It has none from here"}
    try:
        live = __salt__["indigo_object.labels"](name, *access, timeout=0 if test else 60)
        due = __salt__["indigo_object.labels_to_change"](live, labels, sorted(ours))
        if not test:
            # Named before they are there, so that none is ever forgotten.
            _remember(file, ours | set(labels))
            if due:
                __salt__["indigo_object.label"](name, due, *access)
            _remember(file, set(labels))
    except CommandExecutionError as error:
        if test:
            return {**ret, "result": None, "comment": f"Cannot be told yet: {error}"}
        return {**ret, "result": False, "comment": str(error)}
    ret["changes"] = {key: {"old": live.get(key), "new": new} for key, new in due.items()}
    if not due:
        return {**ret, "comment": "It has its labels"}
    verb = "Would change" if test else "Changed"
    return {**ret, "result": None if test else True, "comment": f"{verb}: {', '.join(due)}"}


def _remember(file: Path, names: set[str]) -> None:
    """Keep the names of labels in a file; none: no file."""
    if not names:
        file.unlink(missing_ok=True)
        return
    text = json.dumps(sorted(names))
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        partial = file.with_name(f".{file.name}.new")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
