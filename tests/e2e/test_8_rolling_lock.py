"""One at a time: the lock in a real etcd of three members, and restarts that it orders.

No lab is needed: members and hosts are processes on loopback. What the lab runs is the same code.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback import PLACES, Members, etcd_programs
from support import load

TTL = 5
HOSTS = Members.NAMES


@pytest.fixture(scope="module")
def stage() -> SimpleNamespace:
    """In place of the lab of the other files: none is started, none is taken down."""
    return SimpleNamespace(broken=None)


@pytest.fixture(scope="module")
def program() -> Path:
    return Path(etcd_programs(PLACES[0])["etcd"])


@pytest.fixture
def etcd(tmp_path: Path, program: Path) -> Iterator[Members]:
    members = Members(tmp_path, program)
    members.start()
    try:
        well(members)
        yield members
    finally:
        members.stop()


@pytest.fixture
def rolling():
    return load("_modules", "indigo_rolling")


def healthy(etcd: Members, name: str) -> bool:
    check = load("_modules", "indigo_health").check
    return check(f"{etcd.url(name)}/health", **etcd.tier(name)["check"])["ok"]


def well(etcd: Members, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not all(healthy(etcd, name) for name in HOSTS):
        assert time.monotonic() < end, "etcd does not come up"
        time.sleep(0.1)


class Host:
    """A process that plays a host; see ``rolling_host.py``."""

    def __init__(self, verb: str, etcd: Members, name: str, **settings: Any) -> None:
        given = {
            "host": name,
            "log": str(etcd.folder / "shared.log"),
            "lock": etcd.settings(first="etcd1"),
            **settings,
        }
        path = etcd.folder / f"{verb}-{name}-{time.monotonic_ns()}.json"
        path.write_text(json.dumps(given))
        program = Path(__file__).with_name("rolling_host.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), verb, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, seconds: float = 120) -> str:
        """What it printed; it must have ended well."""
        out, err = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, err
        return out


def contender(etcd: Members, name: str, **settings: Any) -> Host:
    alone = str(etcd.folder / "alone")
    return Host("contend", etcd, name, tier="etcd", alone=alone, ttl=TTL, **settings)


def lines(etcd: Members) -> list[tuple[float, str, str]]:
    text = (etcd.folder / "shared.log").read_text() if (etcd.folder / "shared.log").exists() else ""
    rows = (line.split(maxsplit=2) for line in text.splitlines())
    return sorted((float(when), host, word) for when, host, word in rows)


def seen(etcd: Members, host: str, word: str, seconds: float = 30) -> float:
    """When a host noted a word; wait for it."""
    end = time.monotonic() + seconds
    while True:
        found = [when for when, who, what in lines(etcd) if (who, what) == (host, word)]
        if found:
            return found[0]
        assert time.monotonic() < end, f"{host} {word}: not in {lines(etcd)}"
        time.sleep(0.05)


def one_at_a_time(
    rows: list[tuple[float, str, str]], begins: str = "enters", ends: str = "leaves"
) -> list[str]:
    """Who held the lock, in their order; fails where two did."""
    inside: str | None = None
    order = []
    for _, host, word in rows:
        if word == begins:
            assert inside is None, f"{host} {word} while {inside} was in: {rows}"
            inside = host
            order.append(host)
        elif word == ends:
            assert inside == host, f"{host} {word} while {inside} was in: {rows}"
            inside = None
    return order


# --- the lock ------------------------------------------------------------------------------------


def test_three_processes_never_hold_it_together(etcd):
    hosts = [contender(etcd, name, times=8, hold=0.05) for name in HOSTS]
    for host in hosts:
        host.end()
    order = one_at_a_time(lines(etcd))
    assert sorted(order) == sorted(HOSTS * 8)
    # First come, first served: nobody is left out while others take turns.
    changes = sum(before != now for before, now in itertools.pairwise(order))
    assert changes >= 12, order


def test_a_holder_that_is_killed_is_succeeded_when_its_lease_ends(etcd, figure):
    holder = contender(etcd, "etcd1", hold=600)
    seen(etcd, "etcd1", "enters")
    others = [contender(etcd, name) for name in ("etcd2", "etcd3")]
    for name in ("etcd2", "etcd3"):
        seen(etcd, name, "waits")
    time.sleep(TTL + 2)
    # It holds on for longer than its lease lasts: it is renewed.
    assert [word for _, _, word in lines(etcd)].count("enters") == 1
    (etcd.folder / "alone").unlink()
    killed = time.monotonic()
    holder.process.kill()
    holder.process.communicate()
    for other in others:
        other.end()
    after = min(seen(etcd, name, "enters") for name in ("etcd2", "etcd3")) - killed
    assert TTL / 2 < after < TTL + 5
    rest = [row for row in lines(etcd) if row[1] != "etcd1"]
    assert sorted(one_at_a_time(rest)) == ["etcd2", "etcd3"]
    figure(f"a killed holder of the lock: succeeded after {after:.1f} s, lease {TTL} s")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_survives_the_restart_of_every_member(etcd, how):
    hosts = [contender(etcd, name, times=6, hold=0.3) for name in HOSTS]
    for name in HOSTS:
        etcd.units[name].stop(how)
        time.sleep(0.2)
        etcd.units[name].start()
        well(etcd)
    for host in hosts:
        host.end()
    assert sorted(one_at_a_time(lines(etcd))) == sorted(HOSTS * 6)


def test_without_a_quorum_nobody_gets_it_and_the_holder_knows(etcd, rolling):
    held = rolling.Lock(etcd.settings(), "etcd", "etcd1", TTL)
    held.acquire(timeout=10)
    assert held.lasted()
    for name in ("etcd2", "etcd3"):
        etcd.units[name].stop(signal.SIGKILL)
    waiting = rolling.Lock(etcd.settings(), "etcd", "etcd2", TTL)
    begun = time.monotonic()
    with pytest.raises(rolling.Unreachable) as told:
        waiting.acquire(timeout=60, grace=3)
    assert 3 <= time.monotonic() - begun < 25
    for name in HOSTS:
        assert etcd.url(name) in str(told.value)
    assert "part of a quorum" in str(told.value)
    with pytest.raises(rolling.CommandExecutionError):
        held.confirm()
    assert not held.lasted()
    etcd.start()
    well(etcd)
    # No lease ends without a quorum, so the holder has it again and the others wait.
    held.confirm()
    assert held.lasted()
    with pytest.raises(rolling.CommandExecutionError, match="etcd1 holds it"):
        waiting.acquire(timeout=1)
    held.release()
    waiting.acquire(timeout=10)
    waiting.release()


def test_those_who_wait_too_long_say_for_whom(etcd, rolling):
    held = rolling.Lock(etcd.settings(), "etcd", "etcd1", TTL)
    held.acquire(timeout=10)
    waiting = rolling.Lock(etcd.settings(), "etcd", "etcd2", TTL)
    with pytest.raises(rolling.CommandExecutionError, match="etcd1 holds it"):
        waiting.acquire(timeout=1)
    waiting.release()
    rolling.__pillar__ = {"indigo": {"lock": etcd.settings()}}
    (only,) = rolling.holders()["etcd"]
    assert only["host"] == "etcd1"
    assert abs(only["since"] - time.time()) < 60
    held.release()
    assert rolling.holders() == {}
    other = rolling.Lock(etcd.settings(), "kube-apiserver", "m1", TTL)
    other.acquire(timeout=10)  # each tier has its own
    other.release()


def test_a_place_that_was_lost_is_taken_again_at_the_end(etcd, rolling):
    first, second, third = (rolling.Lock(etcd.settings(), "etcd", name, 60) for name in HOSTS)
    first.acquire(timeout=10)
    for lock in (second, third):
        with pytest.raises(rolling.CommandExecutionError):
            lock.acquire(timeout=0)
    order = [one["host"] for one in sorted(first.queue(), key=lambda one: one["made"])]
    assert order == list(HOSTS)
    second._revoke(second.lease)
    with pytest.raises(rolling.CommandExecutionError, match="etcd1 holds it"):
        second.acquire(timeout=1)
    order = [one["host"] for one in sorted(first.queue(), key=lambda one: one["made"])]
    assert order == ["etcd1", "etcd3", "etcd2"]
    for lock in (first, second, third):
        lock.release()
    assert first.queue() == []


def test_hosts_without_a_certificate_stand_in_the_same_queue(etcd, rolling, monkeypatch):
    monkeypatch.setattr(rolling, "RELAYED_TTL", 2 * TTL)
    lends = {"lb": ["lb1", "lb2"]}
    rolling.__pillar__ = {"indigo": {"lock": {**etcd.settings(), "lends": lends}}}
    dead = {"etcd1"}

    def publish(who):
        def publish(minion, function, arg, tgt_type, timeout):
            assert tgt_type == "list"
            if minion in dead:
                return {}
            return {minion: getattr(rolling, function.split(".")[1])(*arg, __pub_id=who)}

        return publish

    one, two, stranger = (
        rolling.Relay(publish(who), ["etcd1", "etcd2"], "lb") for who in ("lb1", "lb2", "node1")
    )
    direct = rolling.Lock(etcd.settings(), "lb", "host3", TTL)
    one.acquire(timeout=10)
    one.confirm()
    assert one.lasted()
    with pytest.raises(rolling.CommandExecutionError, match="lb1 holds it"):
        two.acquire(timeout=1)
    with pytest.raises(rolling.CommandExecutionError, match="lb1 holds it"):
        direct.acquire(timeout=1)
    with pytest.raises(rolling.CommandExecutionError, match=r"node1.* may not have the lock"):
        stranger.acquire(timeout=10)
    assert rolling.free("etcd", __pub_id="lb1")["problem"]
    assert rolling.free("lb", __pub_id="")["problem"]
    one.release()
    two.acquire(timeout=10)  # it was next
    with pytest.raises(rolling.CommandExecutionError, match="lost to lb2"):
        one.confirm()
    one.release()
    # It dies, and asks no more: its place ends with its lease.
    begun = time.monotonic()
    direct.acquire(timeout=30)
    assert TTL < time.monotonic() - begun < 2 * TTL + 5
    direct.release()
    dead.add("etcd2")
    with pytest.raises(rolling.Unreachable, match="etcd2: no answer"):
        one.acquire(timeout=30, grace=0)


# --- restarts ------------------------------------------------------------------------------------


class Watcher:
    """Knocks at every member ten times a second, and writes all the while."""

    def __init__(self, etcd: Members, rolling: Any) -> None:
        self.etcd, self.rolling = etcd, rolling
        self.down: list[tuple[float, set[str]]] = []
        self.written: list[str] = []
        self.failed: list[str] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._look, self._write)]

    def __enter__(self) -> Watcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            now = {name for name in HOSTS if not self._accepts(name)}
            self.down.append((time.monotonic(), now))

    def _accepts(self, name: str) -> bool:
        health = load("_modules", "indigo_health")
        return health.open_port("127.0.0.1", self.etcd.ports[name][0])

    def _write(self) -> None:
        client = self.rolling.Etcd(**self.etcd.settings(first="etcd2"))
        for number in itertools.count():
            if self._end.wait(0.05):
                return
            key = f"written/{number}"
            try:
                client.call(
                    "/v3/kv/put",
                    {"key": self.rolling._coded(key), "value": self.rolling._coded("x")},
                )
                self.written.append(key)
            except self.rolling.CommandExecutionError as error:
                self.failed.append(str(error))

    def stored(self) -> set[str]:
        """Every key that is there now."""
        client = self.rolling.Etcd(**self.etcd.settings())
        span = {
            "key": self.rolling._coded("written/"),
            "range_end": self.rolling._coded(self.rolling.after("written/")),
        }
        found = client.call("/v3/kv/range", span).get("kvs", [])
        return {self.rolling.entry(kv)["key"] for kv in found}


LIMITS = {"patience": 4, "timeout": 90, "grace": 3}


def applied(etcd: Members, names: tuple[str, ...] = HOSTS) -> dict[str, dict[str, Any]]:
    """``state.apply`` on hosts at once; the result of each."""
    hosts = {
        name: Host(
            "apply",
            etcd,
            name,
            folder=str(etcd.folder / name),
            lock=etcd.settings(first=name, who=name),
            tier=etcd.tier(name),
            limits=LIMITS,
        )
        for name in names
    }
    return {name: json.loads(host.end()) for name, host in hosts.items()}


def test_all_hosts_apply_a_changed_flag_at_once_and_restart_one_by_one(etcd, rolling, figure):
    assert all(ret["changes"] == {} for ret in applied(etcd).values())
    for name in HOSTS:
        etcd.write(name, "--max-snapshots=7")
    began = time.monotonic()
    with Watcher(etcd, rolling) as watcher:
        results = applied(etcd)
    took = time.monotonic() - began
    for name, ret in results.items():
        assert ret["result"] is True, ret
        assert ret["changes"] == {"restarted": [str(etcd.units[name].file)]}
        assert "3 members, quorum 2: 3 healthy, one may go" in ret["comment"]
    assert sorted(one_at_a_time(lines(etcd), "stops", "serves")) == sorted(HOSTS)
    assert max(len(down) for _, down in watcher.down) <= 1
    assert watcher.failed == []
    assert len(watcher.written) > 20
    assert set(watcher.written) <= watcher.stored()
    assert all(ret["changes"] == {} for ret in applied(etcd).values())
    figure(f"three members of etcd restarted one by one in {took:.1f} s, {len(watcher.written)}"
           " writes meanwhile, none failed")  # fmt: skip


def test_a_flag_that_breaks_etcd_stops_one_member_and_no_other(etcd, rolling):
    applied(etcd)
    for name in HOSTS:
        etcd.write(name, "--no-such-flag=1")
    with Watcher(etcd, rolling) as watcher:
        results = applied(etcd)
    restarted = [name for name, ret in results.items() if ret["changes"]]
    assert len(restarted) == 1
    (broken,) = restarted
    assert "does not serve" in results[broken]["comment"]
    for name, ret in results.items():
        assert ret["result"] is False
        if name != broken:
            assert f"2 healthy, none may go: {broken}" in ret["comment"], ret
    assert max(len(down) for _, down in watcher.down) == 1
    assert next(row for row in lines(etcd) if row[2] == "stops")[1] == broken
    assert watcher.failed == []
    # Mended, the broken one starts without waiting for anyone, and the others take their turns.
    for name in HOSTS:
        etcd.write(name, "--max-snapshots=8")
    with Watcher(etcd, rolling) as watcher:
        results = applied(etcd)
    assert all(ret["result"] is True for ret in results.values()), results
    assert set(results[broken]["changes"]) == {"started"}
    assert watcher.failed == []


def test_a_host_that_dies_in_its_restart_holds_up_the_others_for_a_lease_at_most(etcd):
    applied(etcd)
    for name in HOSTS:
        etcd.write(name, "--max-snapshots=9")
    before = etcd.units["etcd1"].now["invocation"]
    first = Host(
        "apply",
        etcd,
        "etcd1",
        folder=str(etcd.folder / "etcd1"),
        lock=etcd.settings(first="etcd1", who="etcd1"),
        tier={**etcd.tier("etcd1"), "settle": 60, "timeout": 90},
        limits=LIMITS,
    )
    end = time.monotonic() + 30
    while etcd.units["etcd1"].now["invocation"] == before:
        assert time.monotonic() < end
        time.sleep(0.02)
    killed = time.monotonic()
    first.process.kill()
    first.process.communicate()
    results = applied(etcd, ("etcd2", "etcd3"))
    assert all(set(ret["changes"]) == {"restarted"} for ret in results.values()), results
    again = min(etcd.units[name].now["started"] for name in ("etcd2", "etcd3"))
    assert again - killed < load("_modules", "indigo_rolling").TTL + 5


def test_a_stopped_tier_is_started_and_one_without_a_quorum_is_mended(etcd):
    applied(etcd)
    for name in HOSTS:
        etcd.units[name].stop()
    results = applied(etcd)
    assert all(set(ret["changes"]) == {"started"} for ret in results.values()), results
    well(etcd)
    # Two are gone, the third is alone and gets a new flag: nobody can take a lock.
    for name in ("etcd1", "etcd2"):
        etcd.units[name].stop(signal.SIGKILL)
    etcd.write("etcd3", "--max-snapshots=6")
    ret = applied(etcd, ("etcd3",))["etcd3"]
    assert set(ret["changes"]) == {"restarted"}
    assert "restarted without a lock, for etcd has no quorum" in ret["comment"]
    assert ret["result"] is False  # it was restarted, and cannot serve alone
    etcd.start()
    well(etcd)
    assert all(ret["result"] for ret in applied(etcd).values())
