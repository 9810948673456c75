"""The pod network as the kernel and containerd have it."""

from __future__ import annotations

import os
import time
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


#: Seconds that a running kubelet may take until containerd has its CNI configuration.
PATIENCE = 60.0


#: Where units of ours lie.
UNITS = "/etc/systemd/system"


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_network.differences" not in __salt__:
        return False, "indigo_network states need the execution module indigo_network"
    return True


def routed(
    name: str, interface: str, pods: str, services: str, node: bool, unit: str = "indigo-routes"
) -> dict[str, Any]:
    """Routes, sysctls and the masquerading rule are in the kernel; the unit is run again if not.

    Args:
        name: A plain English sentence.
        interface: The one that carries the host's address.
        pods: Pod network, as CIDR.
        services: Service network, as CIDR.
        node: Whether the host runs pods, or only reaches them.
        unit: The oneshot unit that puts them there.

    Returns:
        A state result; ``changes`` names what had been missing.

    Example:
        .. code-block:: yaml

            The kernel has the pod network's routes:
              indigo_network.routed:
                - interface: eth0
                - pods: 10.244.0.0/16
                - services: 10.96.0.0/16
                - node: True
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = __salt__["indigo_network.differences"](interface, pods, services, node)
        if not found:
            return {**ret, "comment": f"{interface} leads to {pods}"}
        ret["changes"] = {"restored": found}
        if __opts__.get("test"):
            return {**ret, "result": None, "comment": f"Would run {unit}: {'; '.join(found)}"}
        __salt__["indigo_service.restart"](unit)
        left = __salt__["indigo_network.differences"](interface, pods, services, node)
    except CommandExecutionError as error:
        return {**ret, "result": False, "changes": {}, "comment": str(error)}
    if left:
        comment = f"{unit} ran, and still: {'; '.join(left)}. Look at: journalctl -u {unit} -n 50"
        return {**ret, "result": False, "comment": comment}
    return {**ret, "comment": f"{unit} was run: {'; '.join(found)}"}


def addressed(name: str, address: str, unit: str = "indigo-dns-cache") -> dict[str, Any]:
    """An address that a unit puts on this host is there; the unit is run again if not.

    Args:
        name: A plain English sentence.
        address: The IPv4 address.
        unit: The oneshot unit that puts it there.

    Returns:
        A state result; ``changes`` has ``restored`` where it had been missing.

    Example:
        .. code-block:: yaml

            The kernel has the cache's address:
              indigo_network.addressed:
                - address: 169.254.20.10
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    test = bool(__opts__.get("test"))
    try:
        if __salt__["indigo_network.has_address"](address):
            return {**ret, "comment": f"{address} is there"}
        ret["changes"] = {"restored": address}
        if test:
            return {**ret, "result": None, "comment": f"Would run {unit}: {address} is missing"}
        __salt__["indigo_service.restart"](unit)
        there = __salt__["indigo_network.has_address"](address)
    except CommandExecutionError as error:
        return {**ret, "result": False, "changes": {}, "comment": str(error)}
    if not there:
        comment = f"{unit} ran, and {address} is still missing: journalctl -u {unit} -n 50"
        return {**ret, "result": False, "changes": {}, "comment": comment}
    return {**ret, "comment": f"{unit} was run: {address} was missing"}


def unaddressed(name: str, address: str, unit: str = "indigo-dns-cache") -> dict[str, Any]:
    """A unit that put an address on this host is gone, and the address with it.

    Not while a running pod has the address in its ``resolv.conf``: here it is refused and asks the
    next server at once, but without the address each of its questions would wait for nobody's
    answer.

    Args:
        name: A plain English sentence.
        address: The IPv4 address.
        unit: The oneshot unit.

    Returns:
        A state result; ``changes`` has ``removed``.

    Example:
        .. code-block:: yaml

            No address of a cache of names is left:
              indigo_network.unaddressed:
                - address: 169.254.20.10
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    path = os.path.join(UNITS, f"{unit}.service")
    if not os.path.exists(path):
        return {**ret, "comment": f"{unit} is not here"}
    try:
        told = __salt__["indigo_node.naming"](address)
        if told:
            comment = (
                f"{address} stays for {len(told)} pods that were told of it when they started, and "
                "goes with a later run: restart them, or leave it"
            )
            return {**ret, "comment": comment}
        ret["changes"] = {"removed": address}
        if __opts__.get("test"):
            return {**ret, "result": None, "comment": f"{unit} and {address} would be removed"}
        __salt__["indigo_service.stop"](unit)
        os.unlink(path)  # last, so that a run that is killed before goes on here
        __salt__["indigo_service.daemon_reload"]()
    except (CommandExecutionError, OSError) as error:
        return {**ret, "result": False, "changes": {}, "comment": f"{name}: {error}"}
    return {**ret, "comment": f"{unit} and {address} were removed"}


def cni_current(name: str, template: str, unit: str = "kubelet") -> dict[str, Any]:
    """The CNI configuration that containerd wrote is of today's template.

    An older one is written anew with the subnet that it has, under running pods. One that is
    damaged or gone is containerd's to write, once kubelet starts and tells it the subnet.

    Args:
        name: Path of the file that containerd writes.
        template: Path of its template.
        unit: kubelet's unit.

    Returns:
        A state result; ``changes`` has ``written`` (the subnet), or ``removed`` and
        ``restarted``.

    Example:
        .. code-block:: yaml

            The CNI configuration is of today's template:
              indigo_network.cni_current:
                - name: /etc/cni/net.d/10-containerd-net.conflist
                - template: /etc/containerd/cni-template.conflist
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    test = bool(__opts__.get("test"))
    try:
        found = "absent" if test and not os.path.exists(template) else ""
        found = found or __salt__["indigo_network.cni"](name, template)
        if found == "current":
            return {**ret, "comment": f"{name} is of today's template"}
        if found == "differs":
            ret["changes"] = {"written": "anew, with the same subnet"}
        else:
            waiting = _runs_since(unit)
            if found == "absent" and waiting < PATIENCE:
                return {**ret, "comment": f"{name} is for containerd to write"}
            ret["changes"] = {"removed": name} if found == "damaged" else {}
            if waiting:
                ret["changes"]["restarted"] = unit
        if test:
            return {**ret, "result": None, "comment": f"{name} is {found}; would be put right"}
        if found == "differs":
            ret["changes"] = {"written": __salt__["indigo_network.refill"](name, template)}
        elif found == "damaged":
            os.unlink(name)
        if "restarted" in ret["changes"]:
            __salt__["indigo_service.restart"](unit)
    except (CommandExecutionError, OSError) as error:
        return {**ret, "result": False, "changes": {}, "comment": f"{name}: {error}"}
    return {**ret, "comment": f"{name} was {found} and is put right"}


def _runs_since(unit: str) -> float:
    """Seconds since a unit's process started; 0 where none runs."""
    properties = __salt__["indigo_service.show"](unit)
    started = int(properties.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    if properties.get("MainPID", "0") == "0" or not started:
        return 0.0
    return time.monotonic() - started
