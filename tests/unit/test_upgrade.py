"""An upgrade: which version may follow on which, who comes when, and how a stage stops."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
from indigo_model import upgrade
from salt.exceptions import CommandExecutionError
from support import asking, load

STATES = load("_states", "indigo_upgrade")
MODULE = load("_modules", "indigo_upgrade")

TARGET = {"kubernetes": "1.24.9", "etcd": "3.5.30", "containerd": "1.7.34"}


@pytest.mark.parametrize("module", [upgrade, STATES, MODULE])
def test_the_examples_in_the_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


# --- which version may follow -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "running", "agreed", "says"),
    [
        # One minor at a time; patches as one likes, also back.
        ("3.5.30", ["3.4.23", "3.4.23"], "3.4.0", None),
        ("3.5.30", ["3.5.30", "3.4.23"], "3.4.0", None),
        ("3.5.9", ["3.5.30", "3.5.30"], "3.5.0", None),
        ("3.6.14", ["3.4.23"], "3.4.0", "one minor at a time: declare a release of 3.5 first"),
        ("3.6.14", ["3.6.14", "3.4.23"], "3.4.0", "one minor at a time"),
        # What upstream asks of the members before 3.6.
        ("3.6.14", ["3.5.30", "3.5.16"], "3.5.0", "b runs etcd 3.5.16, declared is 3.6.14; that "
         "wants 3.5.26 or newer"),
        ("3.6.14", ["3.5.30", "3.5.26"], "3.5.0", None),
        ("3.5.2", ["3.4.23"], "3.4.0", "not to be used: it may lose the consistency"),
        ("3.5.2", ["3.5.2"], "3.5.0", None),
        # Back: only until the members agree on the new minor.
        ("3.4.23", ["3.5.30", "3.4.23"], "3.4.0", None),
        ("3.4.23", ["3.5.30", "3.4.23"], "3.5.0", "no way leads back"),
        ("3.4.23", ["3.5.30", "3.5.30"], "3.4.0", "no way leads back"),
    ],
)  # fmt: skip
def test_etcds_next_version(target, running, agreed, says):
    found = upgrade.skew(
        {**TARGET, "etcd": target}, {"etcd": dict(zip("abc", running, strict=False))}, agreed
    )
    assert len(found) == bool(says), found
    assert says is None or says in found[0]


@pytest.mark.parametrize(
    ("target", "masters", "kubelets", "says"),
    [
        ("1.24.9", ["1.23.1", "1.23.1"], ["1.23.1"], None),
        ("1.24.9", ["1.24.9", "1.23.1"], ["1.23.1"], None),
        ("1.24.1", ["1.24.9", "1.24.9"], ["1.24.9"], None),
        ("1.25.0", ["1.23.1"], ["1.23.1"], "one minor at a time: declare a release of 1.24 first"),
        ("1.23.1", ["1.24.9", "1.24.9"], ["1.23.1"], "never back by a minor once all API servers"),
        # One that had begun goes back while no node has followed.
        ("1.23.1", ["1.24.9", "1.23.1"], ["1.23.1"], None),
        ("1.23.1", ["1.24.9", "1.23.1"], ["1.24.9"], "kubelet 1.24.9, declared is 1.23.1; nothing "
         "on a node may be newer"),
        # Kubelets may be two minors behind, from 1.25 on three.
        ("1.24.9", ["1.23.1"], ["1.22.0"], None),
        ("1.24.9", ["1.23.1"], ["1.21.0"], "2 minors older than the API servers at most: declare "
         "a release of 1.23"),
        ("1.28.0", ["1.27.0"], ["1.25.0"], None),
        ("1.29.0", ["1.28.0"], ["1.25.0"], "3 minors older"),
    ],
)  # fmt: skip
def test_kubernetes_next_version(target, masters, kubelets, says):
    running = {
        "kube-apiserver": dict(zip("mn", masters, strict=False)),
        "kubelet": {f"k{number}": version for number, version in enumerate(kubelets)},
    }
    found = upgrade.skew({**TARGET, "kubernetes": target}, running)
    assert len(found) == bool(says), found
    assert says is None or says in found[0]


def test_controllers_must_not_be_two_minors_behind():
    running = {"kube-apiserver": {"m": "1.23.0"}, "kube-scheduler": {"m": "1.22.0"}}
    (found,) = upgrade.skew({**TARGET, "kubernetes": "1.24.9"}, running)
    assert "m runs kube-scheduler 1.22.0" in found


def test_every_removal_is_found_on_the_way_over_it_and_only_there():
    for one in upgrade.REMOVALS:
        assert one in upgrade.removals(one.minor - 1, one.minor)
        assert one not in upgrade.removals(one.minor, one.minor + 1)
    assert {one.minor for one in upgrade.REMOVALS} == {22, 25, 26, 27, 29, 32}


# --- who comes when ---------------------------------------------------------------------------


def fact(units: str, leads: tuple[str, ...] = (), **versions: str) -> dict[str, Any]:
    return {
        "units": dict.fromkeys(units.split(), True),
        "versions": {unit.replace("_", "-"): version for unit, version in versions.items()},
        "problems": {},
        "agreed": None,
        "leads": list(leads),
    }


def pending(*pairs: tuple[str, str]) -> dict[str, Any]:
    """What a preview returns: (SLS, unit that would restart or nothing)."""
    return {
        (
            f"indigo_service_|-{sls}_|-{unit}_|-running" if unit else f"file_|-{sls}_|-/x_|-managed"
        ): {
            "result": None,
            "__sls__": sls,
        }
        for sls, unit in pairs
    }


PLAN = {
    "hosts": {id_: {"name": id_.lower()} for id_ in ("a", "b", "c", "M", "n1", "n2", "n3")},
    "roles": {"etcd": ["a", "b", "c"], "lb": [], "master": ["M"], "node": ["n1", "n2", "n3"]},
    "versions": {"kubernetes": "1.24.9", "etcd": "3.5.30", "containerd": "1.7.34"},
    "upgrade": {"batch": 2, "drain": 300},
}
FACTS = {
    "a": fact("etcd", ("etcd",), etcd="3.4.23"),
    "b": fact("etcd", etcd="3.4.23"),
    "c": fact("etcd", etcd="3.4.23"),
    "M": fact("kube-apiserver", kube_apiserver="1.23.1"),
    **{f"n{number}": fact("kubelet", kubelet="1.23.1") for number in (1, 2, 3)},
}
NODES = {f"n{number}": {"ready": True, "reason": ""} for number in (1, 2, 3)}
PREVIEWS = {
    **{id_: pending(("etcd.configured", ""), ("etcd.running", "etcd")) for id_ in "abc"},
    "M": pending(("master.started", "kube-apiserver"), ("master.running", "kube-scheduler")),
    "n1": pending(("node.started", "kubelet")),
    "n2": pending(("node.started", "kube-proxy")),
    "n3": pending(("node.containerd", "containerd")),
}


def stages(course: dict[str, Any]) -> dict[str, list[list[str]]]:
    return {stage["name"]: stage["batches"] for stage in course["stages"]}


def test_the_course_of_an_upgrade():
    found = upgrade.course(PLAN, FACTS, NODES, PREVIEWS)
    assert found["problems"] == []
    assert stages(found) == {
        "etcd": [["b"], ["c"], ["a"]],
        "lb": [],
        "api": [["M"]],
        "controllers": [["M"]],
        "node": [["n1", "n2"], ["n3"]],
    }
    # A restart of kube-proxy takes no pod away.
    assert found["stages"][-1]["disturbed"] == ["n1", "n3"]
    assert found["old"] == {"etcd": "3.4.23", "kubernetes": "1.23.1"}
    assert (found["removals"], found["until"]) == ([], 24)


def test_what_a_stopped_run_left_is_done_first_where_it_stopped():
    facts = {**FACTS, "b": {**fact("", etcd="3.5.30"), "units": {"etcd": False}}}
    found = upgrade.course(PLAN, facts, NODES, PREVIEWS)
    assert found["problems"] == []
    assert stages(found)["etcd"] == [["b"], ["c"], ["a"]]
    # On a host of a later stage it would get the new version before its turn.
    nodes = {**NODES, "n2": {"ready": False, "reason": "KubeletNotReady"}}
    (problem,) = upgrade.course(PLAN, FACTS, nodes, PREVIEWS)["problems"]
    assert problem.startswith("n2: the node is not ready: KubeletNotReady; mend it with the old")
    # Where the nodes are all that is left, the sick one comes first and alone.
    rest = {id_: PREVIEWS[id_] for id_ in ("n1", "n2", "n3")}
    found = upgrade.course(PLAN, FACTS, nodes, rest)
    assert found["problems"] == []
    assert stages(found)["node"] == [["n2"], ["n1", "n3"]]


def test_a_cluster_that_does_not_run_is_not_upgraded():
    facts = {id_: {**fact(""), "units": {"etcd": False}} for id_ in FACTS}
    found = upgrade.course(PLAN, facts, {}, PREVIEWS)
    assert found["problems"] == ["nothing runs on any host: run indigo.deploy"]


def test_nothing_to_do():
    found = upgrade.course(PLAN, FACTS, NODES, {})
    assert not any(stages(found).values())


# --- the steps --------------------------------------------------------------------------------


class Cluster:
    """Minions' answers by function, and what was asked of whom."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: bool = False) -> None:
        self.events: list[Any] = []
        self.broken: set[str] = set()
        self.nodes: dict[str, Any] = {
            name: {"ready": True, "reason": "", "cordoned": False, "ours": False} for name in NODES
        }
        self.held: dict[str, Any] = {}
        self.full = ""
        course = {**upgrade.course(PLAN, FACTS, NODES, PREVIEWS), "plan": PLAN}
        functions = {
            **asking(self.ask),
            "indigo_model.upgrade_wrong": upgrade.wrong_versions,
            "indigo_model.upgrade_back": upgrade.way_back,
        }
        for name, value in {
            "__salt__": functions,
            "__opts__": {"test": test, "cachedir": str(tmp_path)},
            "__context__": {STATES.RUN: course},
            "__states__": {"salt.state": self.state},
        }.items():
            monkeypatch.setattr(STATES, name, value, raising=False)

    def ask(self, hosts, function, arg=(), kwarg=None):
        name = function.split(".")[-1]
        if name == "facts":
            target = PLAN["versions"]
            return {
                id_: fact("", **{unit: target[upgrade.PARTS[unit.replace("_", "-")]] for unit in
                    ("etcd", "kube_apiserver", "kube_controller_manager", "kube_scheduler",
                     "containerd", "kubelet", "kube_proxy")})
                for id_ in hosts
            }  # fmt: skip
        if name in ("enter", "leave"):
            self.events.append((name, *kwarg["names"]))
            for node in kwarg["names"]:
                was = self.nodes[node]
                self.nodes[node] = {**was, "cordoned": name == "enter", "ours": name == "enter"}
            said = {"evicted": ["x/y"], "held": self.full}
            return {hosts[0]: said if name == "enter" else kwarg["names"]}
        answers = {
            "nodes": self.nodes,
            "wait_ready": {"missing": {}, "problem": None},
            "holders": self.held,
        }
        return {hosts[0]: answers[name]}

    def state(self, name, tgt, tgt_type, sls, queue):
        assert (tgt_type, queue) == ("list", True)
        self.events.append((*sls, *tgt))
        bad = bool(self.broken & {*tgt})
        states = {
            id_: {"x_|-y_|-z_|-run": {"__id__": "it serves", "result": id_ not in self.broken,
                                      "comment": "no answer", "changes": {"a": 1}}}
            for id_ in tgt
        }  # fmt: skip
        changes = {"out": "highstate", "ret": states}
        return {
            "result": not bad,
            "changes": changes,
            "comment": "",
            "__jid__": str(len(self.events)),
        }


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return lambda test=False: Cluster(tmp_path, monkeypatch, test)


