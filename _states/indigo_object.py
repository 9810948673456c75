"""Objects of the Kubernetes API, as declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
