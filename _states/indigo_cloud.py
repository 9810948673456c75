"""The way to a cloud in the cluster, as declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_cloud.bring" not in __salt__:
        return False, "indigo_cloud states need the execution module indigo_cloud"
    return True


def secret(name: str, cloud: Mapping[str, Any]) -> dict[str, Any]:
    """A Secret holds the way to a cloud: what is declared, and the password of a file.

    Args:
        name: ``namespace/name`` of the Secret.
        cloud: As the model derives it, without the password.

    Returns:
        A state result; ``changes`` say that it was created or updated, and not what is in it.

    Example:

    .. code-block:: yaml

        The way to the cloud of openstack is in the cluster:
          indigo_cloud.secret:
            - name: openstack/cloud
            - cloud: {{ cloud | tojson }}
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    test = bool(__opts__["test"])
    try:
        found = __salt__["indigo_cloud.difference"](cloud)
        if found is None:
            return {**ret, "comment": f"Secret {name} is as declared"}
        if not test:
            __salt__["indigo_cloud.bring"](cloud)
    except CommandExecutionError as err:
        if test:
            return {**ret, "result": None, "comment": f"Cannot be told yet: {err}"}
        return {**ret, "result": False, "comment": str(err)}
    ret["changes"] = {f"Secret {name}": found}
    verb = "would be" if test else "was"
    return {**ret, "result": None if test else True, "comment": f"Secret {name} {verb} {found}"}
