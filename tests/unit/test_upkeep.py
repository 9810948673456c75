"""Which databases are rewritten, in which order, and what a full one needs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load

MEMBERS = {name: {"client": f"https://{name}:2379"} for name in ("a", "b", "c")}


class Cluster:
    """Three members of which ``a`` leads: what etcdctl would say and do."""

    def __init__(self) -> None:
        self.sizes = {one["client"]: [400 * 2**20, 100 * 2**20] for one in MEMBERS.values()}
        self.alarm = False
        self.down: set[str] = set()
        self.done: list[tuple[str, ...]] = []

    def __call__(self, _settings, endpoints, *arguments, answer=True):
        endpoints = list(endpoints)
        if arguments == ("endpoint", "status"):
            if len(endpoints) == 1 and endpoints[0] in self.down:
                raise CommandExecutionError("down")
            return [self.status(url) for url in endpoints if url not in self.down]
        if arguments == ("alarm", "list"):
            return {"alarms": [{"memberID": 1, "alarm": 1}]} if self.alarm else {}
        self.done.append((arguments[0], endpoints[0]))
        if arguments[0] == "defrag":
            self.sizes[endpoints[0]][0] = self.sizes[endpoints[0]][1]
        if arguments == ("alarm", "disarm"):
            self.alarm = False
        return ""

    def status(self, url):
        size, used = self.sizes[url]
        number = list(self.sizes).index(url) + 1
        return {
            "Endpoint": url,
            "Status": {
                "dbSize": size,
                "dbSizeInUse": used,
                "leader": 1,
                "header": {"member_id": number, "revision": 77},
            },
        }


@pytest.fixture
def upkeep():
    module = load("_modules", "indigo_upkeep")
    cluster = Cluster()
    etcd = {
        "members": MEMBERS,
        "url": "https://a:2379",
        "flags": {"quota-backend-bytes": str(2**30)},
        **dict.fromkeys(("ca", "cert", "key"), "x"),
    }
    module.__pillar__ = {
        "indigo": {
            "id": "a",
            "components": {"etcd": etcd},
            "binaries": {"etcdctl": "/nonexistent"},
            "backup": {"defragment": {"share": 50, "least": 100}},
        }
    }
    locks: list[str] = []

    def lock(_settings, name, _host):
        return SimpleNamespace(
            acquire=lambda **_: locks.append(name), release=lambda: locks.append("released")
        )

    module.__salt__ = {"indigo_rolling.lock": lock, "event.send": lambda *_: None}
    module._etcdctl = cluster
    return SimpleNamespace(module=module, cluster=cluster, locks=locks, view=module.__pillar__)


def test_members_are_rewritten_one_by_one_the_leader_last_under_etcd_s_lock(upkeep):
    found = upkeep.module.run()
    assert upkeep.cluster.done == [
        ("defrag", "https://b:2379"),
        ("defrag", "https://c:2379"),
        ("defrag", "https://a:2379"),
    ]
    assert found["rewritten"]["https://b:2379"] == [400 * 2**20, 100 * 2**20]
    assert upkeep.locks == ["etcd", "released"]


@pytest.mark.parametrize(("size", "used"), [(400, 300), (120, 40), (10, 1)])
def test_what_gains_little_is_left_alone(upkeep, size, used):
    for pair in upkeep.cluster.sizes.values():
        pair[:] = [size * 2**20, used * 2**20]
    assert upkeep.module.run()["why"] == "no database is mostly free space"
    assert upkeep.cluster.done == []
    assert upkeep.locks == []


def test_while_a_member_is_down_no_other_stops(upkeep):
    upkeep.cluster.down = {"https://c:2379"}
    with pytest.raises(CommandExecutionError, match="https://c:2379 does not serve"):
        upkeep.module.run()
    assert upkeep.cluster.done == []
    assert upkeep.locks == []


def test_a_full_etcd_is_compacted_rewritten_and_its_alarm_cleared(upkeep):
    upkeep.cluster.alarm = True
    for pair in upkeep.cluster.sizes.values():
        pair[:] = [2**30, 2**29]
    found = upkeep.module.run()
    assert upkeep.cluster.done[0] == ("compact", "https://a:2379")
    assert upkeep.cluster.done[-1] == ("alarm", "https://a:2379")
    assert [verb for verb, _ in upkeep.cluster.done].count("defrag") == 3
    assert found["alarms"] == ["NOSPACE"]
    # A full etcd takes no writes, and a lock is one.
    assert upkeep.locks == ["released"]


def test_an_alarm_stays_while_there_is_no_room(upkeep):
    upkeep.cluster.alarm = True
    for pair in upkeep.cluster.sizes.values():
        pair[:] = [2**30, 2**30]
    with pytest.raises(CommandExecutionError, match="the database is full: 1024 MiB of 1024"):
        upkeep.module.run()
    assert upkeep.cluster.alarm


def test_of_a_full_etcd_only_the_leader_s_host_sees_to_it(upkeep):
    upkeep.cluster.alarm = True
    upkeep.view["indigo"]["components"]["etcd"]["url"] = "https://b:2379"
    assert "leader" in upkeep.module.run()["why"]
    assert upkeep.cluster.done == []


def test_an_alarm_of_corruption_is_for_a_person(upkeep):
    said = {"alarms": [{"memberID": 1, "alarm": 2}]}
    upkeep.module._etcdctl = lambda *_, **__: json.loads(json.dumps(said))
    assert not upkeep.module._full(upkeep.module._settings())
