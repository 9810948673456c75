"""Units that run with the configuration that is on disk.

``service.running`` with ``watch`` restarts a unit only in the very run that wrote the file: an
apply that is killed in between leaves the old configuration running for good. These states compare
the running process with the files, so that any later run brings the unit up to date.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

__running__: dict[str, Any] = {}

#: ``UnitFileState`` values that need no ``systemctl enable``.
ENABLED = ("enabled", "static", "alias", "indirect", "generated", "linked")


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_service.show" not in __salt__:
        return False, "indigo_service states need the execution module indigo_service"
    return True


def _pending(paths: Iterable[str]) -> list[str]:
    """Files that earlier states of a test run said they would change."""
    would = {
        str(result.get("name"))
        for result in (__running__ or {}).values()
        if hasattr(result, "get") and result.get("result") is None
    }
    return sorted(would & set(paths))


def running(
    name: str,
    files: Iterable[str] = (),
    reload: bool = False,
    enable: bool = True,
    wait: bool = True,
    tier: Mapping[str, Any] | None = None,
    programs: Iterable[str] = (),
) -> dict[str, Any]:
    """A unit is enabled and runs with its files as they are on disk now.

    Args:
        name: Unit name, with or without ``.service``.
        files: Files or folders that the unit reads at start. Unit file and drop-ins count
            without being named. A binary in a folder of its version changes the unit file, and
            so need not be named either.
        reload: Reload instead of restart when only ``files`` changed.
        enable: Start it at boot.
        wait: Wait for systemd to call the start complete; see ``indigo_service.restart``.
        tier: Members on other hosts, see ``indigo_rolling``: where given, a restart waits for its
            turn and for the others to serve, and ends when the unit serves again. A first start and
            a reload do not, for they take nothing away.
        programs: Files that only a restart takes up: programs of packages, which lie in the same
            place whatever their version.

    Returns:
        A state result. ``changes`` has ``enabled``, ``started``, ``restarted`` or ``reloaded``.

    Example:
        .. code-block:: yaml

            haproxy runs with its configuration:
              indigo_service.running:
                - name: haproxy
                - files: [/etc/haproxy/haproxy.cfg]
                - reload: True
                - require:
                  - file: haproxy is configured
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    programs = list(programs)
    files = [*files, *programs]
    test = bool(__opts__.get("test"))
    try:
        unit = __salt__["indigo_service.show"](name)
        if not test and (unit.get("NeedDaemonReload") == "yes" or unit["LoadState"] == "not-found"):
            __salt__["indigo_service.daemon_reload"]()
            unit = __salt__["indigo_service.show"](name)
        problem = _unusable(name, unit, test)
        if problem:
            return {**ret, "result": False, "comment": problem}

        changes: dict[str, Any] = {}
        if enable and unit.get("UnitFileState") not in ENABLED:
            changes["enabled"] = True
        alive = unit["ActiveState"] in ("active", "activating", "reloading")
        changed: dict[str, list[str]] = {"unit": [], "files": []}
        if not alive or unit.get("SubState") == "auto-restart":
            changes["started"] = f"was {unit['ActiveState']} ({unit.get('SubState')})"
        else:
            changed = __salt__["indigo_service.stale"](name, files)
            if test:
                unit_files = [unit.get("FragmentPath", ""), *unit.get("DropInPaths", "").split()]
                changed = {
                    "unit": sorted({*changed["unit"], *_pending(unit_files)}),
                    "files": sorted({*changed["files"], *_pending(files)}),
                }
            # What has not come up yet cannot reload.
            able = reload and unit["ActiveState"] != "activating"
            able = able and not {*programs} & {*changed["files"]}
            if changed["unit"] or (changed["files"] and not able):
                changes["restarted"] = sorted(changed["unit"] + changed["files"])
            elif changed["files"]:
                changes["reloaded"] = changed["files"]

        if not changes:
            if not test:
                __salt__["indigo_service.adopt"](name, files)
            return {**ret, "comment": f"{name} runs with its present configuration"}
        rolling = tier if tier and "restarted" in changes else None
        if test:
            told = _told(name, changes)
            if rolling:
                told += f", {__salt__['indigo_rolling.describe'](rolling)}"
            return {**ret, "result": None, "changes": changes, "comment": told}

        if "enabled" in changes:
            __salt__["indigo_service.enable"](name)
            ret["changes"]["enabled"] = True
        if rolling:
            return _rolled(ret, name, files, rolling, wait, changes)
        if "started" in changes or "restarted" in changes:
            __salt__["indigo_service.restart"](name, files, wait)
        elif "reloaded" in changes:
            __salt__["indigo_service.reload"](name, files)
        after = __salt__["indigo_service.show"](name)
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    good = ("active", "activating", "reloading")
    if after["ActiveState"] not in good or after.get("SubState") == "auto-restart":
        ret["result"] = False
        ret["comment"] = (
            f"{name} is {after['ActiveState']} ({after.get('SubState')}), result "
            f"{after.get('Result')}; expected active. Look at: journalctl -u {name} -n 50"
        )
        return ret
    ret["changes"] = changes
    ret["comment"] = _told(name, changes, done=True)
    return ret


