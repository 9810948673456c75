"""Units, and the files they were started with.

systemd knows whether a unit runs, not whether it runs with the configuration that is on disk
now. This module keeps that knowledge: a stamp per unit in ``/run`` names the invocation and the
fingerprint of every file at that start. Where the stamp is of another invocation (systemd
restarted the unit, the host rebooted, the apply was killed before it wrote the stamp) the time of
each file's last change is compared with the start of the process instead.

Source: ``systemctl(1)`` ``show``, ``org.freedesktop.systemd1(5)`` properties ``InvocationID``,
``ExecMainStartTimestampMonotonic``, ``NeedDaemonReload``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

STAMPS = Path("/run/indigo/started")

#: Where an administrator's units lie; one of the same name stands before a package's.
UNITS = Path("/etc/systemd/system")

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "Type",
    "Result",
    "MainPID",
    "InvocationID",
    "ExecMainStartTimestampMonotonic",
    "InactiveExitTimestampMonotonic",
    "FragmentPath",
    "DropInPaths",
    "NeedDaemonReload",
)

__func_alias__ = {"reload_": "reload"}


def __virtual__() -> bool | tuple[bool, str]:
    if shutil.which("systemctl") is None:
        return False, "indigo_service needs systemd: no systemctl in the PATH"
    return True


def _systemctl(*arguments: str, timeout: float = 300) -> tuple[int, str, str]:
    """Run systemctl without a shell: return code, stdout, stderr."""
    try:
        done = subprocess.run(
            ["systemctl", "--no-pager", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer after {timeout:g} s"
    return done.returncode, done.stdout, done.stderr


def _unit(name: str) -> str:
    """Full unit name: a bare name means a service."""
    return name if "." in name.rsplit("/", 1)[-1] else f"{name}.service"


def parse_show(text: str) -> dict[str, str]:
    """Turn the output of ``systemctl show`` into a dict.

    >>> parse_show("MainPID=7\\nFragmentPath=/etc/x=y\\n")
    {'MainPID': '7', 'FragmentPath': '/etc/x=y'}
    """
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key: value for key, _, value in pairs}


def fingerprint(paths: Iterable[str]) -> dict[str, str]:
    """Digest of what each path holds now.

    Args:
        paths: Files or folders (every file below counts). A path that is absent gets ``absent``.

    Returns:
        ``{path: sha256 hex or "absent"}``.

    Example:
        >>> fingerprint(["/nonexistent"])
        {'/nonexistent': 'absent'}
    """
    return {path: _digest(Path(path)) for path in sorted(set(paths))}


def _digest(path: Path) -> str:
    if path.is_dir():
        inner = fingerprint(str(file) for file in path.rglob("*") if not file.is_dir())
        return hashlib.sha256(json.dumps(inner, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return "absent"
    return digest.hexdigest()


def _changed_at(path: Path) -> float:
    """Time of the last change to a path in seconds since the epoch; 0 where it is absent."""
    try:
        return max(item.stat().st_ctime for item in (path, *path.rglob("*")))
    except FileNotFoundError:
        return 0.0


def _started_at(properties: Mapping[str, str]) -> float:
    """Start of the main process in today's clock, so that a stepped clock does not mislead."""
    for key in ("ExecMainStartTimestampMonotonic", "InactiveExitTimestampMonotonic"):
        micros = int(properties.get(key) or 0)
        if micros:
            return time.time() - (time.monotonic() - micros / 1e6)
    return 0.0


def show(name: str) -> dict[str, str]:
    """Properties of a unit.

    Args:
        name: Unit name, with or without ``.service``.

    Returns:
        The properties of :data:`PROPERTIES`, as systemd prints them. ``NeedDaemonReload`` is
        also ``yes`` where the file that systemd has loaded is gone or has come to stand behind one
        in ``/etc``, which systemd does not notice.

    Raises:
        CommandExecutionError: systemd does not answer.

    Example:
        ``salt-call indigo_service.show etcd``
    """
    code, out, err = _systemctl("show", _unit(name), f"--property={','.join(PROPERTIES)}")
    if code:
        raise CommandExecutionError(f"{name}: systemctl show failed ({code}): {err.strip()}")
    properties = parse_show(out)
    if _outdated(_unit(name), properties.get("FragmentPath", "")):
        properties["NeedDaemonReload"] = "yes"
    return properties


