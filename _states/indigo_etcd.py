"""How a member of etcd comes into its cluster, and how its first start is finished."""

from __future__ import annotations

from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_etcd.plan" not in __salt__:
        return False, "indigo_etcd states need the execution module indigo_etcd"
    return True


def member_configured(name: str, timeout: float = 120) -> dict[str, Any]:
    """A member without data is prepared to form or to join its cluster; one with data is left be.

    Args:
        name: The environment file for the first start.
        timeout: Seconds to wait while another change of membership is under way.

    Returns:
        A state result. It fails where the member has no data, no quorum answers, and no
        orchestration gave leave to form a new cluster.

    Example:
        .. code-block:: yaml

            The way into the cluster is known:
              indigo_etcd.member_configured:
                - name: /etc/etcd/initial.env
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        if __salt__["indigo_etcd.has_data"]():
            return {**ret, "comment": "The member has data: there is nothing to decide"}
        if __opts__.get("test"):
            comment = (
                "The member has no data: it would join the others if they answer, or form a new "
                "cluster if the orchestration allows it"
            )
            return {**ret, "result": None, "comment": comment}
        before = _read(name)
        found = __salt__["indigo_etcd.enter"](timeout=timeout)
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    if found["removed"]:
        ret["changes"]["removed"] = found["removed"]
    if found["added"]:
        ret["changes"]["added"] = "as a learner"
    if found["initial"] != before:
        ret["changes"]["initial-cluster-state"] = "new" if found["action"] == "new" else "existing"
    told = {"new": "form a new cluster", "start": "start as declared", "join": "join the cluster"}
    ret["comment"] = f"The member is to {told.get(found['action'], 'keep its data')}"
    return ret


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""


def member_settled(name: str, timeout: float = 120) -> dict[str, Any]:
    """A member has full vote, and no leave to form a new cluster is left on its host.

    Args:
        name: What it is called in reports; not used otherwise.
        timeout: Seconds to wait until a learner has caught up.

    Returns:
        A state result; ``changes`` names the promotion and the files removed.

    Example:
        .. code-block:: yaml

            The member has settled in:
              indigo_etcd.member_settled:
                - require:
                  - indigo_health: etcd serves
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        if __opts__.get("test"):
            left = __salt__["indigo_etcd.leftovers"]()
            if left or not __salt__["indigo_etcd.has_data"]():
                comment = "The member would be promoted if it is a learner, and "
                comment += f"{', '.join(left) or 'what its first start left'} would be removed"
                return {**ret, "result": None, "comment": comment}
            return {**ret, "comment": "The member has settled in"}
        # What promotes a learner also removes these files, so without them there is nothing to do.
        if not __salt__["indigo_etcd.leftovers"]():
            return {**ret, "comment": "The member has settled in"}
        done = __salt__["indigo_etcd.settle"](timeout=timeout)
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    if "promoted" in done:
        ret["changes"]["promoted"] = True
    if removed := [path for path in done if path != "promoted"]:
        ret["changes"]["removed"] = removed
    return {**ret, "comment": "The member has settled in"}
