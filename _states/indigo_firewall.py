"""What guards the cluster's ports is in the kernel: an nftables table, or firewalld's policies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_firewall.differences" not in __salt__:
        return False, "indigo_firewall states need the execution module indigo_firewall"
    return True


def loaded(name: str, unit: str, rules: str) -> dict[str, Any]:
    """The rules that the unit loaded are in the kernel; it is run again if not.

    Args:
        name: A plain English sentence.
        unit: The oneshot unit that loads them.
        rules: Path of the file that it loads.

    Returns:
        A state result; ``changes`` names what had been missing.

    Example:
        .. code-block:: yaml

            The kernel has the rules of the firewall:
              indigo_firewall.loaded:
                - unit: indigo-firewall
                - rules: /etc/indigo/firewall/rules.nft
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = __salt__["indigo_firewall.differences"]()
        if not found:
            return {**ret, "comment": f"the rules of {unit} are in the kernel"}
        changes = {"restored": found}
        if __opts__.get("test"):
            comment = f"Would run {unit}: {'; '.join(found)}"
            return {**ret, "result": None, "changes": changes, "comment": comment}
        __salt__["indigo_service.restart"](unit, [rules])
        left = __salt__["indigo_firewall.differences"]()
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    if left:
        comment = f"{unit} ran, and still: {'; '.join(left)}. Look at: journalctl -u {unit} -n 50"
        return {**ret, "result": False, "changes": changes, "comment": comment}
    return {**ret, "changes": changes, "comment": f"{unit} was run: {'; '.join(found)}"}


def firewalld(name: str, files: Iterable[str]) -> dict[str, Any]:
    """firewalld, which the site runs, has these policies loaded.

    It is never started here: a firewalld that did not run could lock people out.

    Args:
        name: A plain English sentence.
        files: Paths of the policies.

    Returns:
        A state result; ``changes`` has ``reloaded`` where it was needed.

    Example:
        .. code-block:: yaml

            firewalld guards the cluster's ports:
              indigo_firewall.firewalld:
                - files: [/etc/firewalld/policies/indigo-ports.xml]
    """
    if not __salt__["indigo_service.active"]("firewalld"):
        comment = (
            "firewalld does not run on this host; `firewall: firewalld` adds to what it does. "
            "Start it, once its zone lets ssh and Salt in, or set `firewall` to nftables or none"
        )
        return {"name": name, "result": False, "changes": {}, "comment": comment}
    found = __states__["indigo_service.running"](
        name="firewalld", files=list(files), reload=True, enable=False
    )
    return {**found, "name": name}


def firewalld_absent(name: str, files: Iterable[str]) -> dict[str, Any]:
    """Firewalld has none of these policies, neither on disk nor loaded.

    Args:
        name: A plain English sentence.
        files: Paths of the policies.

    Returns:
        A state result; ``changes`` names the policies that were removed.

    Example:
        .. code-block:: yaml

            firewalld has forgotten the cluster:
              indigo_firewall.firewalld_absent:
                - files: [/etc/firewalld/policies/indigo-ports.xml]
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    files = list(files)
    found = __salt__["indigo_firewall.policies"](files)
    if not found:
        return {**ret, "comment": "firewalld has none of them"}
    changes = {"removed": found}
    if __opts__.get("test"):
        comment = f"Would remove {', '.join(found)}"
        return {**ret, "result": None, "changes": changes, "comment": comment}
    try:
        __salt__["indigo_firewall.forget"](files)
    except (CommandExecutionError, OSError) as error:
        return {**ret, "result": False, "comment": str(error)}
    return {**ret, "changes": changes, "comment": f"{', '.join(found)} removed"}
