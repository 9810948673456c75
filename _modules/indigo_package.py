"""Packages of the operating system: which are lacking, and which a broken-off run left half done.

Salt's ``pkg.installed`` fetches the package index also under ``test=True`` when a package is
missing (salt/modules/aptpkg.py, ``latest_version``), which changes the host. And apt refuses all
work after a host lost its power while dpkg ran, until ``dpkg --configure -a`` was run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
    return {name: state for name, (state, _) in _read(text).items()}


def versions(text: str) -> dict[str, str]:
    """Installed package to its version, from dpkg's status file.

    >>> versions("Package: a\\nStatus: install ok installed\\nVersion: 1:2-3\\n\\n"
    ...          "Package: b\\nStatus: deinstall ok config-files\\nVersion: 1\\n")
    {'a': '1:2-3'}
    """
    return {name: version for name, (state, version) in _read(text).items() if state == "installed"}


def _read(text: str) -> dict[str, tuple[str, str]]:
    """Package to its state and version."""
    found: dict[str, tuple[str, str]] = {}
    name = state = ""
    counts = False
    for line in text.splitlines():
        if line.startswith("Package: "):
            name = line[9:].strip()
        elif line.startswith("Status: "):
            state = line.rsplit(" ", 1)[-1]
            # With several architectures of one package the installed one counts.
            counts = found.get(name, ("", ""))[0] != "installed"
            if counts:
                found[name] = (state, "")
        elif line.startswith("Version: ") and counts and name in found:
            found[name] = (state, line[9:].strip())
    return found


def _status() -> str | None:
    """The status file of dpkg, or None where that is not the system's package manager."""
    try:
        return (DPKG / "status").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _known() -> Mapping[str, str] | None:
    """The states of all packages, or None where dpkg is not the system's package manager."""
    text = _status()
    return None if text is None else states(text)


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


def differing(declared: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Packages of another version than the declared one.

    Args:
        declared: Package to its version.

    Returns:
        Package to ``old`` and ``new`` version; ``old`` is empty where it is not installed.

    Example:
        ``salt lb1 indigo_package.differing '{haproxy: 2.6.12-1+deb12u4}'``
    """
    if not declared:
        return {}
    text = _status()
    known = __salt__["pkg.list_pkgs"]() if text is None else versions(text)
    return {
        name: {"old": str(known.get(name, "")), "new": version}
        for name, version in sorted(declared.items())
        if known.get(name) != version
    }


def fetch(declared: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Download packages of declared versions, with what they need; installs nothing.

    Args:
        declared: Package to its version.

    Returns:
        What :func:`differing` says: that is what was downloaded.

    Raises:
        CommandExecutionError: A version cannot be had; the key in cluster.yaml is named.

    Example:
        ``salt lb1 indigo_package.fetch '{haproxy: 2.6.12-1+deb12u4}'``
    """
    found = differing(declared)
    if shutil.which("dnf5"):
        # Salt 3008.3 has no way to only download with it, and would install at once
        # (salt/modules/yumpkg.py, install): it is downloaded as it is exchanged.
        return found
    refresh = True
    # One by one: Salt downloads the last and installs the others where some are newer, some older.
    for name, change in found.items():
        _install({name: change["new"]}, refresh=refresh, downloadonly=True)
        refresh = False
    return found


def exchange(declared: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Install packages in their declared versions, newer or older, in place of others.

    Their own scripts may restart what runs; whoever calls this holds what keeps others away.

    Args:
        declared: Package to its version.

    Returns:
        What changed: package to ``old`` and ``new`` version.

    Raises:
        CommandExecutionError: A version cannot be had, or is not there afterwards.

    Example:
        ``__salt__["indigo_package.exchange"]({"haproxy": "2.6.12-1+deb12u4"})``
    """
    found = differing(declared)
    if not found:
        return {}
    _install({name: change["new"] for name, change in found.items()}, refresh=False)
    if left := differing(declared):
        told = ", ".join(
            f"{name} is {change['old'] or 'not installed'}, declared is {change['new']}"
            for name, change in left.items()
        )
        raise CommandExecutionError(f"{told}; see the log of the host's package manager")
    return found


def _install(packages: Mapping[str, str], **options: Any) -> None:
    if _status() is not None:
        options["install_recommends"] = False
    try:
        __salt__["pkg.install"](pkgs=[{name: v} for name, v in packages.items()], **options)
    except CommandExecutionError as error:
        keys = ", ".join(f"packages.{name}: {version}" for name, version in packages.items())
        raise CommandExecutionError(
            f"{keys} cannot be had: {' '.join(str(error).split())}. Expected a version that this "
            f"host's repositories have; see there: "
            + ("apt-cache policy " if _status() is not None else "dnf list --showduplicates ")
            + " ".join(packages)
        ) from error


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
