"""The packet filter in front of the cluster's ports, as the kernel has it now.

systemd knows that ``indigo-firewall`` ran, not that its table is still there, or still the same:
``nft flush ruleset`` takes all tables away, whoever made them. This module looks at the kernel.

Source: ``nft(8)``, "Ruleset" and the option ``--stateless``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

NFT = "/usr/sbin/nft"
TABLE = ("inet", "indigo")

#: What the unit found in the kernel right after it had loaded its rules.
LOADED = Path("/run/indigo-firewall/loaded")


def __virtual__() -> str:
    return "indigo_firewall"


def _listing() -> tuple[str, str]:
    """The table as the kernel has it, and why it could not be read."""
    command = [NFT, "-s", "list", "table", *TABLE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "", f"{NFT} is not installed"
    except subprocess.TimeoutExpired:
        return "", f"{NFT} does not answer"
    return done.stdout, " ".join(done.stderr.split())


def differences() -> list[str]:
    """How the kernel's rules differ from those that were loaded last.

    Returns:
        One sentence a difference; none when they are the same.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_firewall.differences
    """
    try:
        wanted = LOADED.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ["no rules were loaded since the host started"]
    found, problem = _listing()
    if not found:
        return [f"the table {' '.join(TABLE)} is not in the kernel ({problem or 'no answer'})"]
    return [] if found == wanted else [f"the table {' '.join(TABLE)} was changed by hand"]


# firewalld reads files that end in .xml; a policy of another name waits to be forgotten.
_REMOVED = ".removed"


def policies(files: Iterable[str]) -> list[str]:
    """Those of some policies that firewalld may have loaded.

    Args:
        files: Paths below ``/etc/firewalld/policies``.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_firewall.policies '[/etc/firewalld/policies/indigo-ports.xml]'
    """
    return [path for path in files if os.path.exists(path) or os.path.exists(path + _REMOVED)]


def forget(files: Iterable[str]) -> None:
    """Have firewalld, if it runs, go on without some of its policies.

    Broken off at any moment, another call completes it: a policy's file goes last.

    Args:
        files: Paths below ``/etc/firewalld/policies``.

    Raises:
        CommandExecutionError: firewalld did not take up what is left.
    """
    found = policies(files)
    for path in found:
        if os.path.exists(path):
            os.replace(path, path + _REMOVED)
    if found and __salt__["indigo_service.active"]("firewalld"):
        __salt__["indigo_service.reload"]("firewalld")
    for path in found:
        os.unlink(path + _REMOVED)
