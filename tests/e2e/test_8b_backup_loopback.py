"""A backup's proof against a real etcd: a good snapshot passes, a damaged one never becomes a set.

No lab is needed: the members are processes on loopback, and what is confined to a unit on a host
runs here without one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import PLACES, Members, await_serving, etcd_programs
from salt.exceptions import CommandExecutionError
from support import load

NAMES = Members.NAMES


@pytest.fixture(scope="module")
def stage() -> SimpleNamespace:
    """In place of the lab of the other files: none is started, none is taken down."""
    return SimpleNamespace(broken=None)


# The newer one by `make test-slow`.
@pytest.fixture(
    scope="module",
    params=[PLACES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in PLACES[1:])],
)
def programs(request: pytest.FixtureRequest) -> dict[str, str]:
    """etcd and the tools that come with it, of each release that can be had."""
    return etcd_programs(request.param)


@pytest.fixture
def members(tmp_path: Path, programs: dict[str, str]) -> Iterator[Members]:
    found = Members(tmp_path, Path(programs["etcd"]))
    found.start()
    try:
        await_serving(found)
        yield found
    finally:
        found.stop()


@pytest.fixture
def host(members: Members, programs: dict[str, str], tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The first member's host."""
    backup = load("_modules", "indigo_backup")
    rolling, health = load("_modules", "indigo_rolling"), load("_modules", "indigo_health")
    tool = load("_modules", "indigo_tool")
    own = members.settings(who="etcd1")
    view = {
        "id": "etcd1",
        "cluster": {"name": "lab"},
        "versions": {"etcd": "any"},
        "binaries": programs,
        "components": {
            "etcd": {
                "name": "etcd1",
                "url": members.url("etcd1"),
                "members": {name: {"client": members.url(name)} for name in NAMES},
                "flags": {},
                **{key: own[key] for key in ("ca", "cert", "key")},
            }
        },
        "backup": {
            "every": 24,
            "at": "01:30",
            "keep": {"daily": 7, "weekly": 4, "monthly": 6},
            "folder": str(tmp_path / "sets"),
            "target": str(tmp_path / "target"),
            "copies": False,
            "recipient": "",
            "members": list(NAMES),
            "hosts": {"etcd1": "127.0.0.1:1"},
            "secrets": {},
            "schedule": {},
        },
    }
    (tmp_path / "target").mkdir()
    events: list[str] = []
    backup.__pillar__, backup.__opts__ = {"indigo": view}, {"multiprocessing": False}
    backup.__salt__ = {
        "indigo_rolling.lock": rolling.lock,
        "indigo_health.check": health.check,
        "event.send": lambda tag, _data: events.append(tag),
        "indigo_tool.run": tool.run,
        "indigo_tool.environment": tool.environment,
    }
    running: list[subprocess.Popen[bytes]] = []

    def confined(command, scratch, size, wait, environment=None):
        if wait:
            return tool.run(command, {"ETCDCTL_API": "3", **(environment or {})})
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        running.append(process)
        url = next(w for w in command if "listen-client" in w).partition("=")[2]
        tls = {key: own[key] for key in ("ca", "cert", "key")}
        end = time.monotonic() + 20
        while not health.check(f"{url}/health", expect='"true"', **tls)["ok"]:
            if process.poll() is not None or time.monotonic() > end:
                return {"retcode": 1, "stdout": "", "stderr": "", "told": "it ended"}
            time.sleep(0.1)
        return {"retcode": 0, "stdout": "", "stderr": "", "told": ""}

    def end_proof():
        while running:
            running[-1].kill()
            running.pop().wait()

    backup.confined, backup._end_proof = confined, end_proof
    yield SimpleNamespace(backup=backup, folder=tmp_path / "sets", events=events, view=view)
    end_proof()


def put(host: SimpleNamespace, count: int) -> None:
    settings = host.backup._settings()
    for n in range(count):
        host.backup._etcdctl(settings, "put", f"key-{n}", f"value-{n}" * 50)


