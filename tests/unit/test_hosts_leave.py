"""Who may leave the cluster, who may be replaced, and what a person is told when not."""

from __future__ import annotations

import copy
import subprocess
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from support import load

hosts = load("_runners", "indigo_hosts")
etcd = load("_modules", "indigo_etcd")
drain = load("_modules", "indigo_drain")

ROLES = {
    "salt": ["ca"],
    "lb1": ["lb"],
    "lb2": ["lb"],
    "etcd1": ["etcd"],
    "etcd2": ["etcd"],
    "etcd3": ["etcd"],
    "master1": ["master"],
    "master2": ["master"],
    "node1": ["node"],
    "node2": ["node"],
}


def made(roles: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "hosts": {
            id_: {"address": f"10.0.0.{number}", "name": id_, "roles": ones, "digest": "d"}
            for number, (id_, ones) in enumerate(roles.items(), 1)
        },
        "roles": {
            role: [id_ for id_, ones in roles.items() if role in ones]
            for role in ("ca", "lb", "etcd", "master", "node")
        },
    }


PLAN = made(ROLES)
UNITS = {"lb": ["haproxy", "keepalived"], "etcd": ["etcd"], "master": ["kube-apiserver"]}


def rows(*sick: str, names: tuple[str, ...] = ("etcd1", "etcd2", "etcd3"), learner: str = ""):
    return [
        {"name": name, "healthy": name not in sick, "learner": name == learner} for name in names
    ]


def reports(*silent: str, sick: tuple[str, ...] = (), plan: dict[str, Any] = PLAN) -> dict:
    """What all hosts say when all is well, but for those that are silent or sick."""
    found: dict[str, Any] = {}
    for id_, host in plan["hosts"].items():
        one: dict[str, Any] = {
            "units": {unit: True for role in host["roles"] for unit in UNITS.get(role, [])}
        }
        if "etcd" in host["roles"]:
            one["etcd"] = {"members": rows(*silent, *sick, names=tuple(plan["roles"]["etcd"]))}
        if "master" in host["roles"]:
            one["api"] = {"ok": id_ not in sick}
            one["tokens"] = {
                "set": {"lineage": "l", "generation": 3, "fingerprint": "f"},
                "tokens": {"admin": "x"},
            }
        found[id_] = one
    return {id_: one for id_, one in found.items() if id_ not in silent}


def refusals(*leaving: str, said: dict | None = None, plan: dict = PLAN, **kwargs: Any):
    given = reports(plan=plan) if said is None else said
    return hosts._refusals(plan, leaving, given, etcd.loss, **kwargs)


@pytest.mark.parametrize("leaving", ["lb1", "etcd3", "master1", "node2", "etcd1"])
def test_one_of_several_that_are_well_may_go(leaving):
    assert refusals(leaving) == []