def test_members_come_one_by_one(cluster):
    one = cluster()
    ret = STATES.stage("step", "etcd")
    assert ret["result"] is True
    assert one.events == [("etcd", "b"), ("etcd", "c"), ("etcd", "a")]
    assert ret["__jobs__"] == ["1", "2", "3"]
    assert set(ret["changes"]["ret"]) == {"a", "b", "c"}


def test_nodes_are_emptied_and_come_back_batch_by_batch(cluster):
    one = cluster()
    assert STATES.stage("step", "node")["result"] is True
    assert one.events == [
        ("enter", "n1"), ("node", "n1", "n2"), ("leave", "n1", "n2"),
        ("enter", "n3"), ("node", "n3"), ("leave", "n3"),
    ]  # fmt: skip


def test_a_stage_stops_at_the_first_sick_host_and_says_how_to_go_on(cluster):
    one = cluster()
    one.broken = {"c"}
    ret = STATES.stage("step", "etcd")
    assert ret["result"] is False
    assert one.events == [("etcd", "b"), ("etcd", "c")]
    assert ret["comment"].splitlines() == [
        "Stopped at c. c: it serves: no answer",
        "Through before it: b; not touched: a.",
        "On: mend c, or correct cluster.yaml, and run salt-run state.orchestrate indigo.upgrade "
        "again; it goes on here.",
        "Back: declare etcd: 3.4.23, kubernetes: 1.23.1 again, and run this again.",
    ]


