"""What a host does in the tests of rolling restarts, as a process of its own that can be killed.

Usage: rolling_host.py VERB FILE, where FILE holds the settings as JSON. It writes what it sees to
the settings' ``log``, one line at a time, with the monotonic clock that all processes share.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests", "tests/lab", "_modules"):
    sys.path.insert(0, str(ROOT / folder))

from loopback import Unit  # noqa: E402
from support import load  # noqa: E402


def note(settings: dict[str, Any], word: str) -> None:
    """One line, whole, at the end of the shared log."""
    line = f"{time.monotonic():.4f} {settings['host']} {word}\n"
    descriptor = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def contend(settings: dict[str, Any]) -> None:
    """Take and free the lock again and again; with ``hold`` keep it until killed."""
    rolling = load("_modules", "indigo_rolling")
    for _ in range(settings.get("times", 1)):
        lock = rolling.Lock(settings["lock"], settings["tier"], settings["host"], settings["ttl"])
        note(settings, "waits")
        lock.acquire(timeout=120, grace=settings.get("grace", 30))
        lock.confirm()
        # A second proof besides the log: of two at a time one fails here.
        alone = os.open(settings["alone"], os.O_CREAT | os.O_EXCL)
        note(settings, "enters")
        time.sleep(settings.get("hold", 0.1))
        os.close(alone)
        os.unlink(settings["alone"])
        note(settings, "leaves")
        lock.release()


def modules(settings: dict[str, Any]) -> Any:
    """The state ``indigo_service`` of a host, its modules, and its own unit in place of systemd."""
    folder = Path(settings["folder"])
    service, health, rolling = (
        load("_modules", name) for name in ("indigo_service", "indigo_health", "indigo_rolling")
    )
    state = load("_states", "indigo_service")
    unit = Unit(folder)

    def systemctl(*arguments: str, timeout: float = 0) -> tuple[int, str, str]:
        if "restart" in arguments:
            note(settings, "stops")
        return unit(*arguments, timeout=timeout)

    def wait_unit(*arguments: Any, **checks: Any) -> dict[str, Any]:
        found = health.wait_unit(*arguments, **checks)
        if found["ok"]:
            note(settings, "serves")
        return found

    functions = {
        **{
            f"indigo_service.{name}": getattr(service, name)
            for name in ("show", "active", "stale", "adopt", "enable", "restart", "stamped")
        },
        "indigo_service.daemon_reload": service.daemon_reload,
        "indigo_health.check": health.check,
        "indigo_health.wait_unit": wait_unit,
        "indigo_host.holds": lambda _: False,
        "indigo_rolling.restart": functools.partial(rolling.restart, **settings["limits"]),
        "indigo_rolling.describe": rolling.describe,
    }
    service._systemctl = systemctl
    service.STAMPS = folder / "run"
    service.UNITS = folder / "etc"
    for module in (service, health, rolling, state):
        module.__salt__ = functions
    rolling.__pillar__ = {"indigo": {"id": settings["host"], "lock": settings["lock"]}}
    state.__opts__, state.__running__ = {"test": False}, {}
    return state


def apply(settings: dict[str, Any]) -> None:
    """Apply the state of the unit, and print its result."""
    note(settings, "applies")
    ret = modules(settings).running("etcd", files=[], wait=False, tier=settings["tier"])
    note(settings, "done")
    print(json.dumps(ret))


if __name__ == "__main__":
    {"contend": contend, "apply": apply}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
