"""Run a program of etcd's, or one that runs it, as the modules for backups and restores do.

Without a shell, with an environment of its own and a time limit: etcdctl reads certificates, and
where it asks, from the environment, so that nothing of this host's own settings gets in.

Sources: ``etcdctl --help`` of 3.4 to 3.6 (flags as ``ETCDCTL_…``).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

#: Seconds that a program may take where nothing else is said.
PATIENCE = 900


def __virtual__() -> str:
    return "indigo_tool"


def environment(etcd: Mapping[str, Any] | None = None, endpoints: str = "") -> dict[str, str]:
    """What a program finds in its environment.

    Args:
        etcd: Part of the view: paths ``ca``, ``cert`` and ``key``. None for other programs.
        endpoints: Client URLs, with commas.

    Example:
        >>> sorted(environment())
        ['PATH']
    """
    found = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
    if etcd is None:
        return found
    return {
        **found,
        "ETCDCTL_API": "3",
        "ETCDCTL_CACERT": etcd["ca"],
        "ETCDCTL_CERT": etcd["cert"],
        "ETCDCTL_KEY": etcd["key"],
        "ETCDCTL_ENDPOINTS": endpoints,
        "ETCDCTL_DIAL_TIMEOUT": "2s",
        # Go programs may use as many processors as they like, and beside etcd they must not.
        "GOMAXPROCS": "1",
    }


def told(stdout: str, stderr: str, retcode: int) -> str:
    """Why a program failed, in one line: etcdctl logs each of its attempts above its error.

    >>> told("", "Error: no such member" + chr(10) + "usage", 1)
    'Error: no such member'
    """
    errors, output = (
        [line for line in text.splitlines() if line.strip()] for text in (stderr, stdout)
    )
    named = [line for line in errors + output if line.startswith(("Error", "panic"))]
    wanted = named or errors[-1:] or output[-1:]
    return wanted[0][:300] if wanted else f"exit {retcode}"


def run(
    command: Sequence[str], environment: Mapping[str, str], timeout: float = PATIENCE
) -> dict[str, Any]:
    """Run a program to its end.

    Args:
        command: Program and arguments.
        environment: All of it; see :func:`environment`.
        timeout: Seconds.

    Returns:
        ``retcode``, ``stdout``, ``stderr`` and ``told``, why it failed in one line.

    Raises:
        CommandExecutionError: It cannot be started, or takes too long.
    """
    try:
        done = subprocess.run(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandExecutionError(f"{command[0]} failed: {error}") from error
    return {
        "retcode": done.returncode,
        "stdout": done.stdout,
        "stderr": done.stderr,
        "told": told(done.stdout, done.stderr, done.returncode),
    }
