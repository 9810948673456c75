"""``salt-run indigo.preflight``: what hosts say of themselves and of each other, and the table."""

from __future__ import annotations

import copy
import socket
import time
from typing import Any

import pytest
from indigo_model import cluster as model
from indigo_model import survey, validate
from support import load

host = load("_modules", "indigo_survey")
runner = load("_runners", "indigo_preflight")
screen = load("_output", "indigo_preflight")

CLUSTER = model.parse(validate.load(validate.EXAMPLE, "example"))
PLAN = {
    "cluster": "lab",
    "versions": {"kubernetes": "1.36.2", "etcd": "3.6.14"},
    "vip": {"address": CLUSTER.vip.address, "interface": "eth0"},
    "hosts": {
        id_: {"address": one.address, "roles": list(one.roles)}
        for id_, one in CLUSTER.hosts.items()
    },
}
GOOD = {
    "memory_mb": 4096,
    "swap": False,
    "enforcing": False,
    "kernel": "6.1.0",
    "lacks": [],
    "fixed": [],
    "running": [],
    "name": "",
    "sources": {"dl.k8s.io:443": ""},
    "salt": "3008.3",
}


def fact(address: str) -> dict[str, Any]:
    return {
        "interfaces": {"eth0": [f"{address}/24"]},
        "init": "systemd",
        "arch": "amd64",
        "os": ["Debian", "Debian", "12"],
        "free_mb": {"/opt": 9000, "/var/lib": 9000},
        "time": 1000.0,
    }


def checked(changed: dict[str, Any] | None = None, **reached: Any) -> dict[str, Any]:
    """The checks by name, after some hosts' answers were changed."""
    facts = {id_: fact(one.address) for id_, one in CLUSTER.hosts.items()}
    surveys = {id_: copy.deepcopy(GOOD) for id_ in CLUSTER.hosts}
    for id_, change in (changed or {}).items():
        surveys[id_].update(change)
    ways = {
        id_: [[address, port, "open"] for _, address, port, _ in found]
        for id_, found in survey.ways(CLUSTER).items()
    }
    found = survey.checks(CLUSTER, PLAN, facts, surveys, {**ways, **reached})
    return {one["check"]: one for one in found}


def test_hosts_that_are_fit_have_no_problem():
    found = checked()
    assert {one["result"] for one in found.values()} == {"ok"}
    assert found["hosts"]["found"].startswith("10 of 10 answer")


@pytest.mark.parametrize(
    ("check", "result", "change", "told"),
    [
        ("memory", "problem", {"node1": {"memory_mb": 300}}, "node1: 300 MiB of memory; its roles"),
        ("kernel", "problem", {"node1": {"lacks": ["overlay"]}}, "node1: kernel 6.1.0 has no over"),
        ("kernel", "problem", {"lb1": {"fixed": ["net/ipv4/a"]}}, "setting net.ipv4.a cannot be"),
        ("swap", "problem", {"node1": {"swap": True}}, "node1: swap is on"),
        ("swap", "ok", {"etcd1": {"swap": True}}, ""),
        ("SELinux", "problem", {"lb1": {"enforcing": True}}, "lb1: SELinux is enforcing"),
        ("SELinux", "ok", {"node1": {"enforcing": True}, "etcd1": {"enforcing": True}}, ""),
        ("other services", "warning", {"node1": {"running": ["crio"]}}, "node1: crio runs"),
        ("other services", "warning", {"lb1": {"running": ["firewalld"]}}, "firewall: firewalld"),
        ("names", "warning", {"salt": {"name": "no such name"}}, "salt: its own host name"),
        ("sources", "problem", {"node2": {"sources": {"m:80": "timed out"}}}, "node2: m:80, from"),
    ],
)
def test_each_problem_names_the_host_and_the_remedy(check, result, change, told):
    found = checked(change)
    assert found[check]["result"] == result
    assert any(told in problem for problem in found[check]["problems"]) or not told
    assert {name for name, one in found.items() if one["result"] != "ok"} <= {check}


def test_a_way_that_is_closed_is_told_from_both_ends():
    found = checked(etcd1=[["10.77.0.22", 2380, "filtered"], ["10.77.0.23", 2380, "open"]])
    (problem,) = found["reach"]["problems"]
    assert problem.startswith("etcd1 does not reach etcd2 (10.77.0.22) at port 2380/tcp (etcd): fi")


