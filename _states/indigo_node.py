"""The end of a node."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_node.clear" not in __salt__:
        return False, "indigo_node states need the execution module indigo_node"
    return True


def cleared(name: str) -> dict[str, Any]:
    """No pod, and nothing that pods and their networks made, is left on this host.

    Args:
        name: A plain English sentence.

    Returns:
        A state result; ``changes`` says what was there.

    Example:
        .. code-block:: yaml

            Nothing of the pods is left:
              indigo_node.cleared:
                - require:
                  - indigo_service: kubelet is stopped
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = __salt__["indigo_node.leftovers"]()
        if not found:
            return {**ret, "comment": "Nothing of any pod is there"}
        ret["changes"] = {"cleared": found}
        if __opts__.get("test"):
            return {**ret, "result": None, "comment": f"Would be cleared: {', '.join(found)}"}
        __salt__["indigo_node.clear"]()
    except CommandExecutionError as error:
        return {**ret, "result": False, "changes": {}, "comment": str(error)}
    return {**ret, "comment": f"Cleared: {', '.join(found)}"}


def emptied(name: str) -> dict[str, Any]:
    """A folder is empty or absent; the folder itself stays where it is a mount point.

    Args:
        name: Path of the folder.

    Returns:
        A state result; ``changes`` has the number of entries that were removed.

    Example:
        .. code-block:: yaml

            /var/lib/kubelet is empty:
              indigo_node.emptied:
                - name: /var/lib/kubelet
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        entries = sorted(os.listdir(name))
    except FileNotFoundError:
        return {**ret, "comment": f"{name} is absent"}
    if not entries:
        return {**ret, "comment": f"{name} is empty"}
    ret["changes"] = {"removed": len(entries)}
    if __opts__.get("test"):
        return {**ret, "result": None, "comment": f"{len(entries)} entries would be removed"}
    if there := __salt__["indigo_node.mounted"](name):
        comment = f"{there[0]} is still mounted; expected nothing below {name}: umount it first"
        return {**ret, "result": False, "changes": {}, "comment": comment}
    try:
        for entry in entries:
            path = os.path.join(name, entry)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    except OSError as error:
        return {**ret, "result": False, "changes": {}, "comment": f"{name}: {error}"}
    return {**ret, "comment": f"{len(entries)} entries were removed"}


def folder_absent(name: str, timeout: float = 150) -> dict[str, Any]:
    """A folder that was a pod's volume is gone, once no pod has it any more.

    Args:
        name: Path of the folder.
        timeout: Seconds to wait at most for pods to end.

    Returns:
        A state result; ``changes`` names the folder. It fails while a pod holds it.

    Example:
        .. code-block:: yaml

            The database of Zabbix is gone:
              indigo_node.folder_absent:
                - name: /var/lib/indigo-zabbix
                - order: last
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if not os.path.isdir(name):
        return {**ret, "comment": f"{name} is absent"}
    ret["changes"] = {name: "removed"}
    if __opts__.get("test"):
        return {**ret, "result": None, "comment": f"{name} would be removed"}
    deadline = time.monotonic() + timeout
    while held := __salt__["indigo_node.users"](name):
        if time.monotonic() > deadline:
            comment = (
                f"{held[0]} is still mounted; expected no pod to use {name}: run `state.apply "
                "addons` on the first master, then this again"
            )
            return {**ret, "result": False, "changes": {}, "comment": comment}
        time.sleep(1)
    try:
        shutil.rmtree(name)
    except OSError as error:
        return {**ret, "result": False, "changes": {}, "comment": f"{name}: {error}"}
    return {**ret, "comment": f"{name} was removed"}
