"""Packages of the operating system: which are lacking, and which a broken-off run left half done.

Salt's ``pkg.installed`` fetches the package index also under ``test=True`` when a package is
missing (salt/modules/aptpkg.py, ``latest_version``), which changes the host. And apt refuses all
work after a host lost its power while dpkg ran, until ``dpkg --configure -a`` was run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

DPKG = Path("/var/lib/dpkg")

#: States in which dpkg leaves nothing to be done.
SETTLED = {"installed", "not-installed", "config-files"}


def __virtual__() -> str:
    return "indigo_package"


def states(text: str) -> dict[str, str]:
    """Package to its state, from dpkg's status file.

    >>> states("Package: a\\nStatus: install ok installed\\nVersion: 1\\n\\n"
    ...        "Package: b\\nStatus: install ok half-configured\\n")
    {'a': 'installed', 'b': 'half-configured'}
    """
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("Package: "):
            name = line[9:].strip()
        elif line.startswith("Status: "):
            state = line.rsplit(" ", 1)[-1]
            # With several architectures of one package the installed one counts.
            if found.get(name) != "installed":
                found[name] = state
    return found


def _known() -> Mapping[str, str] | None:
    """The states of all packages, or None where dpkg is not the system's package manager."""
    try:
        return states((DPKG / "status").read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None


def _busy() -> bool:
    """Whether another program is using dpkg right now."""
    try:
        with (DPKG / "lock").open("r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return True
        raise
    return False


def lacking(names: Iterable[str]) -> list[str]:
    """Which of these packages are not installed, sorted.

    Args:
        names: Names of packages, without versions.

    Returns:
        Those that are missing or not installed to the end.

    Example:
        ``salt lb1 indigo_package.lacking '[haproxy, keepalived]'``
    """
    known = _known()
    if known is None:
        return sorted(set(names) - set(__salt__["pkg.list_pkgs"]()))
    return sorted(name for name in set(names) if known.get(name) != "installed")


def unfinished() -> list[str]:
    """What a run of dpkg that was broken off left to do; nothing while dpkg is at work.

    Returns:
        A text each, such as ``haproxy is half-configured``; empty where dpkg is not used.

    Example:
        ``salt '*' indigo_package.unfinished``
    """
    known = _known()
    if known is None:
        return []
    found = [f"{name} is {state}" for name, state in sorted(known.items()) if state not in SETTLED]
    # dpkg's journal: what it had not yet written into its status file.
    updates = DPKG / "updates"
    if updates.is_dir() and any(entry.name.isdigit() for entry in updates.iterdir()):
        found.append("dpkg's journal is not written back")
    return [] if found and _busy() else found


def finish() -> None:
    """Bring a run of dpkg that was broken off to its end.

    Raises:
        CommandExecutionError: Something stays unfinished; the message has dpkg's own words.

    Example:
        ``salt lb1 indigo_package.finish``
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    said = ""
    for command in (
        ["dpkg", "--configure", "-a", "--force-confdef", "--force-confold"],
        # What was being unpacked has to be unpacked again.
        ["apt-get", "-q", "-y", "--fix-broken", "install"],
    ):
        if not unfinished():
            return
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=600, check=False
        )
        said = (done.stderr or done.stdout).strip()
    if left := unfinished():
        raise CommandExecutionError(
            f"a run of dpkg was broken off and cannot be finished: {'; '.join(left)}. "
            f"Run `dpkg --configure -a` and `apt-get --fix-broken install` there. {said[-500:]}"
        )
