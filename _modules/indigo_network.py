"""The pod network as it is on this host now: routes, forwarding, and the CNI configuration.

systemd knows that ``indigo-routes`` ran, not that its routes are still there: a restart of the
host's network takes them away. This module looks at the kernel.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

#: Kernel's flag of a route that refuses (``include/uapi/linux/ipv6_route.h``, ``route.h``).
RTF_REJECT = 0x0200


def __virtual__() -> str:
    return "indigo_network"


def parse_routes(text: str) -> dict[str, str]:
    """Destinations and their interfaces from ``/proc/net/route``; a refusing route has ``!``.

    >>> parse_routes("Iface Destination Gateway Flags RefCnt Use Metric Mask\\n"
    ...              "eth0 0000F40A 00000000 0001 0 0 0 0000FFFF 0 0 0\\n")
    {'10.244.0.0/16': 'eth0'}
    """
    routes: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        address, mask = (
            ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(fields[index]), "little"))
            for index in (1, 7)
        )
        refused = int(fields[3], 16) & RTF_REJECT
        network = ipaddress.IPv4Network(f"{address}/{mask}")
        routes.setdefault(str(network), "!" if refused else fields[0])
    return routes


def _kernel(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _masqueraded(pods: str) -> bool:
    command = ["iptables", "-w", "-t", "nat", "-C", "POSTROUTING", "-s", pods, "!", "-d", pods]
    try:
        done = subprocess.run(
            [*command, "-j", "MASQUERADE"], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def differences(interface: str, pods: str, services: str, node: bool) -> list[str]:
    """What the host lacks of the pod network ``routes``.

    Args:
        interface: The one that carries the host's address.
        pods: Pod network, as CIDR.
        services: Service network, as CIDR.
        node: Whether the host runs pods, or only reaches them.

    Returns:
        One text per difference; none when all is in place.

    Raises:
        CommandExecutionError: The kernel does not show its routes.

    Example:
        ``salt node1 indigo_network.differences eth0 10.244.0.0/16 10.96.0.0/16 True``
    """
    table = _kernel("/proc/net/route")
    if table is None:
        raise CommandExecutionError("/proc/net/route cannot be read; expected the IPv4 routes")
    routes = parse_routes(table)
    wanted = {pods: interface, services: interface if node else "!"}
    found = [
        f"route to {network} is {routes.get(network, 'absent')}, expected {there}"
        for network, there in wanted.items()
        if routes.get(network) != there
    ]
    if not node:
        return found
    settings = {
        "/proc/sys/net/ipv4/ip_forward": "1",
        f"/proc/sys/net/ipv4/conf/{interface}/proxy_arp": "1",
        f"/proc/sys/net/ipv4/neigh/{interface}/proxy_delay": "0",
        "/proc/sys/net/bridge/bridge-nf-call-iptables": "1",
    }
    for path, value in settings.items():
        now = _kernel(path)
        if now != value and not (now is None and "/bridge/" in path):
            found.append(f"{path.removeprefix('/proc/sys/')} is {now}, expected {value}")
    if not _masqueraded(pods):
        found.append(f"no rule masquerades {pods}")
    return found


def has_address(address: str) -> bool:
    """Whether an interface of this host carries an IPv4 address.

    Raises:
        CommandExecutionError: ``ip`` does not say.

    Example:
        ``salt node1 indigo_network.has_address 169.254.20.10``
    """
    command = ["ip", "-4", "-oneline", "address", "show", "to", f"{address}/32"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandExecutionError(f"{' '.join(command)} failed: {error}") from error
    if done.returncode:
        raise CommandExecutionError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return bool(done.stdout.strip())


def subnet(config: Mapping[str, Any]) -> str | None:
    """The node's pods, as a CNI configuration that containerd wrote says.

    >>> subnet({"plugins": [{"ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}]]}}]})
    '10.244.1.0/24'
    """
    for plugin in config.get("plugins", []):
        for span in plugin.get("ipam", {}).get("ranges", []):
            for one in span:
                if "subnet" in one:
                    return str(one["subnet"])
    return None


def _filled(template: str, pods: str) -> str:
    return Path(template).read_text(encoding="utf-8").replace("{{.PodCIDR}}", pods)


def cni(config: str, template: str) -> str:
    """How the CNI configuration that containerd wrote compares with today's template.

    containerd writes it once, and leaves it alone as long as it can be loaded
    (``internal/cri/server/update_runtime_config.go``).

    Args:
        config: Path of the file that containerd writes.
        template: Path of the template.

    Returns:
        ``current``, ``differs``, ``damaged`` or ``absent``.

    Raises:
        CommandExecutionError: There is no template.

    Example:
        ``salt node1 indigo_network.cni /etc/cni/net.d/10-containerd-net.conflist
        /etc/containerd/cni-template.conflist``
    """
    try:
        written = json.loads(Path(config).read_text(encoding="utf-8"))
        pods = subnet(written)
    except FileNotFoundError:
        return "absent"
    except (ValueError, AttributeError, TypeError):
        return "damaged"
    if pods is None:
        return "damaged"
    try:
        return "current" if json.loads(_filled(template, pods)) == written else "differs"
    except OSError as error:
        raise CommandExecutionError(
            f"{template} cannot be read: {error.strerror}; apply network.routes first"
        ) from error


def refill(config: str, template: str) -> str:
    """Write the CNI configuration anew, with the subnet that it has; containerd takes it up.

    Returns:
        The subnet.

    Raises:
        CommandExecutionError: The present file names no subnet.
    """
    pods = subnet(json.loads(Path(config).read_text(encoding="utf-8")))
    if pods is None:
        raise CommandExecutionError(f"{config} names no subnet; expected what containerd wrote")
    # containerd watches the folder and reads names that end in .conflist.
    fresh = Path(f"{config}.new")
    fresh.write_text(_filled(template, pods), encoding="utf-8")
    fresh.replace(config)
    return pods
