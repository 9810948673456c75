"""States of a host's kernel settings, on disk and in the running kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc/sys")


def __virtual__() -> str:
    return "indigo_host"


def _proc(key: str) -> Path:
    """File of a kernel setting.

    A dot inside a name, as in the VLAN ``eth0.5``, is written as a slash (``sysctl(8)``).
    """
    return PROC / key.replace(".", "\0").replace("/", ".").replace("\0", "/")


def _live(key: str) -> str | None:
    try:
        return " ".join(_proc(key).read_text(encoding="utf-8").split())
    except OSError:
        return None


def _apply(settings: Mapping[str, str]) -> list[str]:
    """Write settings into the running kernel; a problem for each that does not take."""
    problems = []
    for key, value in settings.items():
        try:
            _proc(key).write_text(f"{value}\n", encoding="utf-8")
        except OSError as error:
            problems.append(
                f"{key} cannot be set to {value}, it is {_live(key)}: {error.strerror}; "
                "is the kernel module that has it loaded, and may this host change it?"
            )
    return problems


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o644)
    os.replace(partial, path)


def sysctl(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Kernel settings hold now and after a boot.

    Args:
        name: File in ``/etc/sysctl.d`` for the settings; it holds nothing else.
        settings: ``{key: value}`` with keys as ``sysctl(8)`` writes them.

    Returns:
        A state result; ``changes`` has the file and each setting with its old and new value.

    Example:
        .. code-block:: yaml

            An address of another host can be listened on:
              indigo_host.sysctl:
                - name: /etc/sysctl.d/90-indigo-lb.conf
                - settings: {net.ipv4.ip_nonlocal_bind: '1'}
    """
    wanted = {key: " ".join(str(value).split()) for key, value in settings.items()}
    text = "# Managed by Salt.\n" + "".join(f"{key} = {value}\n" for key, value in wanted.items())
    path = Path(name)
    changes: dict[str, Any] = {
        key: {"old": _live(key), "new": value}
        for key, value in wanted.items()
        if _live(key) != value
    }
    differing = {key: wanted[key] for key in changes}
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        changes[name] = "written"
    ret: dict[str, Any] = {"name": name, "result": True, "changes": changes, "comment": ""}
    if not changes:
        return {**ret, "comment": f"The settings of {name} hold"}
    if __opts__.get("test"):
        return {**ret, "result": None, "comment": f"{', '.join(changes)} would be changed"}
    if name in changes:
        _write(path, text)
    if problems := _apply(differing):
        failed = {key for key in differing if _live(key) != wanted[key]}
        kept = {key: value for key, value in changes.items() if key not in failed}
        return {**ret, "result": False, "changes": kept, "comment": ". ".join(problems)}
    return {**ret, "comment": f"{', '.join(changes)} changed"}


def sysctl_absent(name: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A file of kernel settings is gone, and the running kernel is set back.

    Args:
        name: The file in ``/etc/sysctl.d``.
        settings: ``{key: value}`` to go back to; kernels do not remember their defaults.

    Returns:
        A state result.

    Example:
        .. code-block:: yaml

            An address of another host cannot be listened on:
              indigo_host.sysctl_absent:
                - name: /etc/sysctl.d/90-indigo-lb.conf
                - settings: {net.ipv4.ip_nonlocal_bind: '0'}
    """
    path = Path(name)
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if not path.exists():
        return {**ret, "comment": f"{name} is not there"}
    ret["changes"] = {name: "removed"}
    if __opts__.get("test"):
        return {**ret, "result": None, "comment": f"{name} would be removed"}
    path.unlink()
    if problems := _apply({key: str(value) for key, value in (settings or {}).items()}):
        return {**ret, "result": False, "comment": ". ".join(problems)}
    return {**ret, "comment": f"{name} was removed"}
