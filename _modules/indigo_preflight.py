"""What a host says of itself before anything is changed on it.

The facts are compared on the Salt master with the declared cluster
(``indigo_model.host_problems``). Gathering them changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: Folders of this project's extension modules below a minion's ``extension_modules``.
KINDS = ("modules", "states")


def __virtual__() -> str:
    return "indigo_preflight"


def code_digest(folders: Iterable[str]) -> str:
    """Fingerprint of this project's extension modules in some folders.

    Args:
        folders: Folders of execution and state modules, in the order of :data:`KINDS`.

    Returns:
        SHA-256 in hex over the names and contents of the files ``indigo*.py``. The model, a
        package, is not among them: minions do not have it.

    CLI Example:

    .. code-block:: bash

        salt-call indigo_preflight.code_digest '[/srv/indigo/_modules, /srv/indigo/_states]'
    """
    total = hashlib.sha256()
    for kind, folder in zip(KINDS, folders, strict=True):
        root = Path(folder)
        for path in sorted(root.glob("indigo*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{kind}/{path.name} {content}\n".encode())
    return total.hexdigest()


def code() -> str:
    """Fingerprint of the extension modules that this minion has, see :func:`code_digest`.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_preflight.code
    """
    extmods = __opts__["extension_modules"]
    return code_digest(os.path.join(extmods, kind) for kind in KINDS)


def facts() -> dict[str, Any]:
    """What preflight compares with the declared cluster.

    Returns:
        ``code`` and ``pillar`` (fingerprints that tell whether this minion is up to date),
        ``differs`` (why it is not as the last deploy left it, empty when it is),
        ``interfaces`` (name to list of ``address/prefix``), ``init``, ``arch``, ``os``
        (family, name, major release), ``free_mb`` (folder to MiB), ``time`` (Unix seconds),
        ``taken`` (ports of its roles that foreign programs hold, see :func:`taken`),
        ``authorities`` (``indigo_pki.authorities``) and ``etcd`` (only on etcd hosts whose pillar
        is current).

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_preflight.facts
    """
    view = __pillar__.get("indigo", {})
    found: dict[str, Any] = {
        "code": code(),
        "pillar": pillar_digest(),
        "differs": __salt__["indigo_deployed.differs"](),
        "interfaces": {
            name: [
                f"{entry['address']}/{_prefix(entry['netmask'])}"
                for entry in data.get("inet", []) + data.get("secondary", [])
                if entry.get("netmask")
            ]
            for name, data in __salt__["network.interfaces"]().items()
        },
        "init": __grains__.get("init"),
        "arch": __grains__.get("osarch"),
        "os": [
            __grains__.get("os_family"),
            __grains__.get("os"),
            str(__grains__.get("osmajorrelease")),
        ],
        "free_mb": {folder: _free_mb(folder) for folder in ("/opt", "/var/lib")},
        "time": time.time(),
        "taken": taken(view.get("ports", [])),
    }
    if "etcd" in view.get("roles", []) and "indigo_etcd.facts" in __salt__:
        found["etcd"] = __salt__["indigo_etcd.facts"]()
    if "indigo_pki.authorities" in __salt__:
        found["authorities"] = __salt__["indigo_pki.authorities"]()
    return found


def taken(ports: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ports of this host's roles that a foreign program listens on.

    Args:
        ports: ``{"service", "program", "protocol", "port", "address"}`` each, as in the pillar;
            ``program`` is the path, or with a slash at its end the folder, of who may hold it.

    Returns:
        ``{"service", "protocol", "port", "address", "pid", "program"}`` each: where the foreign
        program listens, and which one it is (``pid`` 0 where this host does not show it).

    CLI Example:

    .. code-block:: bash

        salt-call indigo_preflight.taken "$(salt-call --out=json pillar.get indigo:ports)"
    """
    wanted = [
        # As the kernel names it: Fedora's /usr/sbin is a link to /usr/bin.
        {**port, "program": _real(port["program"])}
        for port in ports
        if isinstance(port, Mapping)
    ]
    hits = [
        (port, listener) for listener in _listeners() for port in wanted if _meet(port, listener)
    ]
    if not hits:
        return []
    ours = tuple({port["program"] for port in wanted})
    held = _holders({listener["inode"] for _, listener in hits}, ours)
    if any(listener["inode"] not in held for _, listener in hits):
        # Whoever is not found has gone meanwhile, or is out of this host's sight.
        still = {listener["inode"] for listener in _listeners()}
        hits = [hit for hit in hits if hit[1]["inode"] in held or hit[1]["inode"] in still]
    found = []
    for port, listener in hits:
        pid, program = held.get(listener["inode"], (0, ""))
        # A socket of the kernel itself, such as VXLAN's, belongs to no process.
        if program.startswith(port["program"]) or (not pid and port["protocol"] == "udp"):
            continue
        found.append(
            {
                "service": port["service"],
                "protocol": port["protocol"],
                "port": port["port"],
                "address": listener["address"],
                "pid": pid,
                "program": program,
            }
        )
    return found


