"""indigo.status: from the hosts' reports to problems, a screen and an exit code."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from support import load

runner = load("_runners", "indigo")
screen = load("_output", "indigo_status")
host = load("_modules", "indigo_status")
kube = load("_modules", "indigo_kube")

PLAN = {
    "cluster": "lab",
    "versions": {"kubernetes": "1.20.2"},
    "vip": {"address": "10.0.0.9", "interface": "eth0"},
    "hosts": {
        "salt": {"address": "10.0.0.1", "roles": ["ca"], "name": "salt"},
        "lb1": {"address": "10.0.0.2", "roles": ["lb"], "name": "lb1"},
        "lb2": {"address": "10.0.0.3", "roles": ["lb"], "name": "lb2"},
        "e1": {"address": "10.0.0.4", "roles": ["etcd"], "name": "e1"},
        "m1": {"address": "10.0.0.5", "roles": ["master"], "name": "m1"},
        "m2": {"address": "10.0.0.6", "roles": ["master"], "name": "m2"},
        "N1": {"address": "10.0.0.7", "roles": ["node"], "name": "n1"},
    },
    "roles": {
        "ca": ["salt"],
        "lb": ["lb1", "lb2"],
        "etcd": ["e1"],
        "master": ["m1", "m2"],
        "node": ["N1"],
    },
}


def certificate(days: int | None = 300, problem: str | None = None) -> dict[str, Any]:
    return {"name": "x", "path": "/pki/x.crt", "days_left": days, "problem": problem}


def master() -> dict[str, Any]:
    return {
        "units": {"kube-apiserver": True},
        "certificates": [certificate()],
        "api": {"ok": True, "problem": ""},
        "tokens": {
            "set": {"fingerprint": "f1", "tokens": {"admin": "a1", "kubelet:n1": "k1"}},
            "tokens": {"admin": "a1"},
            "problems": [],
        },
        "kubernetes": {
            "nodes": {"n1": {"ready": True, "reason": "", "version": "v1.20.2", "cordoned": False}},
            "leaders": {"kube-scheduler": {"holder": "m1_x", "renewed_seconds_ago": 1}},
        },
    }


REPORTS: dict[str, Any] = {
    "salt": {"units": {}, "certificates": []},
    "lb1": {"units": {"haproxy": True, "keepalived": True}, "certificates": [], "vip": True},
    "lb2": {"units": {"haproxy": True, "keepalived": True}, "certificates": [], "vip": False},
    "e1": {
        "units": {"etcd": True},
        "certificates": [certificate(200)],
        "etcd": {"members": [{"name": "e1", "healthy": True, "leader": True, "db_size": 1}]},
    },
    "m1": master(),
    "m2": master(),
    "N1": {
        "units": {"kubelet": True},
        "certificates": [certificate()],
        "tokens": {"set": None, "tokens": {"kubelet:n1": "k1"}, "problems": []},
    },
}


def assess(change: Callable[[dict[str, Any]], Any] = lambda reports: None) -> dict[str, Any]:
    reports = copy.deepcopy(REPORTS)
    change(reports)
    data = runner.assess(PLAN, reports)
    json.dumps(data)  # `--out json` must print it
    return data


def test_a_whole_cluster_has_no_problem():
    data = assess()
    assert data["problems"] == [] and data["retcode"] == 0
    assert data["vip"]["holders"] == ["lb1"]
    assert data["etcd"]["leader"] == "e1"
    assert data["certificates"]["first"] == {"days_left": 200, "host": "e1", "path": "/pki/x.crt"}


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(reports: dict[str, Any]) -> None:
        for key in keys[:-1]:
            reports = reports[key]
        reports[keys[-1]] = value

    return change


def both_masters(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(reports: dict[str, Any]) -> None:
        for id_ in ("m1", "m2"):
            put(id_, *keys, value=value)(reports)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r.pop("N1"), ["N1 (10.0.0.7) does not answer"]),
        (put("N1", value="Traceback: boom"), ["N1: Traceback: boom"]),
        (put("lb2", "units", "haproxy", value=False), ["lb2: haproxy does not run"]),
        (put("lb1", "vip", value=False), ["vip: no load balancer holds 10.0.0.9"]),
        (put("lb2", "vip", value=True), ["vip: lb1, lb2 hold 10.0.0.9 at once"]),
        (put("e1", "etcd", value={"problem": "dead"}), ["etcd on e1: dead", "etcd: no member"]),
        (
            put("e1", "etcd", "members", value=[{"name": "e1", "healthy": False, "leader": False}]),
            ["etcd member e1 is not healthy", "etcd has no leader"],
        ),
        (
            put("m2", "api", value={"ok": False, "problem": "refused"}),
            ["API server on m2: refused"],
        ),
        (both_masters("kubernetes", "nodes", value={}), ["node n1 is not registered"]),
        (
            both_masters("kubernetes", "nodes", "n1", value={"ready": False, "reason": "Down"}),
            ["node n1 is not ready (Down)"],
        ),
        (
            both_masters(
                "kubernetes",
                "leaders",
                value={"kube-scheduler": {"holder": "m1", "renewed_seconds_ago": 90}},
            ),
            ["kube-scheduler: nobody leads"],
        ),
        (
            both_masters("kubernetes", value={"problem": "no route"}),
            ["Kubernetes through the VIP: no route"],
        ),
        (put("e1", "certificates", value=[certificate(3)]), ["e1 /pki/x.crt expires in 3 days"]),
        (
            put("e1", "certificates", value=[certificate(None, "it is missing")]),
            ["e1 /pki/x.crt: it is missing"],
        ),
        (
            put("m2", "tokens", "set", "fingerprint", value="f2"),
            ["masters hold different tokens (m1 / m2)"],
        ),
        (
            put("m2", "tokens", value={"set": None, "damaged": "no JSON", "tokens": {}}),
            ["m2 has no usable token set (no JSON)"],
        ),
        (
            put("N1", "tokens", "tokens", "kubelet:n1", value="other"),
            ["N1: its token for kubelet:n1 is not the masters'"],
        ),
        (put("N1", "tokens", "problems", value=["/t: mode 0644"]), ["N1: /t: mode 0644"]),
    ],
)
def test_every_problem_is_told_and_fails_the_command(change, expected):
    data = assess(change)
    assert len(data["problems"]) == len(expected), data["problems"]
    for found, start in zip(data["problems"], expected, strict=True):
        assert found.startswith(start)
    assert data["retcode"] == 1


def test_nobody_answers():
    data = runner.assess(PLAN, {})
    assert data["retcode"] == 1
    assert {f"{id_} " for id_ in PLAN["hosts"]} <= {p.split("(")[0] for p in data["problems"]}


def test_the_screen_tells_problems_first(monkeypatch):
    monkeypatch.setattr(screen, "__opts__", {"color": False}, raising=False)
    lines = screen.output(assess(lambda r: r.pop("N1"))).splitlines()
    assert lines[0] == "lab: Kubernetes 1.20.2, 1 problem"
    assert lines[1].startswith("  ! N1 (10.0.0.7) does not answer")
    assert any("N1" in line and "no answer" in line for line in lines[2:])
    assert "  VIP           10.0.0.9 on lb1" in lines
    whole = screen.output({"data": assess()}).splitlines()
    assert whole[0] == "lab: Kubernetes 1.20.2, all is well"


def test_one_dead_part_does_not_hide_a_hosts_other_parts(monkeypatch):
    def dead():
        raise CommandExecutionError("etcdctl: timeout")

    functions = {
        "indigo_service.active": lambda unit: unit == "etcd",
        "indigo_pki.status": lambda: [certificate()],
        "indigo_etcd.status": dead,
    }
    monkeypatch.setattr(host, "__salt__", functions, raising=False)
    monkeypatch.setattr(host, "__pillar__", {"indigo": {"roles": ["etcd"]}}, raising=False)
    found = host.report()
    assert found["units"] == {"etcd": True}
    assert found["etcd"] == {"problem": "etcdctl: timeout"}
    assert found["certificates"] == [certificate()]


# --- the API as a master sees it ---------------------------------------------------------------

NODE = {
    "metadata": {"name": "n1"},
    "spec": {"unschedulable": True},
    "status": {
        "conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady"}],
        "nodeInfo": {"kubeletVersion": "v1.20.2"},
    },
}


def test_nodes_are_summed_up():
    assert kube.summary(NODE) == {
        "ready": False,
        "reason": "KubeletNotReady",
        "version": "v1.20.2",
        "cordoned": True,
    }
    assert kube.not_ready(["n1", "n2"], [NODE]) == {
        "n1": "KubeletNotReady",
        "n2": "not registered",
    }


def test_the_age_of_a_lease():
    lease = {"spec": {"holderIdentity": "m1", "renewTime": "2026-01-02T03:04:05.678901Z"}}
    now = 1767323045 + 7
    assert kube.leader(lease, now) == {"holder": "m1", "renewed_seconds_ago": 7}
    assert kube.leader({}, now) == {"holder": None, "renewed_seconds_ago": None}


def test_waiting_goes_on_over_errors_and_tells_the_last(monkeypatch):
    answers = [CommandExecutionError("refused"), {"items": []}, {"items": [ready_node()]}]

    def get(path):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(kube, "get", get)
    assert kube.wait_ready(["n1"], timeout=5, interval=0)["ready"] == ["n1"]
    answers[:] = [CommandExecutionError("refused")] * 50
    late = kube.wait_ready(["n1"], timeout=0, interval=0)
    assert late["missing"] == {"n1": "not registered"} and late["problem"] == "refused"


def ready_node() -> dict[str, Any]:
    node = copy.deepcopy(NODE)
    node["status"]["conditions"] = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
    return node
