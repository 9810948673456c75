"""What ``salt-run indigo.preflight`` asks of a host: is it fit, and does it reach the others?

Beside the facts of ``indigo_preflight``, which every deploy compares, these take longer and change
nothing either; listeners that are there for the others to try end by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Kernel modules (or what is built in) that a role's programs need, by role.
KERNEL = {"node": ("overlay", "br_netfilter", "nf_conntrack"), "flannel": ("vxlan",)}

#: Settings that a role's states write.
SETTINGS = {
    "lb": ("net/ipv4/ip_nonlocal_bind",),
    "node": ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet"),
}

#: Services that do what a role's would, or undo it, while they run.
RIVALS: Mapping[str, tuple[str, ...]] = {
    "lb": ("ucarp", "pacemaker", "corosync"),
    "etcd": (),
    "master": ("k3s", "rke2-server", "snap.microk8s.daemon-kubelite"),
    "node": ("crio", "k3s", "k3s-agent", "rke2-agent", "snap.microk8s.daemon-kubelite"),
}
#: Packet filters with a will of their own.
FILTERS = ("firewalld", "ufw")


def __virtual__() -> str:
    return "indigo_survey"


def survey() -> dict[str, Any]:
    """What this host says of itself beyond the facts of every deploy; changes nothing.

    Returns:
        ``memory_mb``, ``swap`` (whether there is some), ``enforcing`` (whether SELinux is),
        ``kernel`` (release), ``lacks`` (kernel modules that cannot be had), ``fixed`` (settings
        that cannot be written), ``running`` (rival services and packet filters that run), ``name``
        (empty, or why the host's own name does not resolve), ``sources`` (place that serves
        artifacts to empty, or why not) and ``salt`` (version).

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_survey.survey
    """
    view = __pillar__.get("indigo", {})
    roles = view.get("roles", [])
    wanted = [name for role in roles for name in KERNEL.get(role, ())]
    if "node" in roles and view.get("networks", {}).get("kind") == "flannel":
        wanted += KERNEL["flannel"]
    memory = _memory()
    return {
        "memory_mb": memory.get("MemTotal", 0) // 1024,
        "swap": memory.get("SwapTotal", 0) > 0,
        "enforcing": _enforcing(),
        "kernel": platform.release(),
        "lacks": [name for name in wanted if not _kernel_has(name)],
        "fixed": [path for role in roles for path in SETTINGS.get(role, ()) if not _writable(path)],
        "running": _running({*FILTERS, *(unit for role in roles for unit in RIVALS.get(role, ()))}),
        "name": _resolves(socket.gethostname()),
        "sources": {
            f"{host}:{port}": _connects(host, port)
            for host, port in sorted(_places(view.get("artifacts", []), __grains__.get("osarch")))
        },
        "salt": __grains__.get("saltversion"),
    }


def _enforcing(path: str = "/sys/fs/selinux/enforce") -> bool:
    """Whether SELinux refuses what its policy does not allow; False where there is none."""
    try:
        return Path(path).read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def _memory(path: str = "/proc/meminfo") -> dict[str, int]:
    """Lines of the kernel's account of memory, in KiB."""
    found = {}
    for line in Path(path).read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return found