def test_a_node_that_cannot_be_emptied_stops_the_stage_at_once(cluster):
    one = cluster()
    one.full = "n1 is not empty after 20 s. x/y: The disruption budget z"
    ret = STATES.stage("step", "node")
    assert ret["result"] is False
    # Nobody asks another master to wait for the same once more, and nothing is restarted.
    assert one.events == [("enter", "n1")]
    assert ret["comment"].splitlines()[:3] == [
        "Stopped at n1, n2. n1 is not empty after 20 s. x/y: The disruption budget z",
        "Through before it: none; not touched: n3.",
        "On: nothing was restarted on n1, n2; see to what held the pods, and run salt-run "
        "state.orchestrate indigo.upgrade again; it goes on here.",
    ]


def test_a_host_that_runs_another_version_than_declared_counts_as_sick(cluster, monkeypatch):
    one = cluster()
    monkeypatch.setattr(one, "ask", lambda hosts, *_, **__: {h: FACTS[h] for h in hosts})
    STATES.__salt__ |= asking(one.ask)
    ret = STATES.stage("step", "etcd")
    assert ret["result"] is False
    assert "b: etcd 3.4.23 runs, declared is 3.5.30" in ret["comment"]


def test_a_node_that_does_not_come_back_stays_cordoned_and_that_is_told(cluster):
    one = cluster()
    one.broken = {"n1"}
    assert STATES.stage("step", "node")["result"] is False
    # Kubernetes does not know it yet.
    assert one.nodes["n1"]["ready"]
    ret = STATES.left("step")
    assert ret["result"] is False
    assert "n1 stays cordoned, for it did not come through" in ret["comment"]
    assert "indigo.uncordon host=n1" in ret["comment"]
    one.nodes["n3"].update(cordoned=True, ours=True, ready=False, reason="NodeStatusUnknown")
    ret = STATES.left("step")
    assert "n3 stays cordoned, for it is not ready (NodeStatusUnknown)" in ret["comment"]