def _outdated(unit: str, loaded: str) -> bool:
    ours = UNITS / unit
    if loaded and not Path(loaded).exists():
        return True
    return ours.is_file() and os.path.realpath(ours) != os.path.realpath(loaded or "/")


def active(name: str) -> bool:
    """Whether the unit runs now: started, or on its way to it.

    Example:
        ``salt-call indigo_service.active haproxy``
    """
    return _active(show(name))


def _active(properties: Mapping[str, str]) -> bool:
    if properties.get("SubState") == "auto-restart":
        return False
    return properties.get("ActiveState") in ("active", "activating", "reloading")


def stale(name: str, files: Iterable[str] = ()) -> dict[str, list[str]]:
    """Which files changed since the running invocation of a unit read them.

    Args:
        name: Unit name.
        files: Configuration files or folders that the unit reads at start or reload. The unit
            file and its drop-ins always count and need not be named.

    Returns:
        ``{"unit": [changed unit files], "files": [changed files]}``; both empty when the unit
        runs with what is on disk, or does not run at all.

    Example:
        ``salt-call indigo_service.stale haproxy '["/etc/haproxy/haproxy.cfg"]'``
    """
    properties = show(name)
    if not _active(properties):
        return {"unit": [], "files": []}
    unit_files = _unit_files(properties)
    stamp = _read_stamp(name)
    if stamp.get("invocation") != properties.get("InvocationID"):
        stamp = {}
    then = stamp.get("files", {})
    wanted = sorted({*unit_files, *files})
    now = fingerprint(path for path in wanted if path in then)
    start = _started_at(properties)
    changed = [
        path
        for path in wanted
        if (then[path] != now[path] if path in then else _changed_at(Path(path)) > start)
    ]
    gone = [path for path in stamp.get("unit", []) if path not in unit_files]
    return {
        "unit": sorted([path for path in changed if path in unit_files] + gone),
        "files": [path for path in changed if path not in unit_files],
    }


def _unit_files(properties: Mapping[str, str]) -> list[str]:
    paths = [properties.get("FragmentPath", ""), *properties.get("DropInPaths", "").split()]
    return [path for path in paths if path]


def _stamp_path(name: str) -> Path:
    return STAMPS / f"{_unit(name)}.json"