def _rolled(
    ret: dict[str, Any],
    name: str,
    files: list[str],
    tier: Mapping[str, Any],
    wait: bool,
    changes: dict[str, Any],
) -> dict[str, Any]:
    """Restart when the tier allows it; the result says the sum that it rested on."""
    found = __salt__["indigo_rolling.restart"](name, files, tier, wait=wait)
    if found["restarted"]:
        ret["changes"]["restarted"] = changes["restarted"]
        done = _told(name, ret["changes"], done=True)
        return {**ret, "result": found["ok"], "comment": f"{done}: {found['comment']}"}
    return {**ret, "result": found["ok"], "comment": found["comment"]}


def _unusable(name: str, unit: dict[str, str], test: bool) -> str:
    """Why a unit cannot be started at all, or an empty string."""
    if unit["LoadState"] == "masked":
        return f"{name} is masked; expected a unit that can start. Run: systemctl unmask {name}"
    if unit["LoadState"] == "not-found" and not test:
        return f"{name} has no unit file; expected one. Apply the layer that installs it first"
    if unit["LoadState"] in ("bad-setting", "error") and not test:
        return f"{name} has a unit file that systemd cannot use. Run: systemd-analyze verify {name}"
    return ""


def _told(name: str, changes: dict[str, Any], done: bool = False) -> str:
    verb = "was" if done else "would be"
    parts = []
    for key in ("enabled", "started"):
        if key in changes:
            parts.append(key)
    for key in ("restarted", "reloaded"):
        if key in changes:
            parts.append(f"{key} for {', '.join(changes[key])}")
    return f"{name} {verb} {' and '.join(parts)}"


def stopped(name: str, unit_file: str | None = None) -> dict[str, Any]:
    """A unit does not run and does not start at boot. A unit that does not exist is fine.

    Args:
        name: Unit name, with or without ``.service``.
        unit_file: Path of a file of ours; without it the unit is somebody else's, and stays.

    Returns:
        A state result; ``changes`` has ``stopped`` and ``disabled`` where they were needed.

    Example:
        .. code-block:: yaml

            keepalived is stopped:
              indigo_service.stopped:
                - name: keepalived
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        if unit_file and not os.path.exists(unit_file):
            return {**ret, "comment": f"{unit_file} is not there"}
        unit = __salt__["indigo_service.show"](name)
        changes: dict[str, Any] = {}
        if unit["ActiveState"] not in ("inactive", "failed"):
            changes["stopped"] = f"was {unit['ActiveState']} ({unit.get('SubState')})"
        if unit.get("UnitFileState") in ("enabled", "enabled-runtime"):
            changes["disabled"] = True
        if not changes:
            return {**ret, "comment": f"{name} does not run"}
        if __opts__.get("test"):
            told = " and ".join(changes)
            comment = f"{name} would be {told}"
            return {**ret, "result": None, "changes": changes, "comment": comment}
        __salt__["indigo_service.stop"](name)
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    return {**ret, "changes": changes, "comment": f"{name} was {' and '.join(changes)}"}
