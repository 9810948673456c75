"""What a node leaves behind: containers, mounts, links and packet filter rules.

Stopping containerd does not stop containers, and removing folders below mounts would remove what
is mounted there. This module finds what is left and takes it away in the order in which it can go.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")

#: Below it containerd's CRI has what belongs to each pod's sandbox.
SANDBOXES = Path("/var/lib/containerd")

#: Cgroups that kubelet makes for pods, by its cgroup driver.
POD_CGROUPS = ("kubepods", "kubepods.slice")

#: Folders below which a node's mounts lie.
MOUNT_ROOTS = ("/run/containerd", "/run/netns/cni-", "/var/lib/containerd", "/var/lib/kubelet")

#: Links that the pod networks make on a node.
LINKS = ("cni0", "flannel.1")

#: Chains and rules of kubelet, kube-proxy, the CNI plugins and flannel.
_RULES = re.compile(r"\b(KUBE|CNI|FLANNEL)-")


def __virtual__() -> str:
    return "indigo_node"


def mounts(mountinfo: str, roots: Iterable[str] = MOUNT_ROOTS) -> list[str]:
    """Mount points below the given roots, the deepest first; a root itself stays.

    Args:
        mountinfo: Text of ``/proc/self/mountinfo``.
        roots: Folders, or beginnings of names.

    Example:
        >>> mounts("1 2 0:3 / /var/lib/kubelet/pods/x rw - tmpfs tmpfs rw\\n"
        ...        "1 2 0:3 / /var/lib/kubelet rw - ext4 /dev/x rw\\n")
        ['/var/lib/kubelet/pods/x']
    """
    points = {
        re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4])
        for line in mountinfo.splitlines()
        if len(line.split()) > 4
    }
    below = [
        point
        for point in points
        for root in roots
        if point.startswith(root if root.endswith("-") else f"{root}/")
    ]
    return sorted(below, key=lambda point: (-point.count("/"), point))


def mounted(folder: str) -> list[str]:
    """Mount points below a folder, the deepest first.

    Example:
        ``salt node3 indigo_node.mounted /var/lib/kubelet``
    """
    return mounts((PROC / "self/mountinfo").read_text(encoding="utf-8"), [folder])


def users(folder: str) -> list[str]:
    """Where pods on this host have a folder of it as a local volume.

    Example:
        ``salt node3 indigo_node.users /var/lib/indigo-zabbix``
    """
    try:
        wanted = os.stat(folder)
    except FileNotFoundError:
        return []
    found = []
    for point in mounted("/var/lib/kubelet/pods"):
        try:
            if os.path.samestat(os.stat(point), wanted):
                found.append(point)
        except OSError:  # it went meanwhile
            continue
    return found


def naming(server: str) -> list[str]:
    """Sandboxes of running pods that were told to ask a DNS server.

    kubelet tells it once, when it makes the sandbox; containerd keeps that in a file beside it.

    Args:
        server: An IPv4 address.

    Example:
        ``salt node3 indigo_node.naming 169.254.20.10``
    """
    found = []
    for path in SANDBOXES.glob("*/sandboxes/*/resolv.conf"):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:  # it went meanwhile
            continue
        if ["nameserver", server] in [line.split() for line in lines]:
            found.append(path.parent.name)
    # A pod that ended keeps the file until it is deleted, but has no shim.
    return sorted(set(found) & set(_shims().values())) if found else []


def without_rules(saved: str) -> str:
    """Output of ``iptables-save`` without what Kubernetes and its networks put there.

    >>> print(without_rules("*nat\\n:KUBE-SVC-X - [0:0]\\n-A INPUT -j KUBE-X\\n-A INPUT -j Y\\n"))
    *nat
    -A INPUT -j Y
    <BLANKLINE>
    """
    kept = [line for line in saved.splitlines() if not _RULES.search(line)]
    return "\n".join(kept) + "\n"


def _pids() -> set[int]:
    """Processes of pods, and of the shims that hold them."""
    found: set[int] = set()
    # Version 1 has one hierarchy for each controller, version 2 has one for all.
    for base in [CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir())]:
        for name in POD_CGROUPS:
            for procs in (base / name).rglob("cgroup.procs"):
                found.update(int(pid) for pid in procs.read_text(encoding="ascii").split())
            own = base / name / "cgroup.procs"
            if own.exists():
                found.update(int(pid) for pid in own.read_text(encoding="ascii").split())
    return (found | set(_shims())) - {0, os.getpid()}


def _shims() -> dict[int, str]:
    """Processes that hold pods, and the sandbox of each."""
    found = {}
    for path in PROC.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"containerd-shim" in words[0] and b"k8s.io" in words:
            place = words.index(b"-id") + 1 if b"-id" in words else len(words)
            found[int(path.parent.name)] = b"".join(words[place : place + 1]).decode()
    return found


def _run(*command: str, stdin: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        return ""
    except subprocess.TimeoutExpired as error:
        raise CommandExecutionError(f"{' '.join(command)} does not end: {error}") from error
    if done.returncode:
        raise CommandExecutionError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def _saved(family: str) -> str:
    return _run(f"{family}-save")


def leftovers() -> dict[str, Any]:
    """What of a node is on this host now.

    Returns:
        ``processes`` (number), ``mounts``, ``links`` and ``rules`` (iptables families that have
        some); keys without anything are left out.

    Example:
        ``salt node3 indigo_node.leftovers``
    """
    found: dict[str, Any] = {
        "processes": len(_pids()),
        "mounts": mounts((PROC / "self/mountinfo").read_text(encoding="utf-8")),
        "links": [link for link in LINKS if Path("/sys/class/net", link).exists()],
        "rules": [one for one in ("iptables", "ip6tables") if _RULES.search(_saved(one))],
    }
    return {key: value for key, value in found.items() if value}


def clear(timeout: float = 20) -> dict[str, Any]:
    """End all pods and take away what they and their networks left; kubelet must not run.

    Args:
        timeout: Seconds until processes that were killed must be gone.

    Returns:
        What was there before, as :func:`leftovers` has it.

    Raises:
        CommandExecutionError: Something cannot be taken away; the message says what.

    Example:
        ``salt node3 indigo_node.clear``
    """
    before = leftovers()
    end = time.monotonic() + timeout
    while pids := _pids():
        if time.monotonic() > end:
            raise CommandExecutionError(
                f"processes of pods do not end: {sorted(pids)[:10]}; look at: ps -o pid,stat,cmd"
            )
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    for point in mounts((PROC / "self/mountinfo").read_text(encoding="utf-8")):
        _run("umount", "--lazy", point)
        if point.startswith("/run/netns/"):
            Path(point).unlink(missing_ok=True)
    for link in before.get("links", []):
        _run("ip", "link", "delete", link)
    for family in before.get("rules", []):
        _run(f"{family}-restore", stdin=without_rules(_saved(family)))
    return before