def _real(path: str) -> str:
    """A path without links in it; a folder keeps the slash at its end."""
    return os.path.realpath(path) + ("/" if path.endswith("/") else "")


def _meet(port: Mapping[str, Any], listener: Mapping[str, Any]) -> bool:
    """Whether two cannot listen at once: the same port, and an address in common."""
    if (port["protocol"], port["port"]) != (listener["protocol"], listener["port"]):
        return False
    either = {port["address"], listener["address"]}
    return len(either) == 1 or any(ipaddress.ip_address(one).is_unspecified for one in either)


def _listeners(folder: str = "/proc/net") -> list[dict[str, Any]]:
    """Every socket that listens on this host, from the kernel's own tables."""
    found = []
    for protocol, states in (("tcp", ("0A",)), ("udp", ("07",))):
        for family in ("", "6"):
            try:
                text = Path(folder, protocol + family).read_text(encoding="ascii")
            except OSError:
                continue  # a kernel without IPv6
            for line in text.splitlines()[1:]:
                fields = line.split()
                if len(fields) < 10 or fields[3] not in states:
                    continue
                address, _, number = fields[1].partition(":")
                found.append(
                    {
                        "protocol": protocol,
                        "address": _address(address),
                        "port": int(number, 16),
                        "inode": fields[9],
                    }
                )
    return found


def _address(text: str) -> str:
    """An address as the kernel prints it: words of 32 bits in the host's byte order.

    >>> _address("0100007F"), _address("00000000000000000000000000000000")
    ('127.0.0.1', '::')
    """
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def _holders(
    inodes: set[str], likely: tuple[str, ...], folder: str = "/proc"
) -> dict[str, tuple[int, str]]:
    """Which process has which of some sockets: inode to process id and path of the program.

    Programs whose path begins as a likely one are looked at first: on a cluster that runs they
    have all, and the many files of other processes need not be read.
    """
    found: dict[str, tuple[int, str]] = {}
    programs = {}
    for name in os.listdir(folder):
        if name.isdigit():
            with contextlib.suppress(OSError):  # a thread of the kernel, or it has ended
                programs[name] = os.readlink(f"{folder}/{name}/exe")
    for name, program in sorted(programs.items(), key=lambda one: not one[1].startswith(likely)):
        with contextlib.suppress(OSError):
            for file in os.scandir(f"{folder}/{name}/fd"):
                target = os.readlink(file.path)
                if target.startswith("socket:[") and target[8:-1] in inodes:
                    found.setdefault(target[8:-1], (int(name), program))
        if len(found) == len(inodes):
            break
    return found


def pillar_digest() -> str:
    """Fingerprint of this minion's pillar, as far as it is this project's.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_preflight.pillar_digest
    """
    # The same canonical form as indigo_model.derive.digest, which the master compares with.
    ours = {
        key: __pillar__[key] for key in ("indigo", "x509_signing_policies") if key in __pillar__
    }
    canonical = json.dumps(ours, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _prefix(netmask: str) -> int:
    """Length of a dotted netmask: ``255.255.255.0`` is 24."""
    return sum(bin(int(part)).count("1") for part in netmask.split("."))


def _free_mb(folder: str) -> int:
    """Free MiB on the file system that holds a folder, or would hold it."""
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // 2**20
