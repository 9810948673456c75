"""Facts about a host's network that only the host itself knows."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


def __virtual__() -> bool | tuple[bool, str]:
    if shutil.which("ip") is None:
        return False, "indigo_host needs the command ip of iproute2"
    return True


def _links() -> list[dict[str, Any]]:
    done = subprocess.run(
        ["ip", "-json", "address", "show"], capture_output=True, text=True, timeout=10, check=False
    )
    if done.returncode:
        raise CommandExecutionError(f"ip -json address show failed: {done.stderr.strip()}")
    return json.loads(done.stdout or "[]")


def table(links: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Addresses with prefix length by interface, from iproute2's JSON.

    >>> table([{"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]}])
    {'lo': ['127.0.0.1/8']}
    """
    return {
        str(link["ifname"]): [
            f"{info['local']}/{info['prefixlen']}"
            for info in link.get("addr_info", [])
            if "local" in info
        ]
        for link in links
        if link.get("ifname")
    }


def addresses() -> dict[str, list[str]]:
    """Every address that the host carries now.

    Returns:
        ``{interface: ["address/prefix length", ...]}``, also interfaces without an address.

    Raises:
        CommandExecutionError: iproute2 does not answer.

    Example:
        ``salt '*' indigo_host.addresses``
    """
    return table(_links())


def find(found: Mapping[str, Iterable[str]], address: str) -> str | None:
    """Interface in the result of :func:`addresses` that carries an address, or None.

    >>> find({"eth0": ["10.0.0.1/24"]}, "10.0.0.1")
    'eth0'
    """
    for name, carried in found.items():
        if any(one.partition("/")[0] == address for one in carried):
            return name
    return None


def interface(address: str) -> str:
    """Name of the interface that carries an address.

    Args:
        address: IPv4 or IPv6 address without prefix length.

    Returns:
        The interface's name, for example ``eth0``.

    Raises:
        CommandExecutionError: No interface carries it.

    Example:
        ``salt-call indigo_host.interface 10.77.0.41``
    """
    found = addresses()
    name = find(found, address)
    if name is None:
        has = "; ".join(f"{key} {', '.join(value)}" for key, value in found.items() if value)
        raise CommandExecutionError(
            f"No interface of this host carries {address}; found: {has}. "
            "Correct the host's address in pillar/cluster.yaml, or give the host that address"
        )
    return name


def holds(address: str) -> bool:
    """Whether the host carries an address now, for example the virtual one.

    Example:
        ``salt -L lb1,lb2,lb3 indigo_host.holds 10.77.0.10``
    """
    return find(addresses(), address) is not None
