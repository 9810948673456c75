"""Packages of the operating system, installed in one transaction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError


def __virtual__() -> str:
    return "indigo_package"


def installed(
    name: str,
    pkgs: Iterable[str],
    install_recommends: bool | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """These packages are installed, and no installation is left half done.

    The package index is fetched only when something is to be installed.

    Args:
        name: A plain English sentence.
        pkgs: Names of packages, without versions.
        install_recommends: apt only: whether recommended packages come as well.
        versions: Of those that are missing; what is there in another version stays, see
            :func:`exchanged`.

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
            exact = versions or {}
            chosen = [{one: exact[one]} if one in exact else one for one in missing]
            ret["changes"] |= __salt__["pkg.install"](pkgs=chosen, refresh=True, **options)
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


def fetched(name: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """Packages of declared versions are downloaded, beside what is installed.

    Args:
        name: A plain English sentence.
        versions: Package to its version.

    Returns:
        A state's result; ``changes`` names what was not installed in its version.

    Example:

    .. code-block:: yaml

        The declared packages are fetched:
          indigo_package.fetched:
            - versions: {haproxy: 2.6.12-1+deb12u4}
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = __salt__["indigo_package.differing"](versions)
        if not found:
            return {**ret, "comment": "All are installed in their declared versions"}
        if __opts__["test"]:
            return {**ret, "result": None, "comment": f"{_told(found)}: would be downloaded"}
        __salt__["indigo_package.fetch"](versions)
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    ret["changes"] = {one: {"fetched": change["new"]} for one, change in found.items()}
    return {**ret, "comment": f"{_told(found)}: downloaded"}


def exchanged(
    name: str,
    versions: Mapping[str, str],
    unit: str,
    files: Iterable[str] = (),
    tier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Packages are installed in their declared versions, and a unit runs what they brought.

    Where the unit runs, that happens in its turn, see ``indigo_rolling.restart``: the virtual
    address is given away before the first package is touched, for packages restart their daemons
    when they please. Everything is downloaded before that.

    Args:
        name: Path of the program that the unit runs, named as its package: later states learn from
            it, in test mode, that the program would be another one.
        versions: Package to its version; none is fine.
        unit: What restarts.
        files: What it reads at its start, the program with it; see ``indigo_service.running``.
        tier: Members on other hosts; None where there are none.

    Returns:
        A state's result; ``changes``: package to old and new version.

    Example:

    .. code-block:: yaml

        The declared packages are in place:
          indigo_package.exchanged:
            - name: /usr/sbin/haproxy
            - versions: {haproxy: 2.6.12-1+deb12u4}
            - unit: haproxy
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    files = list(files)
    try:
        found = __salt__["indigo_package.differing"](versions)
        if not found:
            told = "are of their declared versions" if versions else "are the distribution's"
            return {**ret, "comment": f"The packages {told}"}
        if __opts__["test"]:
            if os.path.basename(name) not in found:
                ret["name"] = unit  # the program stays
            told = f"{_told(found)}: would be exchanged, and {unit} restarted"
            if tier:
                told += f", {__salt__['indigo_rolling.describe'](tier)}"
            return {**ret, "result": None, "changes": found, "comment": told}
        __salt__["indigo_package.fetch"](versions)
        if not __salt__["indigo_service.active"](unit):
            done = {"ok": True, "comment": f"{unit} does not run"}
            __salt__["indigo_package.exchange"](versions)
        elif tier:
            done = __salt__["indigo_rolling.restart"](unit, files, tier, packages=dict(versions))
        else:
            __salt__["indigo_package.exchange"](versions)
            __salt__["indigo_service.restart"](unit, files)
            done = {"ok": True, "comment": f"{unit} was restarted"}
        left = __salt__["indigo_package.differing"](versions)
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    ret["changes"] = {one: change for one, change in found.items() if one not in left}
    return {**ret, "result": done["ok"], "comment": f"{_told(found)}: {done['comment']}"}


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


def _told(found: Mapping[str, Mapping[str, str]]) -> str:
    return ", ".join(
        f"{one} {change['old'] or 'none'} to {change['new']}" for one, change in found.items()
    )