@pytest.mark.parametrize(
    ("leaving", "expected"),
    [
        (["salt"], "salt: it holds the certificate authorities"),
        (["lb1", "lb2"], "lb1: it is the last load balancer"),
        (["master1", "master2"], "master1: it is the last master"),
        (["etcd1", "etcd2", "etcd3"], "etcd1: it is etcd's only member"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_the_last_of_its_kind_stays_whatever_is_said(leaving, expected, force):
    (told, *_) = refusals(*leaving, force=force)
    assert told.startswith(expected)


def test_a_silent_host_goes_only_when_it_is_off_for_good():
    said = reports("node2")
    (told,) = refusals("node2", said=said)
    assert told.startswith("node2 does not answer (silence)")
    assert "force=True" in told
    assert refusals("node2", said=said, force=True) == []
    assert refusals("node2", said=said, gone=["node2"]) == []


def test_the_living_keep_their_quorum_also_against_force():
    said = reports("etcd3")
    assert refusals("etcd3", said=said, force=True) == []
    (told,) = refusals("etcd1", said=said, force=True)
    assert told == (
        "etcd1 must not leave etcd: of the 2 members left 1 is healthy, a quorum takes 2. "
        "Mend etcd3 first"
    )


def test_members_that_go_together_are_counted_one_after_the_other():
    five = made({**ROLES, "etcd4": ["etcd"], "etcd5": ["etcd"]})
    assert refusals("etcd4", "etcd5", plan=five) == []
    said = reports("etcd5", plan=five)
    # The dead first, then a living one: of three left all live.
    assert refusals("etcd5", "etcd4", said=said, plan=five, force=True) == []
    said = reports("etcd4", "etcd5", plan=five)
    assert (
        "of the 4 members left 2 are healthy"
        in refusals("etcd3", said=said, plan=five, force=True)[0]
    )


def test_without_a_quorum_nobody_leaves_etcd():
    said = reports()
    for id_ in ("etcd1", "etcd2", "etcd3"):
        said[id_]["etcd"] = {"problem": "etcd has no quorum"}
    (told,) = refusals("etcd2", said=said)
    assert "etcd1: etcd has no quorum" in told


def test_the_only_copy_of_the_keys_stays():
    said = reports()
    said["master2"]["tokens"] = {"set": None}
    assert "the only copy" in refusals("master1", said=said, force=True)[0]
    # An older copy of the same set lacks tokens; one of another origin lacks the keys.
    for field, value in (("generation", 2), ("lineage", "other")):
        said = reports()
        said["master2"]["tokens"]["set"][field] = value
        assert "the only copy" in refusals("master1", said=said)[0]
    # The dead cannot say what they had: any copy will do.
    assert refusals("master1", said=reports("master1"), force=True) == []
    assert "the only copy" in refusals("master1", said=reports("master1", "master2"), force=True)[0]


def test_a_master_goes_only_while_another_one_serves():
    (told,) = refusals("master1", said=reports(sick=("master2",)))
    assert told.startswith("no API server serves on the masters that stay (master2)")


def test_a_load_balancer_goes_only_while_another_one_runs():
    said = reports()
    said["lb2"]["units"]["keepalived"] = False
    assert "nobody would take the API's address" in refusals("lb1", said=said)[0]


def test_who_must_learn_of_it_must_answer():
    said = reports("master2")
    (told,) = refusals("node1", said=said)
    assert told.startswith("master2 does not answer, and it must learn of this")
    assert refusals("node1", said=said, force=True) == []
    assert refusals("node1", said=reports("lb1", "node2")) == []


def test_who_must_learn_of_it_follows_from_the_roles():
    assert hosts._told(PLAN, ["lb1"]) == ["lb2"]
    assert hosts._told(PLAN, ["etcd1"]) == ["master1", "master2"]
    assert hosts._told(PLAN, ["master1"]) == ["lb1", "lb2", "master2"]
    assert hosts._told(PLAN, ["node1"]) == ["master1", "master2"]
    now = copy.deepcopy(PLAN)
    del now["hosts"]["lb1"]
    now["hosts"]["salt"]["digest"] = "other"
    before = {id_: one["digest"] for id_, one in PLAN["hosts"].items()}
    assert hosts._changed(PLAN, ["lb1"], {"lb1": {"before": before}}, now) == ["salt", "lb2"]


def test_a_host_that_left_the_plan_is_put_back_to_finish_its_removal():
    record = {"address": "10.0.0.9", "roles": ["etcd"], "name": "etcd3"}
    rest = made({id_: roles for id_, roles in ROLES.items() if id_ != "etcd3"})
    whole = hosts._with(rest, {"etcd3": record})
    assert whole["roles"]["etcd"] == ["etcd1", "etcd2", "etcd3"]
    assert whole["hosts"]["etcd3"] == record
    assert "etcd3" not in rest["hosts"]


def test_the_preview_says_the_steps_in_order():
    steps = hosts._steps(PLAN, ["node2"], ["node2"])
    assert steps[0] == "node2: cordon it and evict its pods"
    assert steps[-1] == "node2: its Salt key, mine and cached data are deleted"
    assert "node2: delete its pods, as it is off" in hosts._steps(PLAN, ["node2"], [])


def test_names_come_alone_or_with_commas():
    assert hosts._name("a") == ["a"]
    assert hosts._name("a, b,a") == ["a", "b"]
    with pytest.raises(CommandExecutionError, match="expected a minion id"):
        hosts._name(" ,")


# Replacement -------------------------------------------------------------------------------------


def irreplaceable(id_: str, said: dict, plan: dict = PLAN) -> list[str]:
    return hosts._irreplaceable(plan, id_, said, etcd.loss)


def bare(id_: str, **said: Any) -> dict:
    """All hosts are well, and one is a new machine."""
    found = reports(sick=(id_,))
    found[id_] = {"units": {}, "tokens": {"set": None, "tokens": {"admin": None}}, **said}
    return found


@pytest.mark.parametrize("id_", ["lb1", "etcd1", "master1", "node1", "salt"])
def test_any_host_may_be_replaced_off_or_new(id_):
    assert irreplaceable(id_, reports(id_)) == []
    assert irreplaceable(id_, bare(id_)) == []


def test_a_host_that_lives_is_not_replaced():
    (told,) = irreplaceable("etcd1", reports())
    assert "it has etcd" in told
    assert "switch it off" in told


def test_the_only_holder_of_the_keys_is_replaced_with_its_backup_alone():
    said = bare("master1")
    said["master2"]["tokens"] = {"set": None}
    assert "tokens.set from a backup" in irreplaceable("master1", said)[0]
    said["master1"]["tokens"] = {"set": {"lineage": "l", "generation": 1}, "tokens": {}}
    assert irreplaceable("master1", said) == []


def test_the_only_member_of_etcd_is_not_replaced():
    single = made({**{k: v for k, v in ROLES.items() if "etcd" not in v}, "etcd1": ["etcd"]})
    (told,) = irreplaceable("etcd1", reports("etcd1", plan=single), single)
    assert "Restore a backup" in told


# The sum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "sick", "goes", "expected"),
    [
        ("abc", "", "a", None),
        ("abc", "c", "c", None),
        ("abc", "c", "a", "of the 2 members left 1 is healthy, a quorum takes 2. Mend c first"),
        ("abcde", "de", "d", None),
        ("abcde", "de", "a", "of the 4 members left 2 are healthy, a quorum takes 3"),
        ("abcd", "d", "a", None),
        ("abcd", "cd", "a", "of the 3 members left 1 is healthy"),
        ("abcd", "cd", "c", "2 of 4 members are healthy, which is no quorum"),
        ("ab", "b", "b", "1 of 2 members are healthy, which is no quorum"),
        ("ab", "", "b", None),
        ("a", "", "a", "only member"),
        ("abc", "", "x", None),
    ],
)
def test_the_quorum_is_counted_over_the_living(names, sick, goes, expected):
    told = etcd.loss(rows(*sick, names=tuple(names)), goes)
    assert told is None if expected is None else expected in str(told)


def test_a_learner_has_no_vote_to_lose():
    found = rows("c", "d", names=tuple("abcd"), learner="d")
    assert etcd.loss(found, "d") is None
    assert "of the 2 members left 1 is healthy" in str(etcd.loss(found, "a"))


# Drain --------------------------------------------------------------------------------------------


def pod(name: str, kind: str | None = "ReplicaSet", phase: str = "Running", **meta: Any):
    owners = [{"kind": kind, "controller": True}] if kind else []
    return {
        "metadata": {
            "namespace": "n",
            "name": name,
            "uid": name,
            "ownerReferences": owners,
            **meta,
        },
        "status": {"phase": phase},
    }


def test_pods_by_their_fate():
    found = drain.sorted_out(
        [
            pod("a"),
            pod("b", "DaemonSet"),
            pod("c", None),
            pod("d", phase="Succeeded"),
            pod("e", None, annotations={drain.MIRROR: "x"}),
        ]
    )
    assert found == {"stay": ["n/b", "n/e"], "ended": ["n/d"], "alone": ["n/c"], "evict": ["n/a"]}


class Api:
    """An API of one node; ``budget`` refuses that many evictions."""

    def __init__(self, *pods: dict[str, Any], budget: int = 0) -> None:
        self.pods = {one["metadata"]["name"]: one for one in pods}
        self.budget, self.node, self.asked = budget, {"spec": {}}, []

    def request(self, method, path, body=None, content=""):
        self.asked.append((method, path))
        if path.startswith("/api/v1/nodes/"):
            if method == "PATCH":
                self.node["spec"].update(body["spec"])
            return {"status": 200, "body": self.node}
        if path.startswith("/api/v1/pods?"):
            return {"status": 200, "body": {"items": list(self.pods.values())}}
        if path.endswith("/eviction") and self.budget:
            self.budget -= 1
            cause = {"message": "The disruption budget web needs 2 healthy pods and has 2"}
            return {"status": 429, "body": {"message": "no", "details": {"causes": [cause]}}}
        self.pods.pop(path.split("/")[6])
        return {"status": 201, "body": {}}


@pytest.fixture
def api(monkeypatch):
    def use(found: Api) -> Api:
        monkeypatch.setattr(
            drain, "__salt__", {"indigo_kube.request": found.request}, raising=False
        )
        pillar = {"indigo": {"versions": {"kubernetes": "1.22.0"}}}
        monkeypatch.setattr(drain, "__pillar__", pillar, raising=False)
        monkeypatch.setattr(drain, "LOOK", 0)
        return found

    return use


def test_a_drain_tries_again_what_a_budget_held(api):
    found = api(Api(pod("a"), pod("b", "DaemonSet"), budget=2))
    assert drain.drain("n1", deadline=5) == {"evicted": ["n/a"], "cordoned": True}
    assert found.node["spec"]["unschedulable"] is True
    assert list(found.pods) == ["b"]


def test_a_drain_that_fails_names_the_budget_and_uncordons(api):
    found = api(Api(pod("a"), budget=10**6))
    with pytest.raises(CommandExecutionError) as told:
        drain.drain("n1", deadline=0)
    assert "n/a: The disruption budget web needs 2" in str(told.value)
    assert "(namespace n: kubectl -n n get pdb)" in str(told.value)
    assert not found.node["spec"]["unschedulable"]


def test_a_node_that_was_cordoned_before_stays_so(api):
    found = api(Api(pod("a"), budget=10**6))
    found.node["spec"]["unschedulable"] = True
    with pytest.raises(CommandExecutionError):
        drain.drain("n1", deadline=0)
    assert found.node["spec"]["unschedulable"] is True


def test_a_pod_that_is_alone_stops_the_drain_before_it_begins(api):
    found = api(Api(pod("a"), pod("c", None)))
    with pytest.raises(CommandExecutionError, match="n/c back on another node"):
        drain.drain("n1", deadline=0)
    assert [method for method, _ in found.asked if method != "GET"] == []
    assert drain.drain("n1", deadline=5, force=True)["evicted"] == ["n/a", "n/c"]


# --- a deploy within another run -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "code", "expected"),
    [
        ('{"data": {"m": {"s": {"__id__": "x", "result": true}}}}', 0, []),
        ('{"data": {"m": {"s": {"__id__": "x", "result": false, "comment": "y"}}}}', 1, ["x: y"]),
        ('{"data": {"m": ["does not render"]}}', 1, ["['does not render']"]),
        ('{"data": {"m": {"s": {"__id__": "x", "result": true}}}}', 1, None),
        ("no JSON", 1, None),
    ],
)
def test_a_deploy_within_another_run_tells_what_did_not_succeed(
    monkeypatch, printed, code, expected
):
    done = subprocess.CompletedProcess([], code, stdout=printed)
    monkeypatch.setattr(hosts.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(hosts, "__opts__", {"conf_file": "/etc/salt/master"}, raising=False)
    found = hosts.deploy()
    assert found == expected if expected is not None else len(found) == 1