def test_what_a_killed_run_cordoned_takes_pods_again(cluster):
    one = cluster()
    one.nodes["n2"].update(cordoned=True, ours=True)
    one.nodes["n3"].update(cordoned=True)
    ret = STATES.left("step")
    assert ret["result"] is True
    assert ret["changes"] == {"n2": {"old": "cordoned", "new": "takes pods"}}
    assert "cordoned by somebody else: n3" in ret["comment"]
    assert STATES.left("step")["changes"] == {}


def test_a_lock_that_is_held_is_told(cluster):
    cluster().held["etcd"] = [{"host": "b", "since": 0}]
    ret = STATES.left("step")
    assert ret["result"] is False
    assert "the lock of etcd is held by b" in ret["comment"]


def test_a_paused_upgrade_waits_before_the_next_host(cluster, tmp_path, monkeypatch):
    one = cluster()
    file = tmp_path / "indigo" / "upgrade.paused"
    file.parent.mkdir()
    file.touch()
    waits: list[Any] = []

    def sleep(seconds):
        waits.append(list(one.events))
        if len(waits) == 3:
            file.unlink()

    monkeypatch.setattr(STATES.time, "sleep", sleep)
    assert STATES.stage("step", "etcd")["result"] is True
    assert waits == [[], [], []]


