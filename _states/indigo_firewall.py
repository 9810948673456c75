"""The packet filter in front of the cluster's ports is in the kernel."""

from __future__ import annotations

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
                - rules: /etc/indigo/firewall.nft
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
