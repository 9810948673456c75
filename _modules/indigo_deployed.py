"""Whether a host is still as the last successful deploy left it.

A deploy runs its states only on hosts that are not, so that what a change costs depends on the
hosts that it concerns and not on the size of the cluster. The record is a note of the host about
itself: it goes with its disk, and a host without one is deployed in full.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

#: Where the record lies. Runtime data: it is not wanted in a backup of the host.
RECORD = "/var/lib/indigo/deployed.json"

#: What the states of this project write. Not /etc/cni/net.d, which containerd writes, nor the
#: authorities' folder, where every signature leaves a trace.
FOLDERS = (
    "/etc/containerd",
    "/etc/etcd",
    "/etc/firewalld/policies",
    "/etc/haproxy",
    "/etc/indigo/firewall",
    "/etc/keepalived",
    "/etc/kubernetes",
    "/etc/sysctl.d",
    "/etc/systemd/system",
    "/opt/indigo",
    "/usr/local/lib/indigo",
)

DAY = 86400


def __virtual__() -> str:
    return "indigo_deployed"


def differs() -> str:
    """Why this host is not as the last successful deploy left it; empty when it is.

    Looks at the pillar, the modules and the tree that it was deployed with, at every file below
    :data:`FOLDERS`, at the units of its roles, and at certificates that are due for renewal.
    Changes nothing, and reads no file's content but the modules'.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_deployed.differs
    """
    try:
        record = json.loads(Path(RECORD).read_text("utf-8"))
    except FileNotFoundError:
        return "it was never deployed"
    except (OSError, ValueError):
        return f"{RECORD} cannot be read"
    if not isinstance(record, Mapping):
        return f"{RECORD} cannot be read"
    files = dict(entries(FOLDERS))
    return difference(record, _inputs(), files, time.time()) or _stopped() or _unguarded()


def difference(
    record: Mapping[str, Any], inputs: str, files: Mapping[str, list[int]], now: float
) -> str:
    """Compare a record with what is there. Pure.

    Args:
        record: ``inputs``, ``files`` and ``due`` as :func:`record` wrote them.
        inputs: Fingerprint of what the host is deployed from now.
        files: Path to size, mode, owner, group and time of change (ns).
        now: Unix seconds.

    Returns:
        A clause that says what differs, or an empty string.

    Example:
        >>> difference({"inputs": "a", "files": {}, "due": None}, "b", {}, 0)
        'its declaration or the tree has changed'
        >>> difference({"inputs": "a", "files": {"/f": [1]}, "due": None}, "a", {"/f": [2]}, 0)
        '/f was changed'
    """
    if record.get("inputs") != inputs:
        return "its declaration or the tree has changed"
    before = record.get("files")
    if not isinstance(before, Mapping):
        return "its record is incomplete"
    for path in sorted({*before, *files}):
        if path not in files:
            return f"{path} is gone"
        if path not in before:
            return f"{path} is new"
        if list(before[path]) != list(files[path]):
            return f"{path} was changed"
    due = record.get("due")
    if due is not None and now >= due:
        return "a certificate is due for renewal"
    return ""


def entries(folders: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    """Every file and link below some folders, with what tells that it was touched.

    Yields:
        Path, and size, mode, owner, group and time of change in ns, which no program can set back.
    """
    for folder in folders:
        for root, folders_below, names in os.walk(folder):
            links = [name for name in folders_below if os.path.islink(os.path.join(root, name))]
            for name in [*names, *links]:
                path = os.path.join(root, name)
                try:
                    found = os.lstat(path)
                except FileNotFoundError:
                    continue
                yield (
                    path,
                    [found.st_size, found.st_mode, found.st_uid, found.st_gid, found.st_ctime_ns],
                )


def record() -> None:
    """Note that this host is deployed, as it is now.

    Raises:
        CommandExecutionError: The note cannot be written.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_deployed.record
    """
    text = json.dumps({"inputs": _inputs(), "files": dict(entries(FOLDERS)), "due": _due()})
    folder = os.path.dirname(RECORD)
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        descriptor, made = tempfile.mkstemp(prefix=".deployed-", dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, RECORD)
    except OSError as err:
        raise CommandExecutionError(
            f"{RECORD} cannot be written: {err}; free space there and run indigo.deploy again"
        ) from err


def forget() -> bool:
    """Remove the record, so that the next deploy runs every state here; whether there was one.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_deployed.forget
    """
    try:
        os.unlink(RECORD)
    except FileNotFoundError:
        return False
    return True


def due(rows: Iterable[Mapping[str, Any]], before: Mapping[str, int], now: float) -> float | None:
    """When the first certificate is due for renewal, in Unix seconds; None without certificates.

    Args:
        rows: ``path`` and ``days_left`` of certificates.
        before: By path, how many days before its end a certificate is renewed.

    Example:
        >>> due([{"path": "/a", "days_left": 90}], {"/a": 60}, now=0) == 30 * 86400
        True
    """
    days = [
        row["days_left"] - before[row["path"]]
        for row in rows
        if row["days_left"] is not None and row["path"] in before
    ]
    return now + min(days) * DAY if days else None


def _due() -> float | None:
    pki = __pillar__.get("indigo", {}).get("pki", {})
    before = {row["path"]: row["renew_before"] for row in pki.get("certificates", [])}
    before |= {row["certificate"]: row["renew_before"] for row in pki.get("held", [])}
    return due(__salt__["indigo_pki.status"](), before, time.time())


def _inputs() -> str:
    prints = [__salt__["indigo_preflight.pillar_digest"](), __salt__["indigo_preflight.code"]()]
    return hashlib.sha256("\n".join(prints).encode()).hexdigest()


def _stopped() -> str:
    """The first unit of this host's roles that does not run."""
    roles = __pillar__.get("indigo", {}).get("roles", [])
    units = __salt__["indigo_status.units"](roles)
    if not units:
        return ""
    done = subprocess.run(
        ["systemctl", "is-active", *units], capture_output=True, text=True, timeout=30, check=False
    )
    answers = zip(units, done.stdout.split(), strict=False)
    return next((f"{unit} is {state}" for unit, state in answers if state != "active"), "")


def _unguarded() -> str:
    """What of the packet filter is not in the kernel, where there is to be one."""
    if __pillar__.get("indigo", {}).get("firewall", {}).get("kind") != "nftables":
        return ""
    return "; ".join(__salt__["indigo_firewall.differences"]())