@pytest.mark.parametrize("stage", list(upgrade.STAGES))
def test_the_preview_of_a_stage_touches_nobody(cluster, stage):
    one = cluster(test=True)
    ret = STATES.stage("step", stage)
    assert ret["result"] is (True if stage == "lb" else None)
    assert one.events == [] and ret["changes"] == {}


def test_apis_that_go_stop_an_upgrade_unless_they_are_accepted(cluster, monkeypatch):
    cluster()
    course = {**upgrade.course(PLAN, FACTS, NODES, {}), "until": 25}
    course["removals"] = [{"minor": 25}]
    gone = {"requested": ["batch/v1beta1 cronjobs"], "objects": {}}
    answers = {
        "indigo_upgrade.facts": FACTS, "indigo_upgrade.nodes": {"M": {}},
        "indigo_upgrade.removed": {"M": gone}, "state.sls": {},
    }  # fmt: skip
    STATES.__salt__ |= {
        "indigo_model.plan": lambda: PLAN,
        "indigo_model.upgrade_course": lambda *_: dict(course),
        **asking(lambda hosts, function, **_: answers[function]),
    }
    STATES.__context__[STATES.DIFFERS] = dict.fromkeys(PLAN["hosts"], "")
    ret = STATES.allowed("step")
    assert ret["result"] is False
    assert "Kubernetes 1.25 does not serve batch/v1beta1 cronjobs" in ret["comment"]
    ret = STATES.allowed("step", removed_apis="accepted")
    assert ret["result"] is True
    assert "Accepted: batch/v1beta1 cronjobs" in ret["comment"]


# --- a node leaves and comes back ---------------------------------------------------------------


