"""Packages of the operating system, installed in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError


def __virtual__() -> str:
    return "indigo_package"


def installed(
    name: str, pkgs: Iterable[str], install_recommends: bool | None = None
) -> dict[str, Any]:
    """These packages are installed, and no installation is left half done.

    The package index is fetched only when something is to be installed.

    Args:
        name: A plain English sentence.
        pkgs: Names of packages, without versions.
        install_recommends: apt only: whether recommended packages come as well.

    Returns:
        A state's result; ``changes`` as ``pkg.install`` has it: package to old and new version.

    Example:

    .. code-block:: yaml

        The host's packages are installed:
          indigo_package.installed:
            - pkgs: [haproxy, keepalived]
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    wanted = sorted(set(pkgs))
    try:
        broken = __salt__["indigo_package.unfinished"]()
        missing = __salt__["indigo_package.lacking"](wanted)
        if not broken and not missing:
            ret["comment"] = f"{len(wanted)} packages are installed"
            return ret
        if __opts__["test"]:
            would = [f"{', '.join(missing)} would be installed"] if missing else []
            would += [f"{one}: that would be finished" for one in broken]
            ret["result"] = None
            ret["comment"] = "; ".join(would)
            ret["changes"] = {one: {"old": "", "new": "installed"} for one in missing}
            return ret
        if broken:
            __salt__["indigo_package.finish"]()
            ret["changes"] = {"an installation that was broken off": {"old": broken, "new": "done"}}
        if missing := __salt__["indigo_package.lacking"](wanted):
            options = (
                {} if install_recommends is None else {"install_recommends": install_recommends}
            )
            ret["changes"] |= __salt__["pkg.install"](pkgs=missing, refresh=True, **options)
        if missing := __salt__["indigo_package.lacking"](wanted):
            raise CommandExecutionError(
                f"{', '.join(missing)}: still missing after the installation; see "
                "/var/log/apt/term.log or the package manager's own log there"
            )
    except CommandExecutionError as error:
        ret.update(result=False, comment=f"Packages cannot be installed: {error}")
        return ret
    ret["comment"] = "Packages were installed"
    return ret


def gone(name: str, pkgs: Iterable[str], unit: str) -> dict[str, Any]:
    """Packages that came with a unit file of ours are gone, with their settings.

    Without that file they are somebody else's, and stay. So remove the file after this state.

    Args:
        name: A plain English sentence.
        pkgs: Names of packages, without versions.
        unit: Path of the unit file.

    Returns:
        A state's result; ``changes`` as ``pkg.purge`` has it, or package to old and new version.

    Example:

    .. code-block:: yaml

        The Zabbix agent is gone:
          indigo_package.gone:
            - unit: /etc/systemd/system/zabbix-agent.service
            - pkgs: [zabbix-agent]
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if not Path(unit).exists():
        return {**ret, "comment": f"{unit} is not there"}
    wanted = sorted(set(pkgs))
    there = sorted(set(wanted) - set(__salt__["indigo_package.lacking"](wanted)))
    if not there:
        return {**ret, "comment": "None of them is installed"}
    if __opts__["test"]:
        would = {one: {"old": "installed", "new": ""} for one in there}
        comment = f"{', '.join(there)} would be removed"
        return {**ret, "result": None, "changes": would, "comment": comment}
    try:
        purge = __salt__["pkg.purge" if "pkg.purge" in __salt__ else "pkg.remove"]
        ret["changes"] = purge(pkgs=there) or {}
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": f"Packages cannot be removed: {error}"}
    return {**ret, "comment": f"{', '.join(there)} was removed"}