def test_ways_are_those_of_the_table():
    ways = survey.ways(CLUSTER)
    etcd = {address for _, address, port, _ in ways["master1"] if port == 2379}
    assert etcd == {"10.77.0.21", "10.77.0.22", "10.77.0.23"}
    assert not [way for way in ways["node1"] if way[2] in (2379, 2380, 10257)]
    # Not every node to every other one.
    assert {way[0] for way in ways["node1"] if way[2] == 10250} == set()
    assert {way[0] for way in ways["master1"] if way[2] == 10250} == {"node1", "node2"}
    # The virtual address may be nobody's yet: its balancers stand for it.
    assert {way[1] for way in ways["node1"] if way[2] == 8443} == {"10.77.0.11", "10.77.0.12"}
    assert ways["salt"] == [way for way in ways["salt"] if way[2] == 8443]


def test_a_host_that_does_not_answer_is_named():
    facts = {id_: fact(one.address) for id_, one in CLUSTER.hosts.items() if id_ != "node2"}
    found = survey.checks(CLUSTER, PLAN, facts, dict.fromkeys(facts, GOOD), {})
    assert found[0]["problems"][0].startswith("node2 (10.77.0.42) does not answer")


def test_a_host_that_answers_with_an_error_is_named_once_with_it():
    facts: dict[str, Any] = {id_: fact(one.address) for id_, one in CLUSTER.hosts.items()}
    facts["node2"] = "it is not available"
    surveys = {id_: GOOD if id_ != "etcd1" else "broken" for id_ in facts}
    found = survey.checks(CLUSTER, PLAN, facts, surveys, {})
    assert found[0]["problems"] == [
        "node2: it is not available; see /var/log/salt/minion there",
        "etcd1: broken; see /var/log/salt/minion there",
    ]


# --- on a host --------------------------------------------------------------------------------


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_listeners_are_found_and_end_by_themselves():
    port, other = free(), free()
    assert host.listen([["127.0.0.1", port]], seconds=2) == [["127.0.0.1", port]]
    # It is not heard twice, and what others have is left to them.
    assert host.listen([["127.0.0.1", port]], seconds=1) == []
    found = host.reach([["127.0.0.1", port], ["127.0.0.1", other]])
    assert found == sorted([["127.0.0.1", port, "open"], ["127.0.0.1", other, "refused"]])
    end = time.monotonic() + 10
    while host.reach([["127.0.0.1", port]])[0][2] == "open":
        assert time.monotonic() < end, "the listener did not end"
        time.sleep(0.1)


def test_a_host_takes_its_own_part_of_a_job(monkeypatch):
    monkeypatch.setattr(host, "__opts__", {"id": "a"}, raising=False)
    port = free()
    assert host.reach_as({"a": [["127.0.0.1", port]], "b": []}) == [["127.0.0.1", port, "refused"]]
    monkeypatch.setattr(host, "__opts__", {"id": "b"}, raising=False)
    assert host.reach_as({"a": [["127.0.0.1", port]]}) == []
    assert host.listen_as({"a": [["127.0.0.1", port]]}) == []


def test_this_host_can_be_surveyed(monkeypatch):
    view = {"roles": ["lb", "node"], "networks": {"kind": "routes"}, "artifacts": []}
    monkeypatch.setattr(host, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(host, "__grains__", {"osarch": "amd64", "saltversion": "1"}, raising=False)
    found = host.survey()
    assert set(found) == set(GOOD)
    assert found["memory_mb"] > 100


# --- the screen -------------------------------------------------------------------------------


def test_the_table_tells_problems_last(monkeypatch):
    monkeypatch.setattr(screen, "__opts__", {"color": False}, raising=False)
    data = runner.judged(
        [runner.file_check([], PLAN), *checked({"node1": {"swap": True}}).values()]
    )
    assert (data["problems"], data["warnings"], data["retcode"]) == (1, 0, 1)
    lines = screen.output(data).splitlines()
    assert lines[0].startswith("ok       cluster.yaml    lab, 10 hosts, kubernetes 1.36.2")
    assert "problem  swap            1 found, see below" in lines
    assert lines[-3].startswith("  ! node1: swap is on")
    assert lines[-1].startswith("Not ready: 1 of the checks failed")


def test_a_file_that_cannot_be_used_is_all_that_is_told():
    data = runner.judged([runner.file_check(["name: found nothing"], {})])
    assert data["retcode"] == 1 and data["checks"][0]["problems"] == ["name: found nothing"]