def _kernel_has(name: str) -> bool:
    """Whether the kernel has a feature, or a module to load it from; True where nobody can say."""
    if Path("/sys/module", name).exists():
        return True
    systems = Path("/proc/filesystems").read_text(encoding="ascii").split()
    if name in systems or not Path("/lib/modules", platform.release()).exists():
        return True
    try:
        done = subprocess.run(
            ["modprobe", "--dry-run", "--quiet", name], timeout=30, check=False, capture_output=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return done.returncode == 0


def _writable(path: str) -> bool:
    setting = Path("/proc/sys", path)
    return not setting.exists() or (
        os.access(setting, os.W_OK) and not os.statvfs(setting).f_flag & os.ST_RDONLY
    )


def _running(units: Iterable[str]) -> list[str]:
    names = sorted(units)
    command = ["systemctl", "is-active", *names]
    try:
        done = subprocess.run(command, timeout=30, check=False, capture_output=True, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return []
    states = zip(names, done.stdout.split(), strict=False)
    return [name for name, state in states if state == "active"]


def _resolves(name: str) -> str:
    try:
        socket.getaddrinfo(name, None, socket.AF_INET)
    except OSError as err:
        return str(err)
    return ""


def _places(artifacts: Iterable[Mapping[str, Any]], arch: str | None) -> set[tuple[str, int]]:
    """Servers from which a host would fetch: address and port.

    >>> _places([{"sources": {"amd64": {"source": "https://dl.k8s.io/x"}}}], "amd64")
    {('dl.k8s.io', 443)}
    """
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    found = set()
    for artifact in artifacts:
        source = artifact.get("sources", {}).get(names.get(arch or "", arch), {}).get("source", "")
        url = urlsplit(source)
        if url.scheme in ("http", "https") and url.hostname:
            found.add((url.hostname, url.port or {"http": 80, "https": 443}[url.scheme]))
    return found


def _connects(host: str, port: int, timeout: float = 5) -> str:
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError as err:
        return str(err) or type(err).__name__
    return ""


# --- between hosts ----------------------------------------------------------------------------

_LISTENER = """
import json, selectors, socket, sys, time
end, ports = time.monotonic() + float(sys.argv[1]), json.loads(sys.argv[2])
chosen, held = selectors.DefaultSelector(), []
for address, port in ports:
    one = socket.socket()
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port)); one.listen(64)
    except OSError:
        one.close()
    else:
        one.setblocking(False)
        chosen.register(one, selectors.EVENT_READ)
        held.append([address, port])
print(json.dumps(held), flush=True)
sys.stdout.close()
while held and (left := end - time.monotonic()) > 0:
    for key, _ in chosen.select(left):
        try:
            key.fileobj.accept()[0].close()
        except OSError:
            pass
"""


def listen(ports: Iterable[Iterable[Any]], seconds: float = 30) -> list[list[Any]]:
    """Listen for a while on ports that nobody listens on yet, so that others can try them.

    Args:
        ports: Address and port of each.
        seconds: How long; then the listener ends by itself.

    Returns:
        Address and port of those that it listens on; others are taken.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_survey.listen '[[10.0.0.41, 10250]]' seconds=10
    """
    wanted = json.dumps([list(port) for port in ports])
    process = subprocess.Popen(
        [sys.executable, "-c", _LISTENER, str(float(seconds)), wanted],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as out:
        return json.loads(out.readline() or b"[]")


def reach(targets: Iterable[Iterable[Any]], timeout: float = 3) -> list[list[Any]]:
    """Try to connect to others, to all of them at once.

    Args:
        targets: Address and port of each.
        timeout: Seconds without an answer after which a port counts as filtered.

    Returns:
        Address, port, and ``open``, ``refused``, ``filtered`` or what the kernel says.

    CLI Example:

    .. code-block:: bash

        salt etcd1 indigo_survey.reach '[[10.0.0.22, 2380]]'
    """
    found: list[list[Any]] = []
    busy: dict[int, tuple[socket.socket, str, int]] = {}
    poll = select.epoll()
    with contextlib.ExitStack() as stack:
        stack.callback(poll.close)
        for address, port in targets:
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            code = one.connect_ex((str(address), int(port)))
            if code and code != errno.EINPROGRESS:
                found.append([address, port, _state(code)])
                continue
            busy[one.fileno()] = (one, str(address), int(port))
            poll.register(one, select.EPOLLOUT)
        end = time.monotonic() + float(timeout)
        while busy and (left := end - time.monotonic()) > 0:
            for number, _ in poll.poll(left):
                poll.unregister(number)
                one, address, port = busy.pop(number)
                code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                found.append([address, port, _state(code)])
        found += [[address, port, "filtered"] for _, address, port in busy.values()]
    return sorted(found)


def _state(code: int) -> str:
    return {0: "open", errno.ECONNREFUSED: "refused"}.get(code) or os.strerror(code)


def listen_as(ports: Mapping[str, Iterable[Iterable[Any]]], seconds: float = 30) -> list[list[Any]]:
    """:func:`listen` on this host's part of what one job tells all hosts.

    Args:
        ports: By minion id, address and port of each.
        seconds: How long.
    """
    return listen(ports.get(__opts__["id"], ()), seconds)


def reach_as(targets: Mapping[str, Iterable[Iterable[Any]]], timeout: float = 3) -> list[list[Any]]:
    """:func:`reach` for this host's part of what one job tells all hosts.

    Args:
        targets: By minion id, address and port of each.
        timeout: Seconds without an answer after which a port counts as filtered.
    """
    return reach(targets.get(__opts__["id"], ()), timeout)