def test_a_snapshot_is_proven_against_the_living_member(host, tmp_path):
    put(host, 30)
    made = host.backup.run()
    (manifest,) = host.backup.sets(str(host.folder))
    assert made["made"] == manifest["name"]
    assert manifest["keys"] >= 30
    assert manifest["proven"]["compared"] is True
    assert manifest["copies"] == {str(tmp_path / "target"): "ok"}
    assert [one["name"] for one in host.backup.sets(str(tmp_path / "target"))] == [made["made"]]
    assert host.backup.check(made["made"])["ok"]
    # None is due now, here or on another host, which has no set of its own yet.
    assert host.backup.run()["made"] is None
    host.view["backup"] |= {"folder": str(tmp_path / "elsewhere"), "target": ""}
    assert host.backup.run()["why"].startswith("none is due")
    assert not list(host.folder.glob(".partial-*"))


@pytest.mark.parametrize("where", [0.3, 0.6, 0.99])
def test_a_byte_that_flips_before_the_proof_is_caught(host, where):
    put(host, 60)
    genuine = host.backup._snapshot

    def damaged(settings, path, size, quick):
        found = genuine(settings, path, size, quick)
        with path.open("r+b") as file:
            file.seek(int(path.stat().st_size * where))
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 0x10]))
        return found

    host.backup._snapshot = damaged
    with pytest.raises(host.backup.Suspect, match="It is kept as"):
        host.backup.run(force=True)
    assert host.backup.sets() == []
    assert host.backup.status()["problem"]
    (aside,) = host.backup.status()["suspects"]
    assert (host.folder / aside / "snapshot.db").is_file()
    assert host.events == ["indigo/backup/alarm"]
    # The next one is good, and the problem is over.
    host.backup._snapshot = genuine
    assert host.backup.run(force=True)["made"]
    assert host.backup.status()["problem"] is None


def test_a_member_without_a_quorum_makes_none(host, members):
    for name in ("etcd2", "etcd3"):
        members.units[name].stop()
    time.sleep(2)
    with pytest.raises(Exception, match=r"no part of a quorum|does not answer|etcdctl"):
        host.backup.run(force=True)
    assert host.backup.sets() == []


def test_while_another_host_has_the_lock_none_is_made(host, members):
    rolling = load("_modules", "indigo_rolling")
    lock = rolling.lock(members.settings(who="etcd2"), "backup", "etcd2")
    lock.acquire(timeout=5)
    try:
        assert "another host makes it" in host.backup.run(force=True)["why"]
    finally:
        lock.release()
    assert host.backup.run(force=True)["made"]


def test_a_snapshot_that_was_brought_as_a_file_becomes_a_set(host, tmp_path):
    put(host, 20)
    made = host.backup.run()["made"]
    brought = tmp_path / "brought.db"
    shutil.copyfile(host.folder / made / "snapshot.db", brought)
    os.utime(brought, (86400, 86400))
    # What the members hold by now is of no matter: it may be of another history.
    put(host, 20)
    found = host.backup.adopt(str(brought))
    assert found["name"] == "19700102T000000Z-etcd1"
    assert found["keys"] >= 20
    assert host.backup.adopt(str(brought)) == found
    assert host.backup.check(found["name"])["ok"]
    # It is kept, however old; and it is no reason to make none.
    host.backup._expire(host.backup._settings(), host.folder)
    assert [one["name"] for one in host.backup.sets()] == [made, found["name"]]
    # A damaged one is refused, and nothing of it is left.
    with brought.open("r+b") as file:
        file.seek(brought.stat().st_size // 2)
        file.write(b"damaged")
    os.utime(brought, (2 * 86400, 2 * 86400))
    with pytest.raises(host.backup.Suspect):
        host.backup.adopt(str(brought))
    assert len(host.backup.sets()) == 2
    assert not list(host.folder.glob(".partial-*"))
    with pytest.raises(CommandExecutionError, match="No such file"):
        host.backup.adopt("/nonexistent")
