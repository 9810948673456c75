"""The orchestration's own steps: what they ask, decide, say, and when they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import salt.config
from salt.exceptions import CommandExecutionError, SaltClientError
from support import load

cluster = load("_states", "indigo_cluster")
ASK = load("_modules", "indigo_ask")

PLAN = {
    "cluster": "lab",
    "vip": {"address": "10.0.0.9", "interface": "eth0"},
    "hosts": {
        "e1": {"address": "10.0.0.1", "roles": ["etcd"], "name": "e1", "digest": "p1"},
        "e2": {"address": "10.0.0.2", "roles": ["etcd"], "name": "e2", "digest": "p2"},
        "m1": {"address": "10.0.0.3", "roles": ["master"], "name": "m1", "digest": "p3"},
        "m2": {"address": "10.0.0.4", "roles": ["master"], "name": "m2", "digest": "p4"},
        "N1": {"address": "10.0.0.5", "roles": ["node"], "name": "n1", "digest": "p5"},
    },
    "roles": {"ca": [], "lb": [], "etcd": ["e1", "e2"], "master": ["m1", "m2"], "node": ["N1"]},
}


class Minions:
    """Answers of minions by function, and what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[tuple[str, ...], Any, dict[str, Any]]] = []
        self.listed: list[dict[str, Any]] = []

    def cmd(self, hosts, function, kwarg=None, **_):
        self.asked.append((tuple(hosts), function, kwarg))
        name = function if isinstance(function, str) else "refresh"
        answer = self.answers.get(name.replace(".", "_"), {})
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return {id_: {"ret": ret, "retcode": 0} for id_, ret in answer.items() if id_ in hosts}

    def state(self, name, tgt, tgt_type, sls, queue):
        assert (tgt_type, queue) == ("list", True)
        self.ran = (tgt, sls)
        return {"name": name, "result": True, "changes": {}, "comment": "States ran."}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Run a step over some minions: ``run(step, minions, test=False, problems=[])``."""

    def runner(step, minions, test=False, problems=(), host_problems=(), context=None):
        functions = {
            "indigo_ask.minions": ASK.minions,
            "indigo_model.plan": lambda: PLAN,
            "indigo_model.problems": lambda: list(problems),
            "indigo_model.host_problems": lambda facts: list(host_problems),
            "indigo_preflight.code_digest": lambda folders: "code",
        }
        opts = {"test": test, "module_dirs": ["/m"], "states_dirs": ["/s"]}
        monkeypatch.setattr(ASK, "__salt__", {"saltutil.cmd": minions.cmd}, raising=False)
        monkeypatch.setattr(cluster, "_list_files_anew", minions.listed.append)
        monkeypatch.setattr(cluster, "__salt__", functions, raising=False)
        monkeypatch.setattr(cluster, "__opts__", opts, raising=False)
        monkeypatch.setattr(
            cluster, "__context__", {} if context is None else context, raising=False
        )
        monkeypatch.setattr(cluster, "__states__", {"salt.state": minions.state}, raising=False)
        return step("step")

    return runner


def current(**other: Any) -> dict[str, Any]:
    facts = {id_: {"code": "code", "pillar": host["digest"]} for id_, host in PLAN["hosts"].items()}
    return {**facts, **other}


# --- preflight -------------------------------------------------------------------------------


def test_preflight_of_current_hosts_asks_once_and_changes_nothing(run):
    minions = Minions(indigo_preflight_facts=current())
    ret = run(cluster.preflight, minions)
    assert ret["result"] is True and ret["changes"] == {}
    assert [asked[1] for asked in minions.asked] == ["indigo_preflight.facts"]


def test_preflight_stops_at_the_file_and_asks_nobody(run):
    minions = Minions()
    ret = run(cluster.preflight, minions, problems=["name: found 3", "vip: missing"])
    assert ret["result"] is False
    assert "- name: found 3\n- vip: missing" in ret["comment"]
    assert minions.asked == []


@pytest.mark.parametrize("test", [False, True])
def test_preflight_brings_what_is_missing_in_one_job_and_asks_again(run, test):
    before = current(
        e1="'indigo_preflight.facts' is not available.",
        m1={"code": "old", "pillar": "p3"},
        N1={"code": "code", "pillar": "old"},
    )
    minions = Minions(indigo_preflight_facts=[before, current()])
    ret = run(cluster.preflight, minions, test=test)
    assert ret["result"] is True and ret["changes"] == {}
    everyone, refreshed, again = minions.asked
    assert set(everyone[0]) == set(PLAN["hosts"])
    assert set(refreshed[0]) == set(again[0]) == {"e1", "m1", "N1"}
    assert refreshed[1] == list(cluster.REFRESH)


def test_preflight_tells_an_error_and_the_hosts_problems_once(run):
    broken = {**current(), "e1": "Traceback: boom"}
    minions = Minions(indigo_preflight_facts=broken)
    said = ["e1 (10.0.0.1) does not answer: start it", "e2: 3 MiB free"]
    ret = run(cluster.preflight, minions, host_problems=said)
    assert ret["result"] is False
    assert ret["comment"].count("e1") == 1
    assert "- e1: Traceback: boom; see" in ret["comment"]
    assert "- e2: 3 MiB free" in ret["comment"]


def test_a_master_that_does_not_take_jobs_is_told_without_a_traceback(run):
    minions = Minions(indigo_preflight_facts=SaltClientError("timed out"))
    ret = run(cluster.preflight, minions)
    assert ret["result"] is False
    assert "systemctl status salt-master" in ret["comment"]


# --- which hosts run -------------------------------------------------------------------------


def roles(name, **arguments):
    return cluster.hosts_run(name, sls="indigo.host", **arguments)


def test_only_hosts_run_that_differ_or_were_given_tokens(run):
    facts = current()
    for fact in facts.values():
        fact["differs"] = ""
    facts["N1"]["differs"] = "it was never deployed"
    minions, context = Minions(indigo_preflight_facts=facts), {}
    assert run(cluster.preflight, minions, context=context)["result"] is True
    context["indigo_tokens.changed"] = ["m2"]
    ret = run(roles, minions, context=context)
    assert minions.ran == (["m2", "N1"], "indigo.host")
    assert ret["comment"] == "On 2 of 5 hosts. States ran."
    run(lambda name: roles(name, everywhere=True), minions, context=context)
    assert minions.ran == (list(PLAN["hosts"]), "indigo.host")


def test_nothing_runs_where_nothing_differs(run):
    minions = Minions()
    ret = run(roles, minions, context={cluster.DIFFERS: dict.fromkeys(PLAN["hosts"], "")})
    assert (ret["result"], ret["changes"]) == (True, {})
    assert not hasattr(minions, "ran")


def test_without_a_preflight_all_hosts_run(run):
    minions = Minions()
    run(roles, minions)
    assert minions.ran == (list(PLAN["hosts"]), "indigo.host")


def test_a_host_of_which_nothing_is_known_runs():
    assert cluster.to_run(["a", "b"], {"a": ""}) == ["b"]


# --- etcd ------------------------------------------------------------------------------------

NO = {"data": False, "grant": False}
YES = {"data": True, "grant": False}
GRANTED = {"data": False, "grant": True}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"e1": NO, "e2": NO}, ["e1", "e2"]),
        ({"e1": GRANTED, "e2": NO}, ["e2"]),  # an earlier run was killed between the two
        ({"e1": GRANTED, "e2": GRANTED}, []),
        ({"e1": YES, "e2": GRANTED}, []),  # killed after the first started: the other may follow
        ({"e1": YES, "e2": NO}, []),  # a member that lost its disk must join, not form
    ],
)
def test_grants_go_to_all_members_or_to_none(facts, expected):
    assert cluster.grants_needed(["e1", "e2"], facts) == expected


def test_a_member_that_does_not_answer_stops_the_bootstrap():
    with pytest.raises(ValueError, match=r"e2 did not say .*no answer.*Bring the host back"):
        cluster.grants_needed(["e1", "e2"], {"e1": NO})
    with pytest.raises(ValueError, match="Traceback"):
        cluster.grants_needed(["e1", "e2"], {"e1": NO, "e2": "Traceback"})


def test_test_mode_names_the_grants_and_gives_none(run):
    minions = Minions(indigo_etcd_facts={"e1": NO, "e2": NO})
    ret = run(cluster.etcd_bootstrap, minions, test=True)
    assert ret["result"] is None
    assert set(ret["changes"]) == {"e1", "e2"}
    assert [asked[1] for asked in minions.asked] == ["indigo_etcd.facts"]


def test_grants_are_given_and_reported(run):
    minions = Minions(
        indigo_etcd_facts={"e1": NO, "e2": NO},
        indigo_etcd_grant_bootstrap={"e1": True, "e2": True},
    )
    ret = run(cluster.etcd_bootstrap, minions)
    assert ret["result"] is True and set(ret["changes"]) == {"e1", "e2"}
    assert minions.asked[-1][2] == {"cluster": "lab", "members": ["e1", "e2"]}


def test_a_grant_that_was_not_given_fails_the_step_by_name(run):
    minions = Minions(
        indigo_etcd_facts={"e1": NO, "e2": NO},
        indigo_etcd_grant_bootstrap={"e1": True, "e2": "No space left on device"},
    )
    ret = run(cluster.etcd_bootstrap, minions)
    assert ret["result"] is False
    assert "e2: No space left on device" in ret["comment"]


# --- the whole -------------------------------------------------------------------------------


def ready(**more: Any) -> dict[str, Any]:
    return {"ready": ["n1"], "missing": {}, "waited": 1.0, "problem": None, **more}


def test_the_second_master_is_asked_when_the_first_is_silent(run):
    minions = Minions(indigo_kube_wait_ready={"m2": ready()})
    ret = run(cluster.whole, minions)
    assert ret["result"] is True and ret["changes"] == {}
    assert [asked[0] for asked in minions.asked] == [("m1",), ("m2",)]
    assert minions.asked[0][2]["names"] == ["n1"]


def test_nodes_that_are_not_ready_are_named(run):
    answer = ready(ready=[], missing={"n1": "KubeletNotReady"}, problem=None)
    ret = run(cluster.whole, Minions(indigo_kube_wait_ready={"m1": answer}))
    assert ret["result"] is False
    assert "node n1: KubeletNotReady" in ret["comment"]


def test_no_master_answers(run):
    ret = run(cluster.whole, Minions())
    assert ret["result"] is False and "No master answers" in ret["comment"]


def test_test_mode_asks_nobody(run):
    minions = Minions()
    assert run(cluster.whole, minions, test=True)["result"] is None
    assert minions.asked == []


# --- progress --------------------------------------------------------------------------------


def event(tag: str, **data: Any) -> dict[str, Any]:
    return {"tag": tag, "data": data}


def test_progress_counts_hosts_and_names_failures():
    jobs: dict[str, Any] = {}
    new = event("salt/job/7/new", fun="state.sls", minions=["a", "b"])
    assert cluster.describe(new, jobs) is None
    states = {"x": {"result": True, "changes": {"f": 1}}, "y": {"result": True, "changes": {}}}
    done = event("salt/job/7/ret/a", id="a", fun="state.sls", fun_args=["indigo.host"])
    done["data"]["return"] = states
    assert cluster.describe(done, jobs) == "indigo.host  a done, 1 of 2 hosts (2 states, 1 changed)"
    done["data"].update(id="b")
    done["data"]["return"] = {"x": {"result": False, "name": "etcd serves", "changes": {}}}
    assert cluster.describe(done, jobs) == "indigo.host  b FAILED: etcd serves"
    done["data"]["return"] = ["Rendering SLS failed"]
    assert "FAILED: ['Rendering SLS failed']" in cluster.describe(done, jobs)


@pytest.mark.parametrize(
    "other",
    [
        event("salt/auth", id="a"),
        event("salt/job/7/ret/a", id="a", fun="test.ping"),
        event("salt/job/7/ret/a", id="a", fun=["saltutil.sync_modules", "test.ping"]),
        event("salt/job/7/prog/a/1", id="a", fun="state.sls"),
    ],
)
def test_progress_passes_over_other_events(other):
    assert cluster.describe(other, {}) is None


def test_preflight_has_the_salt_master_list_its_files_anew(run, tmp_path: Path):
    minions = Minions(indigo_preflight_facts=current())
    run(cluster.preflight, minions)
    assert len(minions.listed) == 1
    (tmp_path / "master").write_text(f"root_dir: {tmp_path}\n")
    opts = salt.config.master_config(str(tmp_path / "master"))
    cached = Path(opts["cachedir"], "file_lists", "roots", "base.p")
    cached.parent.mkdir(parents=True)
    cached.touch()
    load("_states", "indigo_cluster")._list_files_anew(opts)
    assert not cached.exists()


def test_where_every_host_must_answer_those_that_do_not_are_named(monkeypatch):
    said = {"a": None, "b": "ERROR: no room", "c": {"x": 1}}
    monkeypatch.setattr(
        ASK, "minions", lambda hosts, *_, **__: {h: said[h] for h in hosts if h in said}
    )
    assert ASK.each(["a", "c"], "f") == {"a": None, "c": {"x": 1}}
    with pytest.raises(CommandExecutionError, match=r"^b: ERROR: no room; d: no answer$"):
        ASK.each(["a", "b", "c", "d"], "f")