def _read_stamp(name: str) -> dict[str, Any]:
    try:
        stamp = json.loads(_stamp_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def stamped(name: str) -> bool:
    """Whether a unit was started, or found good, by these states since the host booted.

    Example:
        ``salt-call indigo_service.stamped haproxy``
    """
    return bool(_read_stamp(name))


def record(name: str, prints: Mapping[str, str]) -> None:
    """Remember what the running invocation of a unit was started with.

    Args:
        name: Unit name.
        prints: :func:`fingerprint` of its files, taken before the start.

    Example:
        ``__salt__["indigo_service.record"]("etcd", prints)``
    """
    properties = show(name)
    path = _stamp_path(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = {
        "invocation": properties.get("InvocationID", ""),
        "unit": _unit_files(properties),
        "files": dict(prints),
    }
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(stamp, stream)
    partial.replace(path)


def adopt(name: str, files: Iterable[str]) -> None:
    """Write the stamp of a unit that runs with what is on disk but was started by another.

    Example:
        ``__salt__["indigo_service.adopt"]("etcd", ["/etc/etcd/etcd.conf.yml"])``
    """
    properties = show(name)
    wanted = {*_unit_files(properties), *files}
    stamp = _read_stamp(name)
    if stamp.get("invocation") == properties.get("InvocationID") and wanted == set(stamp["files"]):
        return
    record(name, fingerprint(wanted))


def daemon_reload() -> None:
    """Have systemd read its unit files again.

    Raises:
        CommandExecutionError: systemd refuses.
    """
    code, _, err = _systemctl("daemon-reload")
    if code:
        raise CommandExecutionError(f"systemctl daemon-reload failed ({code}): {err.strip()}")


def enable(name: str) -> None:
    """Have a unit start at boot.

    Raises:
        CommandExecutionError: systemd refuses, for example as the unit is masked.
    """
    code, _, err = _systemctl("enable", _unit(name))
    if code:
        raise CommandExecutionError(f"{name}: cannot be enabled: {err.strip()}")


def restart(name: str, files: Iterable[str] = (), wait: bool = True) -> None:
    """Start or restart a unit and remember the files it starts with.

    Args:
        name: Unit name.
        files: Files whose contents the unit reads at start.
        wait: Wait until systemd calls the start complete. Without it the call returns as soon as
            the process is on its way: for units that are ready only once others run, too.

    Raises:
        CommandExecutionError: The unit did not start.

    Example:
        ``salt-call indigo_service.restart etcd wait=False``
    """
    before = show(name)
    if before.get("ActiveState") == "failed":
        _systemctl("reset-failed", _unit(name))
    prints = fingerprint({*_unit_files(before), *files})
    code, _, err = _systemctl(*([] if wait else ["--no-block"]), "restart", _unit(name))
    if code:
        after = show(name)
        raise CommandExecutionError(
            f"{name} did not start: it is {after.get('ActiveState')} ({after.get('SubState')}), "
            f"result {after.get('Result')}; expected active. {err.strip()} "
            f"Look at: journalctl -u {name} -n 50"
        )
    if not wait:
        _await_invocation(name, before.get("InvocationID", ""))
    record(name, prints)


def _await_invocation(name: str, old: str, seconds: float = 45) -> None:
    """Wait until a queued start has begun, so that the stamp names the new invocation.

    The old process may take as long to stop as its unit's TimeoutStopSec allows.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = show(name).get("InvocationID", "")
        if now and now != old:
            return
        time.sleep(0.05)


def reload_(name: str, files: Iterable[str] = ()) -> None:
    """Reload a unit and remember the files it reads.

    Raises:
        CommandExecutionError: The unit refused; it goes on with its old configuration.

    Example:
        ``salt-call indigo_service.reload haproxy '["/etc/haproxy/haproxy.cfg"]'``
    """
    prints = fingerprint({*_unit_files(show(name)), *files})
    code, _, err = _systemctl("reload", _unit(name))
    if code:
        raise CommandExecutionError(
            f"{name} refused to reload and keeps its old configuration: {err.strip()} "
            f"Look at: journalctl -u {name} -n 50"
        )
    record(name, prints)


def pause(name: str) -> None:
    """Stop a unit for a moment: it still starts at boot, and keeps its stamp.

    Raises:
        CommandExecutionError: The unit does not stop.

    Example:
        ``salt-call indigo_service.pause keepalived``
    """
    _do("stop", name)


def resume(name: str) -> None:
    """Start a unit that was paused. What changed meanwhile counts as known to the new process.

    Raises:
        CommandExecutionError: The unit does not start.

    Example:
        ``salt-call indigo_service.resume keepalived``
    """
    _do("start", name)


def _do(verb: str, name: str) -> None:
    code, _, err = _systemctl(verb, _unit(name))
    if code:
        raise CommandExecutionError(
            f"{name}: systemctl {verb} failed: {err.strip()} Look at: journalctl -u {name} -n 50"
        )


def stop(name: str) -> None:
    """Stop a unit, keep it from starting at boot, and forget its stamp.

    Raises:
        CommandExecutionError: The unit does not stop.

    Example:
        ``salt-call indigo_service.stop keepalived``
    """
    for verb in ("stop", "disable"):
        code, _, err = _systemctl(verb, _unit(name))
        if code and "not loaded" not in err and "does not exist" not in err:
            raise CommandExecutionError(f"{name}: systemctl {verb} failed: {err.strip()}")
    _systemctl("reset-failed", _unit(name))
    _stamp_path(name).unlink(missing_ok=True)