class Api:
    """Nodes of an API, and a drain that may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.nodes: dict[str, Any] = {name: {"cordoned": False, "mark": None} for name in names}
        self.drained: list[tuple[str, float]] = []
        self.stuck: set[str] = set()
        functions = {
            "indigo_kube.get": lambda _: {"items": [self.item(name) for name in self.nodes]},
            "indigo_kube.summary": lambda node: {
                "ready": True,
                "cordoned": bool(node["spec"].get("unschedulable")),
            },
            "indigo_kube.request": self.request,
            "indigo_drain.drain": self.drain,
        }
        monkeypatch.setattr(MODULE, "__salt__", functions, raising=False)

    def item(self, name):
        node = self.nodes[name]
        marks = {MODULE.MARK: node["mark"]} if node["mark"] else {}
        spec = {"unschedulable": True} if node["cordoned"] else {}
        return {"metadata": {"name": name, "annotations": marks}, "spec": spec}

    def request(self, method, path, body, content):
        name = path.rsplit("/", 1)[-1]
        mark = body["metadata"]["annotations"][MODULE.MARK]
        self.nodes[name] = {"cordoned": bool(body["spec"]["unschedulable"]), "mark": mark}
        return {"status": 200, "body": {}}

    def drain(self, name, deadline, force):
        self.drained.append((name, deadline))
        assert self.nodes[name]["cordoned"]
        if name in self.stuck or not deadline:
            raise CommandExecutionError(f"{name} is not empty")
        return {"evicted": [f"x/{name}"], "cordoned": False}


def test_nodes_of_a_batch_are_cordoned_before_the_first_pod_goes(monkeypatch):
    api = Api(monkeypatch, "a", "b", "c")
    assert MODULE.enter(["a", "b"], 30) == {
        "evicted": ["x/a", "x/b"], "cordoned": ["a", "b"], "held": "",
    }  # fmt: skip
    assert api.drained == [("a", 0), ("b", 0), ("a", 30), ("b", 30)]
    assert MODULE.leave(["a", "b", "c"]) == ["a", "b"]
    assert not any(node["cordoned"] or node["mark"] for node in api.nodes.values())


def test_a_batch_of_which_one_is_not_emptied_takes_pods_as_before(monkeypatch):
    api = Api(monkeypatch, "a", "b", "c")
    api.stuck = {"b"}
    # Somebody's own: it is as it was in the end.
    api.nodes["c"]["cordoned"] = True
    assert MODULE.enter(["a", "b", "c"], 30)["held"] == "b is not empty"
    assert {name: node["cordoned"] for name, node in api.nodes.items()} == {
        "a": False, "b": False, "c": True,
    }  # fmt: skip


def test_objects_of_removed_apis_are_found_with_who_wrote_them(monkeypatch):
    Api(monkeypatch)
    metrics = (
        'apiserver_requested_deprecated_apis{group="extensions",removed_release="1.22",'
        'resource="ingresses",subresource="",version="v1beta1"} 1\n'
        'apiserver_requested_deprecated_apis{group="policy",removed_release="1.25",'
        'resource="podsecuritypolicies",subresource="",version="v1beta1"} 1\n'
        'apiserver_requested_deprecated_apis{group="batch",removed_release="1.25",'
        'resource="cronjobs",subresource="",version="v1beta1"} 1\n'
    )

    def item(name, *fields):
        managed = [{"manager": who, "apiVersion": api} for who, api in fields]
        return {"metadata": {"name": name, "namespace": "x", "managedFields": managed}}

    pages = {
        "/apis/batch/v1/cronjobs?limit=500": ([
            item("old", ("helm", "batch/v1beta1"), ("me", "batch/v1")),
            item("system", ("kube-controller-manager", "batch/v1beta1")),
            item("addon", ("indigo", "batch/v1beta1")),
        ], "next"),
        "/apis/batch/v1/cronjobs?limit=500&continue=next": ([item("new", ("me", "batch/v1"))], ""),
        "/apis/policy/v1beta1/podsecuritypolicies?limit=500": ([item("strict")], ""),
    }  # fmt: skip

    def request(method, path):
        items, more = pages[path]
        return {"status": 200, "body": {"items": items, "metadata": {"continue": more}}}

    MODULE.__salt__ |= {"indigo_kube.request": request, "indigo_kube.text": lambda *_: metrics}
    view = {"components": {"kube-apiserver": {"url": "https://m:6443"}}}
    monkeypatch.setattr(MODULE, "__pillar__", {"indigo": view}, raising=False)
    rows = [
        {"group": "batch", "version": "v1beta1", "resources": ["cronjobs"],
         "instead": "batch/v1", "stored": True},
        {"group": "events.k8s.io", "version": "v1beta1", "resources": ["events"],
         "instead": "events.k8s.io/v1", "stored": False},
        {"group": "policy", "version": "v1beta1", "resources": ["podsecuritypolicies"],
         "instead": "", "stored": True},
    ]  # fmt: skip
    found = MODULE.removed(rows, 25)
    assert found == {
        "requested": ["batch/v1beta1 cronjobs"],
        "objects": {
            "batch/v1beta1 cronjobs": {"x/old": ["helm"]},
            "policy/v1beta1 podsecuritypolicies": {"strict": []},
        },
    }
